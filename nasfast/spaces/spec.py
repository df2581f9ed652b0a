# SPDX-License-Identifier: MIT
"""A search space with operations on the edges of a cell: nodes, edges, candidate operations.

Encodings of an :class:`Architecture`, and the functions between them:

* *operation indices*: one candidate operation for each edge, ``[num_edges]``, in edge order;
* *string*: the benchmark's own notation, ``to_string`` / ``from_string``;
* *index*: the position in the benchmark's official list, ``to_index`` / ``from_index``.
"""

from __future__ import annotations

import difflib
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nasfast.spaces.space import (
    SHOWN,
    Architecture,
    BoolArray,
    IntArray,
    OpKind,
    OpSpec,
    Space,
    allowed_ops,
    check_ops,
    masked_choices,
)

__all__ = ["Architecture", "BoolArray", "CellSpec", "IntArray", "OpKind", "OpSpec"]


@dataclass(frozen=True)
class CellSpec(Space):
    """A cell-based search space with one candidate operation on each edge.

    Node 0 is the cell's input; the value of another node is the sum of its incoming edges in edge
    order; the last node is the cell's output. The network around the cells (stem, stages with
    residual reductions between them, head) is the one of NAS-Bench-201.

    Attributes:
        name: Short name, as in ``nasfast.spaces.get(name)``.
        title: The name that papers use.
        num_nodes: Nodes of a cell, with input and output.
        edges: ``(source, target)`` with source < target, ordered by target, then source.
        ops: Candidate operations, the same for every edge; their order is the benchmark's.
        stage_widths: Channels of each stage as multiples of the first stage's.
        index_seed: Seed of the shuffle that turns lexicographic order into the official index
            order (``random.Random(seed).shuffle``); None where the order is lexicographic.
    """

    num_nodes: int
    edges: tuple[tuple[int, int], ...]
    ops: tuple[OpSpec, ...]
    stage_widths: tuple[int, ...] = (1, 2, 4)
    index_seed: int | None = None

    def __post_init__(self) -> None:
        """Check the graph and the operations.

        Raises:
            ValueError: If the edges are not ordered by target and source or leave out a node, or
                operations are missing, share a name, or have an even kernel.
        """
        if self.num_nodes < 2 or not self.ops or min(self.stage_widths, default=0) < 1:
            raise ValueError(
                "CellSpec: wanted at least two nodes, an operation and positive widths"
            )
        check_ops("CellSpec", self.ops, "|~+")
        wanted = tuple(sorted(self.edges, key=lambda edge: (edge[1], edge[0])))
        if self.edges != wanted or len(set(self.edges)) != len(self.edges):
            raise ValueError(
                "CellSpec: edges must be distinct and ordered by target, then source; "
                f"wanted {wanted}, got {self.edges}"
            )
        if any(not 0 <= i < j < self.num_nodes for i, j in self.edges):
            raise ValueError(
                f"CellSpec: an edge (i, j) needs 0 <= i < j < {self.num_nodes}, got {self.edges}"
            )
        entered = {j for _, j in self.edges}
        if len(entered) < self.num_nodes - 1:
            without = [j for j in range(1, len(entered) + 2) if j not in entered]
            raise ValueError(f"CellSpec: nodes {without} have no incoming edge")

    @property
    def num_edges(self) -> int:
        """Edges of a cell."""
        return len(self.edges)

    @property
    def num_ops(self) -> int:
        """Candidate operations of an edge."""
        return len(self.ops)

    @property
    def num_archs(self) -> int:
        """Architectures of the whole space."""
        return int(self.num_ops**self.num_edges)

    @property
    def options(self) -> tuple[int, ...]:
        """Every edge chooses among all candidate operations, ``[num_edges]``."""
        return (self.num_ops,) * self.num_edges

    _decisions = "edges"

    def _wanted(self, decision: int) -> str:
        return "an operation index"

    def op_counts(self, arch: Architecture) -> dict[str, int]:
        """Count how many edges carry each candidate operation, by operation name."""
        return {op.name: arch.op_indices.count(k) for k, op in enumerate(self.ops)}

    def longest(self, arch: Architecture, weight: Callable[[OpSpec | None], int]) -> int:
        """Return the weight of the heaviest path that carries no zero, -1 if there is none."""
        best = [0] + [-1] * (self.num_nodes - 1)
        for (source, target), index in zip(self.edges, arch.op_indices, strict=True):
            op = self.ops[index]
            if op.kind != OpKind.ZERO and best[source] >= 0:
                best[target] = max(best[target], best[source] + weight(op))
        return best[-1]

    # Encodings.

    def to_string(self, arch: Architecture) -> str:
        """Write an architecture as ``|op~source|...|+|...|``, one group for each node."""
        groups: list[list[str]] = [[] for _ in range(self.num_nodes - 1)]
        for (source, target), k in zip(self.edges, arch.op_indices, strict=True):
            groups[target - 1].append(f"{self.ops[k].name}~{source}")
        return "+".join("|" + "|".join(group) + "|" for group in groups)

    def from_string(self, string: str) -> Architecture:
        """Read the benchmark's own notation.

        Raises:
            ValueError: If a group, an edge or an operation is not one of this space; the message
                names the group, what was wanted there and what came.
        """
        names = {op.name: k for k, op in enumerate(self.ops)}
        groups, shown = string.strip().split("+"), string[:SHOWN]
        if len(groups) != self.num_nodes - 1:
            raise ValueError(
                f"architecture {shown!r}: wanted {self.num_nodes - 1} groups joined by '+' "
                f"(one for each node after the input), got {len(groups)}"
            )
        indices: list[int] = []
        for node, group in enumerate(groups, start=1):
            where = f"architecture {shown!r}, node {node}"
            sources = [i for i, j in self.edges if j == node]
            if len(group) < 2 or group[0] != "|" or group[-1] != "|":
                raise ValueError(f"{where}: wanted '|op~source|...|', got {group[:SHOWN]!r}")
            edges = group[1:-1].split("|")
            if len(edges) != len(sources):
                raise ValueError(f"{where}: wanted {len(sources)} edges, got {len(edges)}")
            for edge, source in zip(edges, sources, strict=True):
                name, _, got = edge.partition("~")
                if name not in names:
                    near = difflib.get_close_matches(name[:SHOWN], names, n=1, cutoff=0.0)[0]
                    raise ValueError(
                        f"{where}: unknown operation {name[:SHOWN]!r}, wanted one of "
                        f"{', '.join(names)}; nearest: {near}"
                    )
                if got != str(source):
                    wanted = f"wanted an edge from node {source}"
                    raise ValueError(f"{where}: {wanted}, got {edge[:SHOWN]!r}")
                indices.append(names[name])
        return Architecture(tuple(indices), self)

    @cached_property
    def _shuffled(self) -> tuple[IntArray, IntArray]:
        """Lexicographic rank of each official index, and its inverse."""
        order = list(range(self.num_archs))
        random.Random(self.index_seed).shuffle(order)
        ranks = np.array(order, dtype=np.int32)
        inverse = np.empty_like(ranks)
        inverse[ranks] = np.arange(self.num_archs, dtype=np.int32)
        return ranks, inverse

    def to_index(self, arch: Architecture) -> int:
        """Return the position of an architecture in the benchmark's official list.

        Raises:
            ValueError: If the architecture belongs to another space.
        """
        self._check_own(arch, "arch")
        rank = self._rank(arch)
        return rank if self.index_seed is None else int(self._shuffled[1][rank])

    def from_index(self, index: int) -> Architecture:
        """Return the architecture at a position of the benchmark's official list.

        Raises:
            ValueError: If the index is out of range.
        """
        index = self._check_index(index)
        rank = index if self.index_seed is None else int(self._shuffled[0][index])
        return self._from_rank(rank, self._choices(None))

    # Sets of architectures.

    def mask(self, without: Sequence[str] = ()) -> BoolArray:
        """Return which operations each edge may carry when some are left out everywhere.

        Args:
            without: Names of the operations left out, for example ``("none", "avg_pool_3x3")``.

        Returns:
            bool ``[num_edges, num_ops]``.

        Raises:
            ValueError: If a name is no operation of the space, or none would be left.
        """
        return np.tile(allowed_ops(self.ops, without), (self.num_edges, 1))

    def _choices(self, mask: BoolArray | None) -> list[list[int]]:
        return masked_choices(mask, (self.num_edges, self.num_ops), "edge")

    def enumerate(self, mask: BoolArray | None = None) -> list[Architecture]:
        """List every architecture, or those of a masked subset, in official index order.

        Args:
            mask: Operations that each edge may carry, bool ``[num_edges, num_ops]``.
        """
        if mask is None:
            return [self.from_index(index) for index in range(self.num_archs)]
        archs = [Architecture(k, self) for k in itertools.product(*self._choices(mask))]
        return sorted(archs, key=self.to_index)
