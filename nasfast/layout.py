# SPDX-License-Identifier: MIT
"""Which weights a supernet has, what they are called, and where they lie in its flat arena.

Everything here is derived from a :class:`SupernetConfig`; no torch. A **unit** is what one
normalised convolution needs (weight, bias, and the six-number row of offsets of its batch norm);
programs name weights by unit, so a lane with private weights differs only in its offsets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np

from nasfast import spaces
from nasfast.spaces.spec import CellSpec, IntArray, OpKind

ARENA_ALIGNMENT = 16  # floats: every tensor starts on a 64-byte line
FIELDS = ("weight", "bias", "gamma", "beta", "mean", "variance")  # columns of a unit's offsets
BUFFERS = ("mean", "variance")  # fields that are statistics, not parameters


@dataclass(frozen=True)
class SupernetConfig:
    """The shape of a supernet; together with the weights it determines every result.

    The defaults are those of the NAS-Bench-201 supernets: batch norm of the cells without affine
    parameters and without running statistics (their convolutions then have a bias), batch norm of
    stem, reductions and last activation with both.

    Attributes:
        space: Name of the search space.
        channels: Channels of the first stage.
        cells_per_stage: Search cells in each stage.
        classes: Classes of the linear classifier.
        in_channels: Channels of an image.
        affine: Whether batch norm in cells has a trainable scale and shift; without, the
            convolutions of the cells have a bias.
        track: Whether batch norm in cells keeps running statistics.
        fixed_affine: The same for stem and reductions.
        fixed_track: The same for stem and reductions.
        last_affine: The same for the batch norm before the classifier.
        last_track: The same for the batch norm before the classifier.
        weights_on: ``"edge"``: every edge owns its candidate operations; ``"node"``: the edges
            into one node share them (Yu et al., How to Train Your Super-Net, section 4.4).
    """

    space: str = "nb201"
    channels: int = 16
    cells_per_stage: int = 5
    classes: int = 10
    in_channels: int = 3
    affine: bool = False
    track: bool = False
    fixed_affine: bool = True
    fixed_track: bool = True
    last_affine: bool = True
    last_track: bool = True
    weights_on: Literal["edge", "node"] = "edge"

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ValueError: If the space is unknown or a size is not a positive integer.
        """
        spaces.get(self.space, CellSpec)
        for name in ("channels", "cells_per_stage", "classes", "in_channels"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}: wanted a positive integer, got {value!r}")
        for name in ("affine", "track", "fixed_affine", "fixed_track", "last_affine", "last_track"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: wanted True or False, got {getattr(self, name)!r}")
        if self.weights_on not in ("edge", "node"):
            raise ValueError(f"weights_on: wanted 'edge' or 'node', got {self.weights_on!r}")

    @property
    def spec(self) -> CellSpec:
        """The search space."""
        return spaces.get(self.space, CellSpec)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SupernetConfig:
        """Build from plain values.

        Raises:
            ValueError: If a field is unknown or missing.
        """
        known = {f.name for f in fields(cls)}
        if set(values) != known:
            raise ValueError(
                f"supernet config: unknown fields {sorted(set(values) - known)}, "
                f"missing fields {sorted(known - set(values))}"
            )
        return cls(**values)


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
        kind: ``"stem"``, ``"cell"``, ``"reduction"`` or ``"head"``.
        in_channels: Channels of its input.
        out_channels: Channels of its output; classes for the head.
        halvings: How often the image was halved before it.
        unit: Its first unit. A stem has 1; a reduction 3 (conv_a, conv_b, shortcut); a head 2
            (last batch norm, classifier); a cell one for each owner and operation.
        layer: Index in the benchmark's list of cells and reductions, -1 for stem and head.
        cell: Ordinal among the search cells, -1 for the others.
    """

    kind: Literal["stem", "cell", "reduction", "head"]
    in_channels: int
    out_channels: int
    halvings: int
    unit: int
    layer: int = -1
    cell: int = -1


def halved(size: int, times: int) -> int:
    """Return an image side after reductions: 3x3 convolutions of stride 2 with padding 1."""
    for _ in range(times):
        size = (size + 1) // 2
    return size


class Layout:
    """The weights of a supernet: positions of the skeleton, units, named tensors, offsets.

    Attributes:
        config: What it was derived from.
        positions: Stem, cells and reductions in order, head.
        params: Every tensor, in arena order.
        offsets: int32 ``[units, 6]``, column order :data:`FIELDS`, -1 where a unit has no such
            tensor.
        arena_size: Elements of the arena.
    """

    def __init__(self, config: SupernetConfig) -> None:
        self.config = config
        self._params: list[ParamSpec] = []
        self._rows: list[list[int]] = []
        self._end = 0
        self.positions = tuple(self._walk())
        if self._end >= 2**31:
            raise ValueError(f"supernet config: arena of {self._end} floats exceeds 2^31")
        self.params = tuple(self._params)
        self.offsets: IntArray = np.array(self._rows, dtype=np.int32)
        self.arena_size = self._end

    @property
    def num_cells(self) -> int:
        """Search cells of the network."""
        return len(self.config.spec.stage_widths) * self.config.cells_per_stage

    @property
    def num_owners(self) -> int:
        """Owners of candidate operations in one cell: edges, or nodes after the input."""
        spec = self.config.spec
        return spec.num_edges if self.config.weights_on == "edge" else spec.num_nodes - 1

    @property
    def owner_of_edge(self) -> tuple[int, ...]:
        """Owner of each edge's candidate operations, ``[num_edges]``."""
        if self.config.weights_on == "edge":
            return tuple(range(self.config.spec.num_edges))
        return tuple(target - 1 for _, target in self.config.spec.edges)

    @cached_property
    def by_name(self) -> dict[str, ParamSpec]:
        """The tensors by name."""
        return {p.name: p for p in self.params}

    # Construction: one walk over the network, in the order of the benchmark's layer list.

    def _walk(self) -> Iterator[Position]:
        c = self.config
        widths = [c.channels * multiple for multiple in c.spec.stage_widths]
        first = self._conv("stem.0", "stem.1", c.in_channels, widths[0], 3, *self._fixed)
        yield Position("stem", c.in_channels, widths[0], 0, first)
        layer = cell = 0
        for stage, width in enumerate(widths):
            if stage:
                yield self._reduction(layer, widths[stage - 1], width, stage - 1)
                layer += 1
            for _ in range(c.cells_per_stage):
                yield Position("cell", width, width, stage, self._cell(layer, width), layer, cell)
                layer, cell = layer + 1, cell + 1
        head = self._unit()
        self._batch_norm(head, "lastact.0", widths[-1], c.last_affine, c.last_track)
        classifier = self._unit()
        self._tensor(classifier, "weight", "classifier.weight", (c.classes, widths[-1]))
        self._tensor(classifier, "bias", "classifier.bias", (c.classes,))
        yield Position("head", widths[-1], c.classes, len(widths) - 1, head)

    @property
    def _fixed(self) -> tuple[bool, bool]:
        return self.config.fixed_affine, self.config.fixed_track

    def _reduction(self, layer: int, width_in: int, width: int, halvings: int) -> Position:
        name = f"cells.{layer}"
        first = self._conv(
            f"{name}.conv_a.op.1", f"{name}.conv_a.op.2", width_in, width, 3, *self._fixed
        )
        self._conv(f"{name}.conv_b.op.1", f"{name}.conv_b.op.2", width, width, 3, *self._fixed)
        shortcut = self._unit()
        self._tensor(shortcut, "weight", f"{name}.downsample.1.weight", (width, width_in, 1, 1))
        return Position("reduction", width_in, width, halvings, first, layer)

    def _cell(self, layer: int, width: int) -> int:
        c, spec = self.config, self.config.spec
        first = len(self._rows)
        if c.weights_on == "edge":
            owners = [f"edges.{target}<-{source}" for source, target in spec.edges]
        else:
            owners = [f"nodes.{node}" for node in range(1, spec.num_nodes)]
        for owner in owners:
            for k, op in enumerate(spec.ops):
                if op.kind != OpKind.CONV:
                    self._unit()  # keeps unit = first + owner * num_ops + operation
                    continue
                name = f"cells.{layer}.{owner}.{k}.op"
                self._conv(
                    f"{name}.1", f"{name}.2", width, width, op.kernel, c.affine, c.track,
                    bias=not c.affine,
                )  # fmt: skip
        return first

    def _conv(
        self, conv: str, norm: str, cin: int, cout: int, kernel: int, affine: bool, track: bool,
        *, bias: bool = False,
    ) -> int:  # fmt: skip
        unit = self._unit()
        self._tensor(unit, "weight", f"{conv}.weight", (cout, cin, kernel, kernel))
        if bias:
            self._tensor(unit, "bias", f"{conv}.bias", (cout,))
        self._batch_norm(unit, norm, cout, affine, track)
        return unit

    def _batch_norm(self, unit: int, name: str, width: int, affine: bool, track: bool) -> None:
        if affine:
            self._tensor(unit, "gamma", f"{name}.weight", (width,))
            self._tensor(unit, "beta", f"{name}.bias", (width,))
        if track:
            self._tensor(unit, "mean", f"{name}.running_mean", (width,))
            self._tensor(unit, "variance", f"{name}.running_var", (width,))

    def _unit(self) -> int:
        self._rows.append([-1] * len(FIELDS))
        return len(self._rows) - 1

    def _tensor(self, unit: int, field: str, name: str, shape: tuple[int, ...]) -> None:
        self._params.append(ParamSpec(name, shape, self._end, unit, field))
        self._rows[unit][FIELDS.index(field)] = self._end
        self._end += -(-math.prod(shape) // ARENA_ALIGNMENT) * ARENA_ALIGNMENT
