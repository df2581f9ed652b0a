# SPDX-License-Identifier: MIT
"""Lowering of a stand-alone network of NAS-Bench-101."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nasfast.lower import Expressions, Merge, Mode, Opcode
from nasfast.spaces.nb101_network import Nb101Network
from nasfast.spaces.space import IntArray, OpKind


class Nb101Lowering:
    """Lowers the one cell of a network into a pool of expressions.

    A vertex reads the sum of its predecessors, cut to its own channels, and then the projected
    input; the output is the concatenation of what leads to it, and then the projected input.
    Nothing is there to merge.

    Args:
        spec: The network.
        mode: Batch-norm mode and affine flag of the cells.
        merge: Level of merging.
        channels: Channels of the vertices of each cell, ``[cells][num_vertices]``.
    """

    def __init__(
        self, spec: Nb101Network, mode: Mode, merge: Merge, channels: Sequence[Sequence[int]]
    ) -> None:
        self.spec, self.mode, self.merge = spec, mode, Merge(merge)
        self.pool = Expressions()
        self._channels = channels

    def cell(self, op_indices: Sequence[int]) -> int:
        """Lower the cell; its architecture has nothing to decide.

        Returns:
            The id of its root expression.
        """
        matrix, ops = self.spec.cell.matrix, self.spec.inner_ops
        inner, last = range(1, len(ops) + 1), len(ops) + 1
        values = [self.pool.input]
        for v in inner:
            terms = [self._cut(values[u], u, v) for u in range(1, v) if matrix[u][v]]
            value = self._sum([*terms, *self._project(v)])
            op = ops[v - 1]
            if op.kind == OpKind.MAX_POOL:
                values.append(self.pool.add(Opcode.MAX_POOL, op.kernel, (value,)))
            else:
                values.append(self.pool.add(Opcode.CONV_RELU, v - 1, (value,)))
        parts = tuple(values[v] for v in inner if matrix[v][last])
        whole = [self.pool.add(Opcode.CONCAT, (1 << len(parts)) - 1, parts)] if parts else []
        return self._sum([*whole, *self._project(last)])

    def cells(self, rows: IntArray) -> IntArray:
        """Lower many cells, which are all the same, ``[cells, 1]``.

        Returns:
            The id of each root expression, int32 ``[cells]``.
        """
        return np.array([self.cell(row) for row in rows.tolist()], dtype=np.int32)

    def _project(self, target: int) -> list[int]:
        if not self.spec.cell.matrix[0][target]:
            return []
        unit = len(self.spec.inner_ops) + target - 1
        return [self.pool.add(Opcode.CONV_RELU, unit, (self.pool.input,))]

    def _cut(self, value: int, source: int, target: int) -> int:
        if all(channels[source] == channels[target] for channels in self._channels):
            return value
        return self.pool.add(Opcode.CUT, target - 1, (value,))

    def _sum(self, terms: Sequence[int]) -> int:
        if len(terms) == 1:
            return terms[0]
        return self.pool.add(Opcode.SUM, operands=tuple(terms))
