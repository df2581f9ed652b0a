# SPDX-License-Identifier: MIT
"""A search space of choice blocks: operations on the nodes of a cell, and a choice of parents.

Encodings of an :class:`Architecture`, and the functions between them:

* *decisions* (the raw encoding): the operation of block 1, 2, ..., then for each node that has a
  choice, the output last, which parents: an index into ``itertools.combinations`` of the earlier
  nodes, which are in lexicographic order. ``from_encoding`` / ``encodings``;
* *pruned subnet*: what is left when blocks from which no path leads to the output (*loose ends*)
  are taken away; ``pruned``. Different encodings can mean the same subnet;
* *index*: the position in the list of distinct pruned subnets, ``to_index`` / ``from_index``. Each
  is represented by its lexicographically smallest encoding (loose ends carry zeros), and the list
  is in that order;
* *string*: ``|op~parents|`` for each block, joined by ``+``, and ``|~parents|`` for the output, as
  in ``|conv3x3-bn-relu~0|+|maxpool3x3~0,1|+|~1,2|``; ``to_string`` / ``from_string``;
* *NAS-Bench-101 cell*: ``to_nb101``, of the pruned subnet.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nasfast.spaces.block_text import decisions_of
from nasfast.spaces.space import (
    Architecture,
    BoolArray,
    IntArray,
    OpSpec,
    Space,
    allowed_ops,
    check_ops,
    masked_choices,
)
from nasfast.spaces.topologies import (
    IndexArray,
    Parents,
    SubnetList,
    Topologies,
    all_topologies,
    list_subnets,
    reaching,
    strides,
)

if TYPE_CHECKING:
    from nasfast.spaces.nb101 import Nb101Cell

# (operation, parents) of each block, None for a loose end; then the parents of the output.
Pruned = tuple[tuple[tuple[int, Parents] | None, ...], Parents]


@dataclass(frozen=True)
class BlockSpec(Space):
    """A cell-based search space with one candidate operation on each inner node.

    Node 0 is the cell's input, nodes ``1..num_blocks`` are choice blocks, the last node is the
    output. A block adds up its parents and applies its operation; the output concatenates its
    parents. The network around the cells is the one of NAS-Bench-1Shot1.

    Attributes:
        name: Short name, as in ``nasfast.spaces.get(name)``.
        title: The name that papers use.
        num_parents: How many parents each node after the input has, the output last.
        ops: Candidate operations, the same for every block; their order is the benchmark's.
        stage_widths: Channels of each stage as multiples of the first stage's.
        momentum: Momentum of the batch norms of stem, blocks and projections, in PyTorch's sense
            (weight of the newest batch), as published.
        last_momentum: Momentum of the batch norm before the head, likewise.
    """

    num_parents: tuple[int, ...]
    ops: tuple[OpSpec, ...]
    stage_widths: tuple[int, ...] = (1, 2, 4)
    momentum: float = 0.997
    last_momentum: float = 0.1

    def __post_init__(self) -> None:
        """Check numbers of parents and operations.

        Raises:
            ValueError: If there is no block, a node wants no parent or more than there are nodes
                before it, or operations are missing, share a name, or have an even kernel.
        """
        if len(self.num_parents) < 2 or not self.ops or min(self.stage_widths, default=0) < 1:
            raise ValueError("BlockSpec: wanted at least a block, an operation and positive widths")
        for node, count in enumerate(self.num_parents, start=1):
            if not 1 <= count <= node:
                raise ValueError(f"BlockSpec: node {node} wants 1..{node} parents, got {count}")
        check_ops("BlockSpec", self.ops, "|~+,")
        for name in ("momentum", "last_momentum"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(
                    f"BlockSpec: {name}: wanted a weight in (0, 1], got {getattr(self, name)}"
                )

    @property
    def num_blocks(self) -> int:
        """Choice blocks of a cell: nodes ``1..num_blocks``; the output is the node after them."""
        return len(self.num_parents) - 1

    @property
    def num_ops(self) -> int:
        """Candidate operations of a block."""
        return len(self.ops)

    @cached_property
    def parent_choices(self) -> tuple[tuple[Parents, ...], ...]:
        """Every set of parents that each node after the input may have, in the order of options."""
        return tuple(
            tuple(itertools.combinations(range(node), count))
            for node, count in enumerate(self.num_parents, start=1)
        )

    @cached_property
    def choosing_nodes(self) -> tuple[int, ...]:
        """Nodes that have a choice of parents, in the order of their decisions."""
        return tuple(v for v, sets in enumerate(self.parent_choices, start=1) if len(sets) > 1)

    @cached_property
    def options(self) -> tuple[int, ...]:
        """Operations of each block, then sets of parents of each node that has a choice."""
        sets = [len(self.parent_choices[node - 1]) for node in self.choosing_nodes]
        return (self.num_ops,) * self.num_blocks + tuple(sets)

    def _wanted(self, decision: int) -> str:
        if decision < self.num_blocks:
            return f"an operation index of block {decision + 1}"
        return f"a choice of parents of node {self.choosing_nodes[decision - self.num_blocks]}"

    # Parts of an architecture.

    def block_ops(self, arch: Architecture) -> tuple[int, ...]:
        """Return the operation of each block, loose ends included, ``[num_blocks]``."""
        return arch.op_indices[: self.num_blocks]

    def parents(self, arch: Architecture) -> tuple[Parents, ...]:
        """Return the parents of each node after the input, ascending; the output is last."""
        picked = dict(zip(self.choosing_nodes, arch.op_indices[self.num_blocks :], strict=True))
        return tuple(
            sets[picked.get(node, 0)] for node, sets in enumerate(self.parent_choices, start=1)
        )

    def used_blocks(self, arch: Architecture) -> tuple[bool, ...]:
        """Return whether a path leads from each block to the output, ``[num_blocks]``."""
        return reaching(self.parents(arch))

    def pruned(self, arch: Architecture) -> Pruned:
        """Return what architectures share exactly if they select the same subnet of a supernet.

        Blocks keep their positions, because each has weights of its own.

        Returns:
            For each block its operation and parents, None for a loose end; and the parents of the
            output.
        """
        parents = self.parents(arch)
        blocks = zip(self.block_ops(arch), parents[:-1], reaching(parents), strict=True)
        return tuple((op, of) if used else None for op, of, used in blocks), parents[-1]

    def op_counts(self, arch: Architecture) -> dict[str, int]:
        """Count how many blocks carry each candidate operation, loose ends included."""
        ops = self.block_ops(arch)
        return {op.name: ops.count(k) for k, op in enumerate(self.ops)}

    def longest(self, arch: Architecture, weight: Callable[[OpSpec | None], int]) -> int:
        """Return the weight of the heaviest path from input to output; there always is one.

        A step into a block counts as the block's operation, the step into the output as None.
        Projections of the input are no candidate operations, so they count nothing.
        """
        steps: list[OpSpec | None] = [self.ops[k] for k in self.block_ops(arch)]
        best = [0]
        for step, parents in zip([*steps, None], self.parents(arch), strict=True):
            best.append(max(best[parent] for parent in parents) + weight(step))
        return best[-1]

    def to_nb101(self, arch: Architecture) -> Nb101Cell:
        """Return the cell of NAS-Bench-101 that an architecture is, without its loose ends.

        Raises:
            ValueError: If the architecture belongs to another space, or the space has operations
                or sizes that NAS-Bench-101 has not.
        """
        from nasfast.spaces.nb101 import Nb101Cell

        self._check_own(arch, "arch")
        nodes = self.num_blocks + 2
        matrix = [[0] * nodes for _ in range(nodes)]
        for node, parents in enumerate(self.parents(arch), start=1):
            for parent in parents:
                matrix[parent][node] = 1
        ops = ["input", *(self.ops[k].name for k in self.block_ops(arch)), "output"]
        return Nb101Cell.from_lists(matrix, ops).pruned()

    # The list of distinct pruned subnets.

    @property
    def num_encodings(self) -> int:
        """Raw encodings: every operation of every block with every choice of parents."""
        return math.prod(self.options)

    @property
    def num_archs(self) -> int:
        """Distinct pruned subnets, blocks at their positions: the length of the list."""
        return self._list.num_subnets

    @cached_property
    def topologies(self) -> Topologies:
        """Every raw choice of parents."""
        return all_topologies(self.parent_choices)

    @cached_property
    def _list(self) -> SubnetList:
        return list_subnets(self.parent_choices, self.num_ops, self.topologies)

    def topology_ranks(self, decisions: npt.NDArray[np.integer]) -> IndexArray:
        """Return which row of :attr:`topologies` encodings ``[archs, num_decisions]`` choose."""
        return decisions[:, self.num_blocks :] @ strides(self.options[self.num_blocks :])

    def indices(self, decisions: npt.NDArray[np.integer]) -> IndexArray:
        """Return the positions in the list of the subnets that encodings mean.

        Args:
            decisions: Raw encodings, ``[archs, num_decisions]``, as of :meth:`op_array`.

        Raises:
            ValueError: If the shape differs or a decision is out of range.
        """
        decisions = np.asarray(decisions)
        if decisions.ndim != 2 or decisions.shape[1] != self.num_decisions:
            shape = list(decisions.shape)
            raise ValueError(f"decisions: wanted [archs, {self.num_decisions}], got {shape}")
        bad = np.argwhere((decisions < 0) | (decisions >= self.options))
        if len(bad):
            row, column = bad[0]
            raise ValueError(
                f"decisions[{row}, {column}]: wanted {self._wanted(int(column))} in "
                f"0..{self.options[column] - 1}, got {decisions[row, column]}"
            )
        return self._positions(decisions)

    def _positions(self, decisions: npt.NDArray[np.integer]) -> IndexArray:
        ops = decisions[:, : self.num_blocks]
        topology = self.topology_ranks(decisions)
        kept = ops * self.topologies.used[topology]
        rank = kept @ strides(self.options[: self.num_blocks])
        return self._list.positions[rank, self._list.column[topology]]

    def list_array(self) -> IntArray:
        """Return the list as its smallest encodings, int32 ``[num_archs, num_decisions]``."""
        rank, row = np.nonzero(self._list.listed)
        ops = np.stack(np.unravel_index(rank, (self.num_ops,) * self.num_blocks), axis=1)
        chosen = self.topologies.choices[self._list.first[row]]
        return np.concatenate([ops, chosen], axis=1).astype(np.int32)

    def to_index(self, arch: Architecture) -> int:
        """Return the position of the pruned subnet in the list of the space.

        Raises:
            ValueError: If the architecture belongs to another space.
        """
        self._check_own(arch, "arch")
        return int(self._positions(np.array([arch.op_indices]))[0])

    def from_index(self, index: int) -> Architecture:
        """Return the smallest encoding of the pruned subnet at a position of the list.

        Raises:
            ValueError: If the index is out of range.
        """
        index = self._check_index(index)
        positions = self._list.positions
        # The first place at which the count of listed ones reaches the index.
        rank, row = divmod(int(np.searchsorted(positions.reshape(-1), index)), positions.shape[1])
        ops = np.unravel_index(rank, (self.num_ops,) * self.num_blocks)
        chosen = self.topologies.choices[self._list.first[row]]
        return Architecture((*map(int, ops), *chosen.tolist()), self)

    def to_indices(self, archs: Sequence[Architecture]) -> npt.NDArray[np.int64]:
        """Return the positions of pruned subnets in the list of the space, int64 ``[archs]``.

        Raises:
            ValueError: If an architecture belongs to another space.
        """
        return self.indices(self.op_array(archs))

    def from_indices(self, indices: Sequence[int]) -> list[Architecture]:
        """Return the smallest encodings of the pruned subnets at positions of the list.

        Raises:
            ValueError: If an index is out of range.
        """
        checked = [self._check_index(index) for index in indices]
        return [Architecture(tuple(row), self) for row in self.list_array()[checked].tolist()]

    def enumerate(self, mask: BoolArray | None = None) -> list[Architecture]:
        """List every pruned subnet, or those of a masked subset, in the order of the list.

        Args:
            mask: Operations that each block may carry where it is used, bool
                ``[num_blocks, num_ops]``. A loose end carries nothing, so a mask does not touch it.
        """
        rows = self.list_array()
        if mask is not None:
            self._choices(mask)  # checks it
            allowed = np.asarray(mask)[np.arange(self.num_blocks), rows[:, : self.num_blocks]]
            used = self.topologies.used[self.topology_ranks(rows)]
            rows = rows[(allowed | ~used).all(axis=1)]
        return [Architecture(tuple(row), self) for row in rows.tolist()]

    # Raw encodings.

    def from_encoding(self, rank: int) -> Architecture:
        """Return the raw encoding at a position of their lexicographic order.

        Raises:
            ValueError: If the rank is out of range.
        """
        if not 0 <= operator.index(rank) < self.num_encodings:
            wanted = f"0..{self.num_encodings - 1} in {self.name}"
            raise ValueError(f"rank: wanted {wanted}, got {rank}")
        return self._from_rank(operator.index(rank), self._choices(None))

    def encodings(self) -> Iterator[Architecture]:
        """Return every raw encoding, with loose ends, in lexicographic order."""
        values = itertools.product(*(range(count) for count in self.options))
        return (Architecture(decisions, self) for decisions in values)

    def mask(self, without: Sequence[str] = ()) -> BoolArray:
        """Return which operations each block may carry when some are left out everywhere.

        Args:
            without: Names of the operations left out, for example ``("maxpool3x3",)``.

        Returns:
            bool ``[num_blocks, num_ops]``.

        Raises:
            ValueError: If a name is no operation of the space, or none would be left.
        """
        return np.tile(allowed_ops(self.ops, without), (self.num_blocks, 1))

    def _choices(self, mask: BoolArray | None) -> list[list[int]]:
        ops = masked_choices(mask, (self.num_blocks, self.num_ops), "block", first=1)
        return ops + [list(range(count)) for count in self.options[self.num_blocks :]]

    def _population(
        self, mask: BoolArray | None, distinct: bool
    ) -> tuple[int, Callable[[int], Architecture]]:
        """Draw from raw encodings, with loose ends, or from the list of distinct subnets."""
        if not distinct:
            return Space._population(self, mask, distinct)
        if mask is None:
            return self.num_archs, self.from_index
        listed = self.enumerate(mask)
        return len(listed), listed.__getitem__

    # The notation.

    def to_string(self, arch: Architecture) -> str:
        """Write an architecture as ``|op~parents|+...+|~parents|``, one group for each node."""
        names = [*(self.ops[k].name for k in self.block_ops(arch)), ""]
        pairs = zip(names, self.parents(arch), strict=True)
        return "+".join(f"|{name}~{','.join(map(str, parents))}|" for name, parents in pairs)

    def from_string(self, string: str) -> Architecture:
        """Read what :meth:`to_string` writes.

        Raises:
            ValueError: If a group, an operation or a set of parents is not one of this space; the
                message names the node, what was wanted there and what came.
        """
        names = [op.name for op in self.ops]
        return Architecture(decisions_of(string, names, self.parent_choices), self)
