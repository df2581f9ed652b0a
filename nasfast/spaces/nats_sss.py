# SPDX-License-Identifier: MIT
"""The size space of NATS-Bench: one cell, five channel numbers, 32,768 networks.

Source: Dong, Liu, Musial and Gabrys, NATS-Bench, TPAMI 2021, section 3.2.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from nasfast.spaces.nb201 import NB201
from nasfast.spaces.space import (
    SHOWN,
    Architecture,
    BoolArray,
    OpKind,
    OpSpec,
    Space,
    masked_choices,
)
from nasfast.spaces.spec import CellSpec


@dataclass(frozen=True)
class SizeSpec(Space):
    """A search space of channel numbers: the cell is fixed, each layer's width is a decision.

    The stem has the width of the first layer. A layer is the cell, or a residual block that halves
    the image. Where a cell's input and output widths differ, the edges from its input change the
    width; an edge that has no convolution of its own gets a 1x1 one with batch norm.

    Encodings: decisions (``arch.op_indices``, indices into ``widths``); the string of channel
    numbers joined by ``:``; the index, which is the lexicographic rank of the decisions.

    Attributes:
        name: Short name, as in ``nasfast.spaces.get(name)``.
        title: The name that papers use.
        widths: The channel numbers that a layer may have, ascending.
        reductions: Whether each layer is a reduction.
        cell: The cell of the other layers.
    """

    widths: tuple[int, ...]
    reductions: tuple[bool, ...]
    cell: Architecture = field(repr=False)

    def __post_init__(self) -> None:
        """Check widths, layers and cell.

        Raises:
            ValueError: If widths are missing, not positive or not ascending, there is no layer, or
                the cell's operations are not on edges.
        """
        if not self.widths or self.widths[0] < 1 or list(self.widths) != sorted(set(self.widths)):
            raise ValueError(f"SizeSpec: wanted ascending positive widths, got {self.widths}")
        if not self.reductions:
            raise ValueError("SizeSpec: wanted at least one layer")
        if not isinstance(self.cell.spec, CellSpec):
            raise ValueError(
                f"SizeSpec: wanted a cell with operations on edges, got one of "
                f"{self.cell.spec.name}"
            )

    @property
    def num_layers(self) -> int:
        """Layers, each with a width to choose."""
        return len(self.reductions)

    @property
    def options(self) -> tuple[int, ...]:
        """Every layer chooses among all widths, ``[num_layers]``."""
        return (len(self.widths),) * self.num_layers

    @property
    def num_archs(self) -> int:
        """Networks of the whole space."""
        return int(len(self.widths) ** self.num_layers)

    _decisions = "layers"

    def _wanted(self, decision: int) -> str:
        return "an index of a channel number"

    def channels(self, arch: Architecture) -> tuple[int, ...]:
        """Return the channel number of each layer, ``[num_layers]``."""
        return tuple(self.widths[k] for k in arch.op_indices)

    def op_counts(self, arch: Architecture) -> dict[str, int]:
        """Count how many edges of the cell carry each operation: the same for every network."""
        return self.cell.op_counts

    def longest(self, arch: Architecture, weight: Callable[[OpSpec | None], int]) -> int:
        """Return the weight of the heaviest path through the cell: the same for every network."""
        return self.cell.spec.longest(self.cell, weight)

    def num_params(self, arch: Architecture, classes: int = 10, image_channels: int = 3) -> int:
        """Count the trainable parameters of a network, as the benchmark does.

        Raises:
            ValueError: If the architecture belongs to another space.
        """
        self._check_own(arch, "arch")
        widths = self.channels(arch)
        params = _conv(3, image_channels, widths[0])  # the stem
        for reduction, sources, width in zip(
            self.reductions, (widths[0], *widths[:-1]), widths, strict=True
        ):
            if reduction:
                shortcut = sources * width  # after an average pooling, without batch norm
                params += _conv(3, sources, width) + _conv(3, width, width) + shortcut
            else:
                params += self._cell_params(sources, width)
        return params + 2 * widths[-1] + (widths[-1] + 1) * classes  # batch norm and classifier

    def _cell_params(self, sources: int, width: int) -> int:
        spec = self.cell.spec
        assert isinstance(spec, CellSpec)
        params = 0
        for (source, _), k in zip(spec.edges, self.cell.op_indices, strict=True):
            op, into = spec.ops[k], sources if source == 0 else width
            if op.kind == OpKind.CONV:
                params += _conv(op.kernel, into, width)
            elif op.kind != OpKind.ZERO and into != width:
                params += _conv(1, into, width)
        return params

    # Encodings.

    def to_string(self, arch: Architecture) -> str:
        """Write a network as its channel numbers, ``8:16:32:64:64``."""
        return ":".join(map(str, self.channels(arch)))

    def from_string(self, string: str) -> Architecture:
        """Read the benchmark's notation.

        Raises:
            ValueError: If the number of layers is wrong or a channel number is not one of the
                space; the message names the layer, what was wanted there and what came.
        """
        parts, shown = string.strip().split(":"), string[:SHOWN]
        if len(parts) != self.num_layers:
            raise ValueError(
                f"architecture {shown!r}: wanted {self.num_layers} channel numbers joined by ':', "
                f"got {len(parts)}"
            )
        names = [str(width) for width in self.widths]
        for layer, part in enumerate(parts):
            if part not in names:
                raise ValueError(
                    f"architecture {shown!r}, layer {layer}: wanted one of {', '.join(names)}, "
                    f"got {part[:SHOWN]!r}"
                )
        return Architecture(tuple(names.index(part) for part in parts), self)

    def to_index(self, arch: Architecture) -> int:
        """Return the position of a network in the benchmark's official list.

        Raises:
            ValueError: If the architecture belongs to another space.
        """
        self._check_own(arch, "arch")
        return self._rank(arch)

    def from_index(self, index: int) -> Architecture:
        """Return the network at a position of the benchmark's official list.

        Raises:
            ValueError: If the index is out of range.
        """
        return self._from_rank(self._check_index(index), self._choices(None))

    def _choices(self, mask: BoolArray | None) -> list[list[int]]:
        return masked_choices(
            mask, (self.num_layers, len(self.widths)), "layer", of="channel number"
        )

    def enumerate(self, mask: BoolArray | None = None) -> list[Architecture]:
        """List every network, or those of a masked subset, in official index order.

        Args:
            mask: Channel numbers that each layer may have, bool ``[num_layers, widths]``.
        """
        return [Architecture(k, self) for k in itertools.product(*self._choices(mask))]


def _conv(kernel: int, sources: int, targets: int) -> int:
    """Parameters of a convolution without bias and its batch norm."""
    return kernel * kernel * sources * targets + 2 * targets


NATS_SSS = SizeSpec(
    name="nats-sss",
    title="NATS-Bench size space",
    widths=tuple(range(8, 65, 8)),
    reductions=(False, True, False, True, False),
    cell=NB201.from_string(
        "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|"
        "nor_conv_3x3~2|"
    ),
)
