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

from nasfast.files import write_bytes
from nasfast.layout import Layout, SupernetConfig
from nasfast.units import ParamSpec

_FORMAT = "nasfast-supernet-1"
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


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

    @classmethod
    def from_state_dict(cls, config: SupernetConfig, state: Mapping[str, Tensor]) -> Supernet:
        """Make a supernet of given weights; float64 if one of them is, else float32.

        Nothing of the size that the config says is made before the weights are found to be of it.

        Args:
            config: Shape of the supernet.
            state: Tensors by name, as of :meth:`load_state_dict`.

        Raises:
            ValueError: As :meth:`load_state_dict`.
        """
        if config.num_cells > len(state):
            raise ValueError(
                f"state: wanted weights of {config.num_cells} cells, got {len(state)} tensors"
            )
        layout = Layout(config)
        weights = _checked(layout, state)
        double = any(tensor.dtype == torch.float64 for tensor in weights.values())
        dtype = torch.float64 if double else torch.float32
        supernet = cls(config, torch.zeros(layout.arena_size, dtype=dtype), layout)
        supernet.load_state_dict(weights)
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

        The names are those of the published supernets of the space; they have one more entry for
        each tracked batch norm, ``num_batches_tracked``, which plays no part in any result.
        """
        return {name: tensor.detach().clone() for name, tensor in self.named_tensors()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy weights in; nothing changes if anything does not fit.

        Args:
            state: Tensors by name; entries ending in ``num_batches_tracked`` are ignored.

        Raises:
            ValueError: If a tensor is missing, unknown, of another shape or type, or not finite.
        """
        given = _checked(self.layout, state)
        with torch.no_grad():
            for name, tensor in given.items():
                self.view(self.layout.by_name[name]).copy_(tensor)

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
        try:
            return cls.from_state_dict(config, state)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def _checked(layout: Layout, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a state dict; the errors are those of Supernet.load_state_dict."""
    given = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    missing = [name for name in layout.by_name if name not in given]
    unknown = [name for name in given if name not in layout.by_name]
    if missing or unknown:
        raise ValueError(
            f"state: these weights are not of a {_words(layout.config)}: "
            f"{len(missing)} tensors missing (first {missing[:1]}), "
            f"{len(unknown)} unknown (first {unknown[:1]})"
        )
    for name, tensor in given.items():
        wanted = layout.by_name[name].shape
        if tuple(tensor.shape) != wanted:
            raise ValueError(
                f"state[{name!r}]: wanted {list(wanted)} for a {_words(layout.config)}, "
                f"got {list(tensor.shape)}"
            )
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"state[{name!r}]: wanted floating-point numbers, got {tensor.dtype}")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"state[{name!r}]: holds NaN or infinity")
    return given


def _words(c: SupernetConfig) -> str:
    return (
        f"{c.space} supernet (channels={c.channels}, cells_per_stage={c.cells_per_stage}, "
        f"classes={c.classes}, affine={c.affine}, track={c.track}, weights_on={c.weights_on})"
    )


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
    from safetensors.torch import save  # only for files: the engine needs torch alone

    write_bytes(Path(path), _with_sorted_header(save(tensors, metadata=header)))


def _with_sorted_header(content: bytes) -> bytes:
    """Sort the metadata of a safetensors file, which are in another order in each process."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust((len(text) + 7) // 8 * 8)  # the format wants tensors aligned
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


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
    except (SafetensorError, RuntimeError, TypeError, AttributeError) as error:
        # Damage can also name a number type that this torch lacks.
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
    if header.get("format") != _FORMAT:
        raise ValueError(
            f"{path}: wanted a supernet written by nasfast (format {_FORMAT!r}), "
            f"got format {header.get('format')!r}"
        )
    try:
        config = SupernetConfig.from_dict(json.loads(header["config"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged header: {error}") from None
    return config, state
