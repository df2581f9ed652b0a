# SPDX-License-Identifier: MIT
"""What a network is made of: positions of a skeleton, units, named tensors in one arena.

A **unit** is what one normalised convolution needs (weight, bias, and the offsets of its batch
norm); programs name weights by unit, so a lane with private weights differs only in its offsets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

ARENA_ALIGNMENT = 16  # floats: every tensor starts on a 64-byte line
FIELDS = ("weight", "bias", "gamma", "beta", "mean", "variance")  # columns of a unit's offsets
BUFFERS = ("mean", "variance")  # fields that are statistics, not parameters
MOMENTUM = 0.1  # weight of the new minibatch in running statistics, where nothing else is said

Kind = Literal[
    "stem", "cell", "reduction", "head", "relu_stem", "max_pool", "projected_head", "linear_head"
]
# Units of each kind, in their order; those of a cell are the space's affair.
KINDS: dict[Kind, tuple[str, ...]] = {
    "stem": ("conv",),  # convolution, batch norm
    "cell": (),
    "reduction": ("conv_a", "conv_b", "shortcut"),  # shortcut(x) + conv_b(conv_a(x)), halves
    "head": ("last", "classifier"),  # batch norm, ReLU, mean over the image, linear
    "relu_stem": ("conv",),  # convolution, batch norm, ReLU
    "max_pool": (),  # 2x2 of stride 2
    "projected_head": ("project", "classifier"),  # ReLU, 1x1 convolution, batch norm, mean, linear
    "linear_head": ("classifier",),  # mean over the image, linear
}


@dataclass(frozen=True, slots=True)
class ParamSpec:
    """One tensor of a supernet: name, shape, and where it lies.

    Attributes:
        name: Key in a ``state_dict``.
        shape: Shape.
        offset: First element in the arena.
        unit: The unit it belongs to.
        field: Its role in the unit, one of :data:`FIELDS`.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    unit: int
    field: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_buffer(self) -> bool:
        """Whether it is a running statistic, not a trainable parameter."""
        return self.field in BUFFERS


@dataclass(frozen=True, slots=True)
class Position:
    """One element of the macro skeleton between stem and head.

    Attributes:
        kind: One of :data:`KINDS`.
        in_channels: Channels of its input.
        out_channels: Channels of its output; classes for a head.
        halvings: How often the image was halved before it.
        unit: Its first unit; :data:`KINDS` says how many it has.
        layer: Index in the benchmark's list of cells and reductions, -1 for the others.
        cell: Ordinal among the search cells, -1 for the others.
    """

    kind: Kind
    in_channels: int
    out_channels: int
    halvings: int
    unit: int
    layer: int = -1
    cell: int = -1


@dataclass(frozen=True, slots=True)
class UnitShape:
    """Shape of a unit's convolution.

    Attributes:
        kernel: Side of the kernel; 0 without a convolution.
        in_channels: Channels of its input.
        out_channels: Channels of its output; without a convolution those of the value it names.
        momentum: Weight of the new minibatch in its running statistics.
    """

    kernel: int = 0
    in_channels: int = 0
    out_channels: int = 0
    momentum: float = MOMENTUM


class Builder:
    """Collects units and lays their tensors one after another in an arena.

    Attributes:
        params: Every tensor, in arena order.
        rows: Arena offsets of each unit, in the order :data:`FIELDS`; -1 where it has no such
            tensor.
        shapes: Shape of each unit.
        end: Numbers of the arena so far.
    """

    def __init__(self) -> None:
        self.params: list[ParamSpec] = []
        self.rows: list[list[int]] = []
        self.shapes: list[UnitShape] = []
        self.end = 0

    def conv(
        self, conv: str, norm: str | None, shape: UnitShape, *, affine: bool = False,
        track: bool = False, bias: bool = False,
    ) -> int:  # fmt: skip
        """Add a convolution with its batch norm (none where ``norm`` is None); returns the unit."""
        unit = self.unit(shape)
        out, kernel = shape.out_channels, shape.kernel
        self.tensor(unit, "weight", f"{conv}.weight", (out, shape.in_channels, kernel, kernel))
        if bias:
            self.tensor(unit, "bias", f"{conv}.bias", (out,))
        if norm is not None:
            self.batch_norm(unit, norm, out, affine=affine, track=track)
        return unit

    def batch_norm(self, unit: int, name: str, width: int, *, affine: bool, track: bool) -> None:
        """Add the tensors of a batch norm to a unit."""
        if affine:
            self.tensor(unit, "gamma", f"{name}.weight", (width,))
            self.tensor(unit, "beta", f"{name}.bias", (width,))
        if track:
            self.tensor(unit, "mean", f"{name}.running_mean", (width,))
            self.tensor(unit, "variance", f"{name}.running_var", (width,))

    def classifier(self, width: int, classes: int) -> int:
        """Add the linear classifier; returns the unit."""
        unit = self.unit()
        self.tensor(unit, "weight", "classifier.weight", (classes, width))
        self.tensor(unit, "bias", "classifier.bias", (classes,))
        return unit

    def unit(self, shape: UnitShape | None = None) -> int:
        """Add a unit without tensors."""
        self.rows.append([-1] * len(FIELDS))
        self.shapes.append(shape or UnitShape())
        return len(self.rows) - 1

    def tensor(self, unit: int, field: str, name: str, shape: tuple[int, ...]) -> None:
        """Add a tensor to a unit."""
        self.params.append(ParamSpec(name, shape, self.end, unit, field))
        self.rows[unit][FIELDS.index(field)] = self.end
        self.end += -(-math.prod(shape) // ARENA_ALIGNMENT) * ARENA_ALIGNMENT
