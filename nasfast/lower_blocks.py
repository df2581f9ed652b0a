# SPDX-License-Identifier: MIT
"""Lowering of cells whose operations sit on nodes: NAS-Bench-1Shot1.

A block reads the sum of what flows in (the projected input of the cell first, then earlier blocks
in their order), so the sum's order is part of the definition and nothing is left to canonicalise.
Many cells are lowered at a time, node after node: what is equal is found on arrays, and only what
is distinct is added to the pool.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nasfast.distinct import distinct_rows
from nasfast.lower import Expressions, Merge, Mode, Opcode
from nasfast.spaces.block_spec import BlockSpec
from nasfast.spaces.spec import IntArray, OpKind
from nasfast.spaces.topologies import IndexArray


class BlockLowering:
    """Lowers architectures of choice blocks into a shared pool of expressions.

    What an architecture does not select is left out whatever the batch-norm mode, and so are loose
    ends: the published code multiplies their results by zero. Equal sums and poolings of equal
    values are one value from the level of merging on that says so (:class:`nasfast.lower.Merge`);
    below it two architectures are one network exactly when they agree but for loose ends.

    Args:
        spec: The search space.
        mode: Batch-norm mode and affine flag of the cells.
        merge: Level of merging.
    """

    def __init__(self, spec: BlockSpec, mode: Mode, merge: Merge) -> None:
        self.spec, self.mode, self.merge = spec, mode, Merge(merge)
        self.pool = Expressions()

    def cell(self, op_indices: Sequence[int]) -> int:
        """Lower one cell.

        Args:
            op_indices: The decisions of an architecture.

        Returns:
            The id of its root expression.
        """
        return int(self.cells(np.array([op_indices], dtype=np.int32))[0])

    def cells(self, rows: IntArray) -> IntArray:
        """Lower many cells.

        Args:
            rows: Decisions of each, ``[cells, num_decisions]``.

        Returns:
            The id of each root expression, int32 ``[cells]``.
        """
        spec, blocks = self.spec, self.spec.num_blocks
        topology = spec.topology_ranks(rows)
        used = spec.topologies.used[topology]
        values = np.zeros((len(rows), blocks + 1), dtype=np.int32)  # of the input and each block
        for block in range(blocks):
            live = np.flatnonzero(used[:, block])
            if len(live):
                terms = self._terms(block, values[live], topology[live])
                values[live, block + 1] = self._block(block, rows[live, block], terms)
        return self._output(self._terms(blocks, values, topology), self._sources(blocks)[topology])

    def _sources(self, node: int) -> IntArray:
        """Parents of the node after so many blocks, ``[topologies, count]``."""
        into = self.spec.topologies.edges[:, :, node + 1]
        return np.nonzero(into)[1].reshape(len(into), -1).astype(np.int32)

    def _terms(self, node: int, values: IntArray, topology: IndexArray) -> IntArray:
        """Values that flow into a node, ``[cells, count]``; the input's through its projection."""
        sources = self._sources(node)[topology]
        terms = np.take_along_axis(values, sources, axis=1)
        if (sources == 0).any():
            unit = self.spec.num_blocks * self.spec.num_ops + node
            terms[sources == 0] = self.pool.add(Opcode.CONV_RELU, unit, (self.pool.input,))
        return terms

    def _block(self, block: int, ops: IntArray, terms: IntArray) -> IntArray:
        """Values of a block in many cells."""
        sums = self._sums(block, terms)
        found, of = distinct_rows(np.stack([ops, sums], axis=1))
        tag = block if self.merge <= Merge.DEAD else -1
        ids = []
        for k, value in found.tolist():
            op = self.spec.ops[k]
            if op.kind == OpKind.MAX_POOL:
                ids.append(self.pool.add(Opcode.MAX_POOL, op.kernel, (value,), tag))
            else:
                unit = block * self.spec.num_ops + k
                ids.append(self.pool.add(Opcode.CONV_RELU, unit, (value,)))
        return np.array(ids, dtype=np.int32)[of]

    def _output(self, terms: IntArray, sources: IntArray) -> IntArray:
        """Roots of many cells: the projected input, if it is a parent, and the blocks beside."""
        projects = sources[:, 0] == 0
        roots = np.zeros(len(terms), dtype=np.int32)
        slots = np.where(sources > 0, 1 << np.maximum(sources - 1, 0), 0).sum(axis=1)
        for skipped in (0, 1):
            own = np.flatnonzero(projects == bool(skipped))
            if len(own) == 0:
                continue
            if terms.shape[1] == skipped:  # the projected input alone
                roots[own] = terms[own, 0]
                continue
            found, of = distinct_rows(np.column_stack([slots[own], terms[own, skipped:]]))
            concats = [
                self.pool.add(Opcode.CONCAT, row[0], tuple(row[1:])) for row in found.tolist()
            ]
            beside = np.array(concats, dtype=np.int32)[of]
            sums = np.column_stack([terms[own, :skipped], beside])
            roots[own] = self._sums(self.spec.num_blocks, sums)
        return roots

    def _sums(self, node: int, terms: IntArray) -> IntArray:
        """Sums of the rows of ``[cells, count]``."""
        if terms.shape[1] == 1:
            return terms[:, 0]
        found, of = distinct_rows(terms)
        tag = node if self.merge <= Merge.IDENTITY else -1
        sums = [self.pool.add(Opcode.SUM, operands=tuple(row), tag=tag) for row in found.tolist()]
        return np.array(sums, dtype=np.int32)[of]
