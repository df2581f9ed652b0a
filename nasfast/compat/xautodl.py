# SPDX-License-Identifier: MIT
"""Weights of the published NAS-Bench-201 supernets (xautodl, AutoDL-Projects).

Tensor names are the same but for the ``generic`` model, which writes ``_stem`` and ``_cells``.
Facts of their format: the RANDOM, GDAS, DARTS and SETN models normalise stem, reductions and last
activation with affine parameters and running statistics whatever the flags of the cells; in
``generic`` the last activation follows the cells. Architecture parameters are not weights.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from nasfast.compat.torch_files import read_state
from nasfast.layout import SupernetConfig
from nasfast.supernet import Supernet

_NOT_WEIGHTS = ("arch_parameters", "controller")
_FIRST_CONV = "cells.0.edges.1<-0.2.op"


def from_xautodl(state: Mapping[str, Tensor]) -> Supernet:
    """Build a supernet from a state dict of a published NAS-Bench-201 supernet.

    Channels, cells a stage, classes and batch-norm flags are read off the tensors.

    Args:
        state: ``search_model`` of a checkpoint, or ``model.state_dict()``; keys may carry a
            ``module.`` prefix.

    Raises:
        ValueError: If the tensors are not those of such a supernet.
    """
    renamed = {_rename(name): tensor for name, tensor in state.items()}
    weights = {k: v for k, v in renamed.items() if not k.startswith(_NOT_WEIGHTS)}
    return Supernet.from_state_dict(_config(weights), weights)


def load_xautodl(path: str | os.PathLike[str]) -> Supernet:
    """Build a supernet from a checkpoint file of xautodl, old or new format of ``torch.save``.

    Nothing of the file is run: see :mod:`nasfast.compat.torch_files`.

    Args:
        path: The file; its entry ``search_model`` is taken, or all of it if it is a state dict.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or holds no such supernet.
    """
    state = read_state(Path(path), "search_model")
    try:
        return from_xautodl(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def to_xautodl(supernet: Supernet, *, generic: bool = False) -> dict[str, Tensor]:
    """Return a state dict that a published supernet loads strictly.

    Args:
        supernet: Weights; on edges, of the space ``nb201``.
        generic: Write the names of the ``generic`` model, without its ``arch_parameters``.

    Raises:
        ValueError: If the supernet has weights on nodes: there is no such published model.
    """
    if supernet.config.space != "nb201" or supernet.config.weights_on != "edge":
        raise ValueError(
            "supernet: wanted space nb201 with weights on edges, got "
            f"{supernet.config.space} with weights on {supernet.config.weights_on}s"
        )
    state = supernet.state_dict()
    for name in list(state):
        if name.endswith("running_var"):
            state[name.removesuffix("running_var") + "num_batches_tracked"] = torch.tensor(0)
    if not generic:
        return state
    return {("_" + k if k.startswith(("stem.", "cells.")) else k): v for k, v in state.items()}


def _rename(name: str) -> str:
    name = name.removeprefix("module.")
    return name[1:] if name.startswith(("_stem.", "_cells.")) else name


def _config(weights: Mapping[str, Tensor]) -> SupernetConfig:
    needed = ("stem.0.weight", f"{_FIRST_CONV}.1.weight", "classifier.weight")
    missing = [name for name in needed if name not in weights]
    if missing:
        raise ValueError(
            f"state: not a NAS-Bench-201 supernet of xautodl: {missing[0]} is missing"
            + ("; pass its entry 'search_model'" if "search_model" in weights else "")
        )
    layers = {name.split(".")[1] for name in weights if name.startswith("cells.")}
    if (len(layers) - 2) % 3 or layers != {str(k) for k in range(len(layers))}:
        raise ValueError(f"state: wanted 3 N cells and 2 reductions, got {len(layers)} layers")
    for name, dimensions in (("stem.0.weight", 4), ("classifier.weight", 2)):
        if weights[name].dim() != dimensions:
            raise ValueError(
                f"state[{name!r}]: wanted {dimensions} dimensions, got {list(weights[name].shape)}"
            )
    affine, track = f"{_FIRST_CONV}.2.weight" in weights, f"{_FIRST_CONV}.2.running_mean" in weights
    channels, in_channels = weights["stem.0.weight"].shape[:2]
    return SupernetConfig(
        space="nb201",
        channels=channels,
        cells_per_stage=(len(layers) - 2) // 3,
        classes=weights["classifier.weight"].shape[0],
        in_channels=in_channels,
        affine=affine,
        track=track,
        last_affine="lastact.0.weight" in weights,
        last_track="lastact.0.running_mean" in weights,
    )
