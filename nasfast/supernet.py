# SPDX-License-Identifier: MIT
"""A supernet: shared weights of all subnets of a search space, in one flat arena."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nasfast.layout import Layout, ParamSpec, SupernetConfig

_FORMAT = "nasfast-supernet-1"


class Supernet:
    """Shared weights of a search space.

    The tensors are views of one flat arena, so a program addresses them by offset and a copy of
    the supernet is one copy of the arena.

    Attributes:
        config: Shape of the supernet.
        layout: Names, shapes and offsets derived from it.
        arena: All tensors, float32 or float64 ``[arena_size]``; padding between them is 0.
    """

    def __init__(self, config: SupernetConfig, arena: Tensor, layout: Layout | None = None) -> None:
        self.config = config
        self.layout = layout or Layout(config)
        wanted = (self.layout.arena_size,)
        if tuple(arena.shape) != wanted or arena.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"arena: wanted float32 or float64 {list(wanted)}, "
                f"got {arena.dtype} {list(arena.shape)}"
            )
        self.arena = arena

    @classmethod
    def create(cls, config: SupernetConfig, seed: int) -> Supernet:
        """Initialise a supernet as PyTorch's own layers would be.

        Convolutions, their biases and the classifier are uniform in ``+-1/sqrt(fan_in)``; batch
        norm starts as the identity with running mean 0 and running variance 1.

        Args:
            config: Shape of the supernet.
            seed: Seed of the draw; the same seed and shape give the same bits.
        """
        layout = Layout(config)
        supernet = cls(config, torch.zeros(layout.arena_size), layout)
        generator = torch.Generator().manual_seed(seed)
        fan_in = {p.unit: math.prod(p.shape[1:]) for p in layout.params if p.field == "weight"}
        for param in layout.params:
            view = supernet.view(param)
            if param.field in ("gamma", "variance"):
                view.fill_(1.0)
            elif param.field in ("weight", "bias"):
                bound = 1.0 / math.sqrt(fan_in[param.unit])
                view.uniform_(-bound, bound, generator=generator)
        return supernet

    def view(self, param: ParamSpec) -> Tensor:
        """Return one tensor as a view of the arena."""
        return self.arena[param.offset : param.offset + param.size].view(param.shape)

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor as a view of the arena, in arena order."""
        for param in self.layout.params:
            yield param.name, self.view(param)

    def leaves(self) -> dict[str, Tensor]:
        """Return every tensor by name as a leaf of autograd that shares the arena's memory.

        Parameters require gradients, running statistics do not. As in any module, a parameter that
        a loss does not depend on keeps ``grad=None``.
        """
        return {
            param.name: self.view(param).detach().requires_grad_(not param.is_buffer)
            for param in self.layout.params
        }

    @property
    def num_params(self) -> int:
        """Trainable parameters (running statistics not counted)."""
        return sum(p.size for p in self.layout.params if not p.is_buffer)

    def copy(self, dtype: torch.dtype | None = None) -> Supernet:
        """Return an independent copy, optionally in another precision."""
        arena = self.arena.detach().clone().to(dtype or self.arena.dtype)
        return Supernet(self.config, arena, self.layout)

    # Weights in and out.

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of every tensor by name.

        The names are those of the published NAS-Bench-201 supernets; they have one more entry for
        each tracked batch norm, ``num_batches_tracked``, which plays no part in any result.
        """
        return {name: tensor.detach().clone() for name, tensor in self.named_tensors()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy weights in; nothing changes if anything does not fit.

        Args:
            state: Tensors by name; entries ending in ``num_batches_tracked`` are ignored.

        Raises:
            ValueError: If a tensor is missing, unknown, of another shape, or not finite.
        """
        given = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
        missing = [name for name in self.layout.by_name if name not in given]
        unknown = [name for name in given if name not in self.layout.by_name]
        if missing or unknown:
            raise ValueError(
                f"state: these weights are not of a {self._words()}: "
                f"{len(missing)} tensors missing (first {missing[:1]}), "
                f"{len(unknown)} unknown (first {unknown[:1]})"
            )
        for name, tensor in given.items():
            wanted = self.layout.by_name[name].shape
            if tuple(tensor.shape) != wanted:
                raise ValueError(
                    f"state[{name!r}]: wanted {list(wanted)} for a {self._words()}, "
                    f"got {list(tensor.shape)}"
                )
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"state[{name!r}]: holds NaN or infinity")
        with torch.no_grad():
            for name, tensor in given.items():
                self.view(self.layout.by_name[name]).copy_(tensor)

    def _words(self) -> str:
        c = self.config
        return (
            f"{c.space} supernet (channels={c.channels}, cells_per_stage={c.cells_per_stage}, "
            f"classes={c.classes}, affine={c.affine}, track={c.track}, "
            f"weights_on={c.weights_on})"
        )

    def save(self, path: str | os.PathLike[str], **metadata: str) -> None:
        """Write a safetensors file with the config in its header; replaces the file atomically.

        Args:
            path: File to write.
            **metadata: Further header entries.

        Raises:
            OSError: If it cannot be written; what was there before is still there.
        """
        header = {**metadata, "format": _FORMAT, "config": json.dumps(self.config.to_dict())}
        write_tensors(path, self.state_dict(), header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Supernet:
        """Read a file written by :meth:`save`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no nasfast supernet, is damaged, or its weights do not fit the
                config in its header.
        """
        config, state = read_checkpoint(path)
        supernet = cls.create(config, seed=0)
        if any(t.dtype == torch.float64 for t in state.values()):
            supernet = supernet.copy(torch.float64)
        try:
            supernet.load_state_dict(state)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return supernet


def load(path: str | os.PathLike[str]) -> Supernet:
    """Load the trained supernet of a run folder, or a supernet file.

    Args:
        path: Run folder, for example ``"runs/nb201_digits"``, or ``.safetensors`` file.

    Raises:
        FileNotFoundError: If there is none, or the run is not trained yet.
        ValueError: As :meth:`Supernet.load`.
    """
    file = Path(path)
    return Supernet.load(file / "supernet.safetensors" if file.is_dir() else file)


def write_tensors(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], header: dict[str, str]
) -> None:
    """Write a safetensors file as a whole or not at all.

    Args:
        path: File to write.
        tensors: Tensors by name.
        header: Metadata.

    Raises:
        OSError: If it cannot be written; what was there before is still there.
    """
    from safetensors import SafetensorError  # only for files: the engine needs torch alone
    from safetensors.torch import save_file

    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    try:
        partial.touch()  # takes the user's umask, which safetensors does not
        mode = partial.stat().st_mode
        save_file(tensors, str(partial), metadata=header)
        partial.chmod(mode)
        os.replace(partial, target)
    except SafetensorError as error:
        raise OSError(f"{path}: not written ({error})") from None
    finally:
        if partial.parent.is_dir():
            partial.unlink(missing_ok=True)


def read_checkpoint(
    path: str | os.PathLike[str],
) -> tuple[SupernetConfig, dict[str, Tensor]]:
    """Read config and tensors of a supernet file without building the supernet.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no nasfast supernet or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"supernet file not found: {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            header: dict[str, Any] = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
    if header.get("format") != _FORMAT:
        raise ValueError(
            f"{path}: wanted a supernet written by nasfast (format {_FORMAT!r}), "
            f"got format {header.get('format')!r}"
        )
    try:
        config = SupernetConfig.from_dict(json.loads(header["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged header: {error}") from None
    return config, state
