# SPDX-License-Identifier: MIT
"""A search space as data: nodes, edges, candidate operations, encodings.

Encodings of an :class:`Architecture`, and the functions between them:

* *operation indices*: one candidate operation for each edge, ``[num_edges]``, in edge order;
* *string*: the benchmark's own notation, ``to_string`` / ``from_string``;
* *index*: the position in the benchmark's official list, ``to_index`` / ``from_index``.
"""

from __future__ import annotations

import difflib
import enum
import itertools
import operator
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

_SHOWN = 200  # characters of what came, in a message

IntArray = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]


class OpKind(enum.IntEnum):
    """What a candidate operation computes at stride 1 with equal input and output channels."""

    ZERO = 0  # nothing flows along the edge
    IDENTITY = 1
    CONV = 2  # ReLU, convolution with padding kernel // 2, batch norm
    AVG_POOL = 3  # padded positions are not counted, so it is linear and keeps constants
    MAX_POOL = 4


@dataclass(frozen=True, slots=True)
class OpSpec:
    """One candidate operation: its name in the benchmark, its kind, and its square kernel size."""

    name: str
    kind: OpKind
    kernel: int = 1


@dataclass(frozen=True, slots=True)
class Architecture:
    """One point of a search space: immutable and hashable; ``str(arch)`` is the benchmark's string.

    Attributes:
        op_indices: Candidate operation of each edge, in edge order.
        spec: The space it belongs to.
    """

    op_indices: tuple[int, ...]
    spec: CellSpec = field(repr=False, hash=False)

    def __str__(self) -> str:
        """Return the benchmark's own string."""
        return self.spec.to_string(self)

    @property
    def op_counts(self) -> dict[str, int]:
        """How many edges carry each candidate operation, by operation name."""
        return {op.name: self.op_indices.count(k) for k, op in enumerate(self.spec.ops)}

    @property
    def connected(self) -> bool:
        """Whether a path of operations other than zero leads from the input to the output."""
        return self.longest_path >= 0

    @property
    def longest_path(self) -> int:
        """Edges on the longest path from input to output, -1 without such a path."""
        return self._longest(lambda op: 1)

    @property
    def depth(self) -> int:
        """Most convolutions on any path from input to output, -1 without such a path."""
        return self._longest(lambda op: int(op.kind == OpKind.CONV))

    def _longest(self, weight: Callable[[OpSpec], int]) -> int:
        best = [0] + [-1] * (self.spec.num_nodes - 1)
        for (source, target), index in zip(self.spec.edges, self.op_indices, strict=True):
            op = self.spec.ops[index]
            if op.kind != OpKind.ZERO and best[source] >= 0:
                best[target] = max(best[target], best[source] + weight(op))
        return best[-1]


@dataclass(frozen=True)
class CellSpec:
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

    name: str
    title: str
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
        op_names = [op.name for op in self.ops]
        if len(set(op_names)) != len(op_names) or any(set("|~+") & set(n) for n in op_names):
            raise ValueError(f"CellSpec: wanted distinct names without '|~+', got {op_names}")
        if any(op.kernel < 1 or op.kernel % 2 == 0 for op in self.ops):
            raise ValueError("CellSpec: wanted odd kernels of at least 1")
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

    def __getstate__(self) -> dict[str, object]:
        """Leave the cached index order out of pickles."""
        return {key: value for key, value in self.__dict__.items() if key != "_shuffled"}

    def _check_own(self, arch: Architecture, name: str) -> None:
        if arch.spec is not self and arch.spec != self:
            raise ValueError(
                f"{name}: wanted an architecture of {self.name}, got one of {arch.spec.name}"
            )

    def __len__(self) -> int:
        """Architectures of the whole space."""
        return self.num_archs

    # Encodings.

    def arch(self, op_indices: Sequence[int] | IntArray) -> Architecture:
        """Make an architecture from operation indices.

        Args:
            op_indices: One operation index for each edge, ``[num_edges]``.

        Raises:
            ValueError: If the number of edges is wrong or an index names no operation.
        """
        indices = tuple(operator.index(k) for k in op_indices)
        if len(indices) != self.num_edges:
            raise ValueError(
                f"op_indices: {self.name} has {self.num_edges} edges, got {len(indices)}"
            )
        for edge, k in enumerate(indices):
            if not 0 <= k < self.num_ops:
                raise ValueError(
                    f"op_indices[{edge}]: wanted an operation index in 0..{self.num_ops - 1}, "
                    f"got {k}"
                )
        return Architecture(indices, self)

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
        groups, shown = string.strip().split("+"), string[:_SHOWN]
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
                raise ValueError(f"{where}: wanted '|op~source|...|', got {group[:_SHOWN]!r}")
            edges = group[1:-1].split("|")
            if len(edges) != len(sources):
                raise ValueError(f"{where}: wanted {len(sources)} edges, got {len(edges)}")
            for edge, source in zip(edges, sources, strict=True):
                name, _, got = edge.partition("~")
                if name not in names:
                    near = difflib.get_close_matches(name[:_SHOWN], names, n=1, cutoff=0.0)[0]
                    raise ValueError(
                        f"{where}: unknown operation {name[:_SHOWN]!r}, wanted one of "
                        f"{', '.join(names)}; nearest: {near}"
                    )
                if got != str(source):
                    wanted = f"wanted an edge from node {source}"
                    raise ValueError(f"{where}: {wanted}, got {edge[:_SHOWN]!r}")
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
        rank = 0
        for k in arch.op_indices:
            rank = rank * self.num_ops + k
        return rank if self.index_seed is None else int(self._shuffled[1][rank])

    def from_index(self, index: int) -> Architecture:
        """Return the architecture at a position of the benchmark's official list.

        Raises:
            ValueError: If the index is out of range.
        """
        if not 0 <= operator.index(index) < self.num_archs:
            raise ValueError(f"index: wanted 0..{self.num_archs - 1} in {self.name}, got {index}")
        rank = index if self.index_seed is None else int(self._shuffled[0][index])
        indices = []
        for _ in self.edges:
            rank, k = divmod(rank, self.num_ops)
            indices.append(k)
        return Architecture(tuple(reversed(indices)), self)

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
        names = [op.name for op in self.ops]
        for name in without:
            if name not in names:
                raise ValueError(
                    f"without: unknown operation {name!r}, wanted some of {', '.join(names)}"
                )
        allowed = np.array([name not in without for name in names])
        if not allowed.any():
            raise ValueError("without: no operation is left")
        return np.tile(allowed, (self.num_edges, 1))

    def _choices(self, mask: BoolArray | None) -> list[list[int]]:
        if mask is None:
            return [list(range(self.num_ops))] * self.num_edges
        mask = np.asarray(mask)
        if mask.shape != (self.num_edges, self.num_ops) or mask.dtype != np.bool_:
            raise ValueError(
                f"mask: wanted bool [{self.num_edges}, {self.num_ops}], "
                f"got {mask.dtype} {list(mask.shape)}"
            )
        empty = np.flatnonzero(~mask.any(axis=1))
        if len(empty):
            raise ValueError(f"mask: edge {int(empty[0])} has no operation left")
        return [np.flatnonzero(row).tolist() for row in mask]

    def enumerate(self, mask: BoolArray | None = None) -> list[Architecture]:
        """List every architecture, or those of a masked subset, in official index order.

        Args:
            mask: Operations that each edge may carry, bool ``[num_edges, num_ops]``.
        """
        if mask is None:
            return [self.from_index(index) for index in range(self.num_archs)]
        archs = [Architecture(k, self) for k in itertools.product(*self._choices(mask))]
        return sorted(archs, key=self.to_index)

    def sample(
        self, count: int, seed: int, mask: BoolArray | None = None, *, distinct: bool = False
    ) -> list[Architecture]:
        """Draw architectures uniformly: each edge independently, over its allowed operations.

        Args:
            count: How many.
            seed: Seed of the draw; the same seed gives the same list.
            mask: Operations that each edge may carry, bool ``[num_edges, num_ops]``.
            distinct: Draw without replacement.

        Raises:
            ValueError: If ``count`` is negative, or larger than the set when drawing without
                replacement.
        """
        choices = self._choices(mask)
        total = int(np.prod([len(c) for c in choices], dtype=object))
        if count < 0:
            raise ValueError(f"count: wanted at least 0, got {count}")
        if distinct and count > total:
            raise ValueError(f"count: wanted 0..{total} distinct architectures, got {count}")
        rng = random.Random(seed)
        if distinct:
            ranks: Sequence[int] = rng.sample(range(total), count)
        else:
            ranks = [rng.randrange(total) for _ in range(count)]
        return [self._from_rank(rank, choices) for rank in ranks]

    def _from_rank(self, rank: int, choices: list[list[int]]) -> Architecture:
        indices = []
        for allowed in reversed(choices):
            rank, k = divmod(rank, len(allowed))
            indices.append(allowed[k])
        return Architecture(tuple(reversed(indices)), self)

    def neighbours(self, arch: Architecture) -> Iterator[Architecture]:
        """Return the architectures that differ in the operation of exactly one edge.

        Raises:
            ValueError: If the architecture belongs to another space.
        """
        self._check_own(arch, "arch")
        return self._neighbours(arch)

    def _neighbours(self, arch: Architecture) -> Iterator[Architecture]:
        for edge, current in enumerate(arch.op_indices):
            for k in range(self.num_ops):
                if k != current:
                    yield Architecture(
                        (*arch.op_indices[:edge], k, *arch.op_indices[edge + 1 :]), self
                    )

    def op_array(self, archs: Sequence[Architecture]) -> IntArray:
        """Stack operation indices, int32 ``[archs, num_edges]``.

        Raises:
            ValueError: If an architecture belongs to another space.
        """
        for position, arch in enumerate(archs):
            self._check_own(arch, f"archs[{position}]")
        flat = [arch.op_indices for arch in archs]
        return np.array(flat, dtype=np.int32).reshape(len(flat), self.num_edges)
