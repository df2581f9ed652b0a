# SPDX-License-Identifier: MIT
"""Lowering: from an architecture to the canonical form of its cell.

A cell is a small expression over primitive operations. Equal expressions are stored once
(hash-consing), so two architectures compute the same function of the cell's input and the shared
weights exactly when lowering gives them the same root. The canonical form is each architecture's
own: it depends on the architecture, the :class:`Mode` and the :class:`Merge` level, never on what
else is lowered with it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from nasfast.spaces.spec import CellSpec, IntArray, OpKind

BatchNormMode = Literal["batch", "running", "recalibrate"]


class Opcode(enum.IntEnum):
    """Primitive operations of a cell."""

    INPUT = 0  # the cell's input
    ZERO = 1  # zeros like the operand (the cell's input when it has none)
    COPY = 2  # its operand, unchanged
    SUM = 3  # sum of its operands, left to right
    CONV = 4  # ReLU, convolution, batch norm; param = unit within the cell
    AVG_POOL = 5  # stride 1, padded positions not counted; param = kernel
    MAX_POOL = 6  # stride 1; param = kernel
    MIX = 7  # weighted sum, left to right; operand k has the cell's mixing weight param + k
    CONV_RELU = 8  # convolution, batch norm, ReLU; param = unit within the cell
    # Operands side by side, param = bits of the slots that they take, the others zero; a free slot
    # is as wide as the first operand, and what is behind the last one is zero too.
    CONCAT = 9
    CUT = 10  # the first channels of its operand, as many as unit param within the cell has


class Merge(enum.IntEnum):
    """How much equal work is recognised; every level includes those before it.

    From ``DEAD`` to ``VALUE`` all give the same bits on the reference backend (the engine adds the
    terms of nested sums in one go). ``NONE`` differs from them where a convolution of a constant is
    normalised: rounding is left of it there, and later convolutions amplify it. The levels after
    ``VALUE`` are equal in exact arithmetic (about 1e-7 apart in float32): there the canonical form,
    not the call, fixes the order of every sum.
    """

    NONE = 0  # every edge is computed as written, dead or not
    DEAD = 1  # edges that carry zero, or that the output does not depend on, are left out
    IDENTITY = 2  # a skip connection is its source; a sum of one term is that term
    VALUE = 3  # equal sums are one value wherever in the cell they stand
    FLATTEN = 4  # a sum within a sum is spliced in
    SORT = 5  # terms of a sum are in canonical order
    LINEAR = 6  # average pooling distributes over sums; each sum pools once


@dataclass(frozen=True, slots=True)
class Mode:
    """What lowering must know of a run, beside the architecture.

    Attributes:
        cells: Batch-norm mode of the cells.
        affine: Whether their batch norm has a trainable shift.
    """

    cells: BatchNormMode = "batch"
    affine: bool = False

    def __post_init__(self) -> None:
        """Check the mode.

        Raises:
            ValueError: If ``cells`` is not one of the three modes.
        """
        if self.cells not in get_args(BatchNormMode):
            raise ValueError(
                f"batch-norm mode: wanted one of {', '.join(get_args(BatchNormMode))}, "
                f"got {self.cells!r}"
            )

    @property
    def keeps_constants(self) -> bool:
        """Whether a convolution of zero may be something other than zero.

        Statistics of the images at hand turn a constant channel into zero, so without a shift
        nothing is left of it. A shift, or running statistics, leave a constant. The answer comes
        from the mode and never from current values: a shift of zero is not zero after one step.
        """
        return self.affine or self.cells == "running"


# A sum in the making: the ids of its terms. Empty is zero, one term is that term.
_Terms = tuple[int, ...]


class Expressions:
    """A growing pool of distinct cell expressions.

    Attributes:
        opcode: Operation of each expression.
        param: Unit within the cell (convolutions, CUT), kernel (pools), first mixing weight (MIX),
            slots (CONCAT), -1 otherwise.
        operands: Operands of each expression; always earlier ones.
    """

    def __init__(self) -> None:
        self.opcode: list[int] = []
        self.param: list[int] = []
        self.operands: list[tuple[int, ...]] = []
        self._ids: dict[tuple[int, int, int, tuple[int, ...]], int] = {}
        self._order: dict[int, tuple[object, ...]] = {}  # sort keys made so far
        self._tag: list[int] = []
        self.input = self.add(Opcode.INPUT)

    def add(
        self, opcode: Opcode, param: int = -1, operands: tuple[int, ...] = (), tag: int = -1
    ) -> int:
        """Return the id of an expression, adding it when it is new.

        Args:
            opcode: Operation.
            param: Its parameter.
            operands: Ids of its operands.
            tag: Where it stands; expressions with different tags are never merged.
        """
        key = (int(opcode), param, tag, operands)
        known = self._ids.get(key)
        if known is not None:
            return known
        self._ids[key] = len(self.opcode)
        self.opcode.append(int(opcode))
        self.param.append(param)
        self.operands.append(operands)
        self._tag.append(tag)
        return len(self.opcode) - 1

    def sort(self, terms: Sequence[int]) -> _Terms:
        """Order terms by what they are, not by when they were added."""
        return tuple(sorted(terms, key=self._key))

    def _key(self, expression: int) -> tuple[object, ...]:
        """Return a structural sort key, independent of ids."""
        key = self._order.get(expression)
        if key is None:
            own = (self.opcode[expression], self.param[expression], self._tag[expression])
            key = (*own, tuple(self._key(operand) for operand in self.operands[expression]))
            self._order[expression] = key
        return key


class Lowering:
    """Lowers architectures of one space under one mode into a shared pool of expressions.

    Args:
        spec: The search space, of operations on edges.
        mode: Batch-norm mode and affine flag of the cells.
        merge: How much equal work is recognised.
        owner_of_edge: Owner of each edge's weights, ``[num_edges]``; edges with one owner share
            the weights of an operation.
    """

    def __init__(
        self, spec: CellSpec, mode: Mode, merge: Merge, owner_of_edge: Sequence[int]
    ) -> None:
        self.spec, self.mode, self.merge = spec, mode, Merge(merge)
        self.pool = Expressions()
        self._owner = tuple(owner_of_edge)
        self._incoming = [
            [(edge, i) for edge, (i, j) in enumerate(spec.edges) if j == node]
            for node in range(spec.num_nodes)
        ]

    def cell(self, op_indices: Sequence[int]) -> int:
        """Lower one cell.

        Args:
            op_indices: Operation of each edge, ``[num_edges]``.

        Returns:
            The id of its root expression.
        """
        return self._walk(lambda edge, source: self._edge(edge, op_indices[edge], source))

    def cells(self, rows: IntArray) -> IntArray:
        """Lower many cells.

        Args:
            rows: Operations of each, ``[cells, num_edges]``.

        Returns:
            The id of each root expression, int32 ``[cells]``.
        """
        return np.array([self.cell(row) for row in rows.tolist()], dtype=np.int32)

    def joint_cell(self, mask: Sequence[Sequence[bool]]) -> int:
        """Lower the cell in which every edge mixes its candidate operations.

        The mixing weight of an edge's operation is number ``edge * num_ops + operation``. What
        carries zero contributes nothing, as in :meth:`cell`: an edge without candidates, or of
        candidates that do, is left out.

        Args:
            mask: Which operations each edge may carry, ``[num_edges, num_ops]``.

        Returns:
            The id of its root expression.
        """
        return self._walk(lambda edge, source: self._mix(edge, mask[edge], source))

    def _walk(self, terms_of: Callable[[int, _Terms], _Terms]) -> int:
        """Lower node after node; ``terms_of`` an edge and its source's value flows on."""
        values: list[_Terms] = [(self.pool.input,)]
        for node in range(1, self.spec.num_nodes):
            terms: list[int] = []
            for edge, source in self._incoming[node]:
                terms += terms_of(edge, values[source])
            values.append(self._node(node, terms))
        return self._emit(values[-1])

    def _mix(self, edge: int, allowed: Sequence[bool], source: _Terms) -> _Terms:
        """Mix candidates: from the first to the last that carries something, zero in between."""
        candidates = [self._edge(edge, k, source) if ok else () for k, ok in enumerate(allowed)]
        live = [k for k, terms in enumerate(candidates) if terms]
        if not live:
            return ()
        operands = tuple(self._emit(terms) for terms in candidates[live[0] : live[-1] + 1])
        first = edge * self.spec.num_ops + live[0]
        return (self.pool.add(Opcode.MIX, first, operands),)

    def _edge(self, edge: int, op_index: int, source: _Terms) -> _Terms:
        """Return the terms that an edge contributes to its target."""
        op = self.spec.ops[op_index]
        pool, merge = self.pool, self.merge
        tag = edge if merge <= Merge.DEAD else -1
        if merge == Merge.NONE and op.kind == OpKind.ZERO:
            return (pool.add(Opcode.ZERO, operands=(self._emit(source),), tag=tag),)
        if op.kind == OpKind.ZERO:
            return ()
        if op.kind == OpKind.CONV:
            if not source and merge > Merge.NONE and not self.mode.keeps_constants:
                return ()
            unit = self._owner[edge] * self.spec.num_ops + op_index
            return (pool.add(Opcode.CONV, unit, (self._emit(source),), tag),)
        if not source:  # identity and pooling of zero
            return ()
        if op.kind == OpKind.IDENTITY:
            if merge >= Merge.IDENTITY:
                return source
            return (pool.add(Opcode.COPY, operands=(self._emit(source),), tag=tag),)
        if op.kind == OpKind.AVG_POOL and merge >= Merge.LINEAR:
            return tuple(pool.add(Opcode.AVG_POOL, op.kernel, (term,)) for term in source)
        opcode = Opcode.AVG_POOL if op.kind == OpKind.AVG_POOL else Opcode.MAX_POOL
        return (pool.add(opcode, op.kernel, (self._emit(source),), tag),)

    def _node(self, node: int, terms: list[int]) -> _Terms:
        """Turn what flows into a node into its value."""
        if self.merge >= Merge.SORT:
            return self.pool.sort(terms)
        if self.merge == Merge.FLATTEN or len(terms) <= 1:
            return tuple(terms)
        tag = node if self.merge <= Merge.IDENTITY else -1
        return (self.pool.add(Opcode.SUM, operands=tuple(terms), tag=tag),)

    def _emit(self, terms: _Terms) -> int:
        """Make one expression of a value."""
        if not terms:
            return self.pool.add(Opcode.ZERO)
        if self.merge >= Merge.LINEAR:
            terms = self._factor(terms)
        if len(terms) == 1:
            return terms[0]
        return self.pool.add(Opcode.SUM, operands=terms)

    def _factor(self, terms: _Terms) -> _Terms:
        """Undo distribution: gather pooled terms of one kernel into a single pool of their sum.

        Distributed terms decide which values are equal; factored ones are what is computed.
        The one determines the other, so this keeps equal what is equal.
        """
        plain = [t for t in terms if self.pool.opcode[t] != Opcode.AVG_POOL]
        pooled = [t for t in terms if self.pool.opcode[t] == Opcode.AVG_POOL]
        for kernel in sorted({self.pool.param[t] for t in pooled}):
            inner = [self.pool.operands[t][0] for t in pooled if self.pool.param[t] == kernel]
            source = self._emit(self.pool.sort(inner))
            plain.append(self.pool.add(Opcode.AVG_POOL, kernel, (source,)))
        return self.pool.sort(plain)
