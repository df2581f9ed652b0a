# SPDX-License-Identifier: MIT
"""Which weights a supernet has, what they are called, and where they lie in its flat arena.

Everything here is derived from a :class:`SupernetConfig`; no torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from nasfast import spaces
from nasfast.skeletons import padding_of, units_per_cell, walk
from nasfast.spaces.block_spec import BlockSpec
from nasfast.spaces.nb101_network import Nb101Network
from nasfast.spaces.spec import CellSpec, IntArray
from nasfast.units import Builder, ParamSpec, UnitShape


def searched_spaces() -> tuple[str, ...]:
    """Return the names of the spaces whose cells are searched."""
    return (*spaces.names(CellSpec), *spaces.names(BlockSpec))


def searched(name: str) -> CellSpec | BlockSpec:
    """Return a space whose cells are searched, so that it has a supernet.

    Raises:
        ValueError: If there is no such space, or it is of another kind.
    """
    spec = spaces.get(name)
    if not isinstance(spec, CellSpec | BlockSpec):
        known = ", ".join(searched_spaces())
        raise ValueError(f"space: wanted one whose cells are searched ({known}), got {name!r}")
    return spec


@dataclass(frozen=True)
class SupernetConfig:
    """The shape of a supernet; together with the weights it determines every result.

    The defaults are those of the NAS-Bench-201 supernets: batch norm of the cells without affine
    parameters and without running statistics (their convolutions then have a bias), batch norm of
    stem, reductions and last activation with both. Those of other spaces: :meth:`published`.

    Attributes:
        space: Name of the search space.
        channels: Channels of the first stage.
        cells_per_stage: Search cells in each stage.
        classes: Classes of the linear classifier.
        in_channels: Channels of an image.
        affine: Whether batch norm in cells has a trainable scale and shift; without, the
            convolutions on the edges of a cell have a bias.
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
        if not isinstance(spaces.get(self.space), CellSpec | BlockSpec | Nb101Network):
            searched(self.space)  # says which there are
        for name in ("channels", "cells_per_stage", "classes", "in_channels"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}: wanted a positive integer, got {value!r}")
        for name in ("affine", "track", "fixed_affine", "fixed_track", "last_affine", "last_track"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: wanted True or False, got {getattr(self, name)!r}")
        if self.weights_on not in ("edge", "node"):
            raise ValueError(f"weights_on: wanted 'edge' or 'node', got {self.weights_on!r}")
        if self.weights_on != "edge" and not isinstance(self.spec, CellSpec):
            raise ValueError(
                f"weights_on: wanted 'edge' in {self.space}, whose choice blocks own their "
                f"operations, got {self.weights_on!r}"
            )

    @property
    def spec(self) -> CellSpec | BlockSpec | Nb101Network:
        """The search space."""
        spec = spaces.get(self.space)
        assert isinstance(spec, CellSpec | BlockSpec | Nb101Network)
        return spec

    @property
    def num_cells(self) -> int:
        """Search cells of the network."""
        return len(self.spec.stage_widths) * self.cells_per_stage

    @classmethod
    def published(cls, space: str, **changes: Any) -> SupernetConfig:
        """Return the shape of a space's published supernet.

        Args:
            space: Name of the space.
            **changes: Fields that are to be others.

        Source:
            Dong and Yang, NAS-Bench-201, ICLR 2020; Zela et al., NAS-Bench-1Shot1, ICLR 2020; Ying
            et al., NAS-Bench-101, ICML 2019, and their code.
        """
        config = cls(space=space)
        if isinstance(config.spec, BlockSpec):
            config = replace(config, cells_per_stage=3, affine=True, track=True, last_affine=False)
        if isinstance(config.spec, Nb101Network):
            config = replace(config, channels=128, cells_per_stage=3, affine=True, track=True)
        return replace(config, **changes)

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


def halved(size: int, times: int, padding: int = 0) -> int:
    """Return a side of an image after halvings: windows of stride 2, the first row padded or not.

    Without padding the last window of an odd side has one row: ``n`` becomes ``(n + 1) // 2``. With
    a padding of 1 the first window has one, and the last of an even side: ``n // 2 + 1``.
    """
    for _ in range(times):
        size = size // 2 + 1 if padding else (size + 1) // 2
    return size


class Layout:
    """The weights of a supernet: positions of the skeleton, units, named tensors, offsets.

    Attributes:
        config: What it was derived from.
        positions: Stem, cells and what halves the image between them in order, head.
        params: Every tensor, in arena order.
        offsets: int32 ``[units, 6]``, column order :data:`nasfast.units.FIELDS`, -1 where a unit
            has no such tensor.
        shapes: Shape of each unit.
        arena_size: Elements of the arena.
        padding: What is padded where the image is halved, see :func:`halved`.
        units_per_cell: Units of a search cell.
    """

    def __init__(self, config: SupernetConfig) -> None:
        self.config = config
        builder = Builder()
        self.positions = tuple(walk(config, builder))
        if builder.end >= 2**31:
            raise ValueError(f"supernet config: arena of {builder.end} floats exceeds 2^31")
        self.params = tuple(builder.params)
        self.offsets: IntArray = np.array(builder.rows, dtype=np.int32)
        self.shapes: tuple[UnitShape, ...] = tuple(builder.shapes)
        self.arena_size = builder.end
        self.padding = padding_of(config)
        self.units_per_cell = units_per_cell(config)

    @property
    def num_cells(self) -> int:
        """Search cells of the network."""
        return self.config.num_cells

    @property
    def owner_of_edge(self) -> tuple[int, ...]:
        """Owner of each edge's candidate operations, ``[num_edges]``; of spaces of edges."""
        spec = self.config.spec
        assert isinstance(spec, CellSpec)
        if self.config.weights_on == "edge":
            return tuple(range(spec.num_edges))
        return tuple(target - 1 for _, target in spec.edges)

    def pixels(self, height: int, width: int, halvings: int) -> int:
        """Return the pixels of an image after halvings."""
        return halved(height, halvings, self.padding) * halved(width, halvings, self.padding)

    @cached_property
    def widest(self) -> tuple[int, ...]:
        """Most channels of a value at each halving of the image."""
        most: dict[int, int] = {}
        for p in self.positions:
            halvings = p.halvings + (p.kind == "reduction")
            if p.kind != "stem" and p.kind != "relu_stem":
                most[p.halvings] = max(most.get(p.halvings, 0), p.in_channels)
            if not p.kind.endswith("head"):
                most[halvings] = max(most.get(halvings, 0), p.out_channels)
        return tuple(most[k] for k in sorted(most))

    @cached_property
    def by_name(self) -> dict[str, ParamSpec]:
        """The tensors by name."""
        return {p.name: p for p in self.params}
