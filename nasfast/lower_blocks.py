# SPDX-License-Identifier: MIT
"""Lowering of cells whose operations sit on nodes: NAS-Bench-1Shot1.

A block reads the sum of what flows in (the projected input of the cell first, then earlier blocks
in their order), so the sum's order is part of the definition and nothing is left to canonicalise:
two architectures are one subnet exactly when they agree but for loose ends.
"""

from __future__ import annotations

from collections.abc import Sequence

from nasfast.lower import Expressions, Merge, Mode, Opcode
from nasfast.spaces.block_spec import BlockSpec
from nasfast.spaces.spec import OpKind


class BlockLowering:
    """Lowers architectures of choice blocks into a shared pool of expressions.

    What an architecture does not select is left out whatever the batch-norm mode, and so are loose
    ends: the published code multiplies their results by zero. Every level of merging therefore does
    the same.

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
        arch = self.spec.arch(op_indices)
        ops, parents = self.spec.block_ops(arch), self.spec.parents(arch)
        used = self.spec.used_blocks(arch)
        values = [self.pool.input]
        for block, (op, sources) in enumerate(zip(ops, parents[:-1], strict=True)):
            if used[block]:
                values.append(self._block(block, op, [values[node] for node in sources], sources))
            else:
                values.append(-1)
        outputs = parents[-1]
        slots = sum(1 << (node - 1) for node in outputs if node > 0)
        terms = [self._project(self.spec.num_blocks)] if 0 in outputs else []
        if slots:
            inner = tuple(values[node] for node in outputs if node > 0)
            terms.append(self.pool.add(Opcode.CONCAT, slots, inner))
        return self._sum(terms)

    def _block(self, block: int, op: int, values: list[int], sources: Sequence[int]) -> int:
        terms = [
            self._project(block) if source == 0 else value
            for source, value in zip(sources, values, strict=True)
        ]
        value, spec = self._sum(terms), self.spec.ops[op]
        if spec.kind == OpKind.MAX_POOL:
            return self.pool.add(Opcode.MAX_POOL, spec.kernel, (value,))
        return self.pool.add(Opcode.CONV_RELU, block * self.spec.num_ops + op, (value,))

    def _project(self, which: int) -> int:
        unit = self.spec.num_blocks * self.spec.num_ops + which
        return self.pool.add(Opcode.CONV_RELU, unit, (self.pool.input,))

    def _sum(self, terms: Sequence[int]) -> int:
        if len(terms) == 1:
            return terms[0]
        return self.pool.add(Opcode.SUM, operands=tuple(terms))
