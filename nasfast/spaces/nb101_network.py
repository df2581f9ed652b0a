# SPDX-License-Identifier: MIT
"""One stand-alone network of NAS-Bench-101 as a space of its own, so that it can be built and run.

Source: Ying et al., NAS-Bench-101, ICML 2019, section 2 and the benchmark's code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nasfast.spaces.nb101 import MAX_VERTICES, OP_SPECS, OPS, Nb101Cell, cell_of
from nasfast.spaces.space import SHOWN, Architecture, BoolArray, OpSpec, Space

PREFIX = "nb101:"


@dataclass(frozen=True)
class Nb101Network(Space):
    """The space whose only architecture is a cell of NAS-Bench-101.

    Its name says the cell: ``nb101:``, the number of vertices, the bits of the matrix in
    hexadecimal (:attr:`Nb101Cell.adjacency_bits`) and the operation indices of the inner vertices,
    joined by ``-``. ``nasfast.spaces.get`` makes the space of any such name.

    Attributes:
        name: The name of the cell's pruned form.
        title: For people.
        cell: The cell, pruned.
    """

    name: str
    title: str
    cell: Nb101Cell
    stage_widths = (1, 2, 4)
    # As published; in TensorFlow's words 0.997.
    momentum = 0.003

    @classmethod
    def of(cls, cell: Nb101Cell) -> Nb101Network:
        """Return the space of a cell."""
        cell = cell.pruned()
        ops = "".join(str(OPS.index(op)) for op in cell.ops[1:-1])
        name = f"{PREFIX}{cell.num_vertices}-{cell.adjacency_bits:x}-{ops}"
        return cls(name, f"NAS-Bench-101 cell {cell.hash[:8]}", cell)

    @classmethod
    def from_name(cls, name: str) -> Nb101Network:
        """Return the space of a name.

        Raises:
            ValueError: If it names no pruned cell.
        """
        parts = name.removeprefix(PREFIX).split("-")
        try:
            if not name.startswith(PREFIX) or len(parts) != 3:
                raise ValueError(f"wanted {PREFIX}VERTICES-MATRIX-OPERATIONS")
            vertices = int(parts[0])
            if not 2 <= vertices <= MAX_VERTICES or len(parts[2]) != vertices - 2:
                raise ValueError(f"wanted one operation for each inner vertex of 2..{MAX_VERTICES}")
            ops = np.array([int(k) for k in parts[2]], dtype=np.uint8)
            space = cls.of(cell_of(vertices, int(parts[1], 16), ops))
        except ValueError as error:
            raise ValueError(
                f"space: {name[:SHOWN]!r} is no cell of NAS-Bench-101: {error}"
            ) from None
        if space.name != name:
            raise ValueError(f"space: wanted the pruned cell {space.name!r}, got {name[:SHOWN]!r}")
        return space

    @property
    def options(self) -> tuple[int, ...]:
        """One decision with one value, ``[1]``."""
        return (1,)

    @property
    def num_archs(self) -> int:
        """One."""
        return 1

    @property
    def ops(self) -> tuple[OpSpec, ...]:
        """The operations there are, in the published order."""
        return OP_SPECS

    @property
    def fewest_channels(self) -> int:
        """Channels of the first stage that its cells need: one for each part of their output."""
        return max(1, sum(row[-1] for row in self.cell.matrix[1:]))

    @property
    def inner_ops(self) -> tuple[OpSpec, ...]:
        """Operations of the inner vertices."""
        return tuple(OP_SPECS[OPS.index(op)] for op in self.cell.ops[1:-1])

    def to_string(self, arch: Architecture) -> str:
        """Write the cell as its space's name."""
        return self.name

    def from_string(self, string: str) -> Architecture:
        """Read the name of the space.

        Raises:
            ValueError: If it is another one.
        """
        if string.strip() != self.name:
            raise ValueError(f"architecture: wanted {self.name!r}, got {string[:SHOWN]!r}")
        return self.arch([0])

    def to_index(self, arch: Architecture) -> int:
        """Return 0.

        Raises:
            ValueError: If the architecture belongs to another space.
        """
        self._check_own(arch, "arch")
        return 0

    def from_index(self, index: int) -> Architecture:
        """Return the architecture.

        Raises:
            ValueError: If the index is not 0.
        """
        return self.arch([self._check_index(index)])

    def enumerate(self, mask: BoolArray | None = None) -> list[Architecture]:
        """List the architecture; there is nothing to mask."""
        self._choices(mask)
        return [self.arch([0])]

    def op_counts(self, arch: Architecture) -> dict[str, int]:
        """Count the vertices of each operation."""
        return {op: self.cell.ops.count(op) for op in OPS}

    def longest(self, arch: Architecture, weight: Callable[[OpSpec | None], int]) -> int:
        """Return the weight of the heaviest path from input to output."""
        matrix, ops = self.cell.matrix, self.inner_ops
        best = [0] + [-1] * (self.cell.num_vertices - 1)
        for v in range(1, self.cell.num_vertices):
            own = weight(ops[v - 1] if v <= len(ops) else None)
            best[v] = own + max(best[u] for u in range(v) if matrix[u][v])
        return best[-1]

    def _choices(self, mask: BoolArray | None) -> list[list[int]]:
        if mask is not None:
            raise ValueError("mask: a stand-alone network has nothing to leave out")
        return [[0]]
