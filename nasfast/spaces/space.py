# SPDX-License-Identifier: MIT
"""What every search space can do: a point is a vector of decisions.

Decision ``d`` takes one of ``options[d]`` values, ``0..options[d] - 1``. What a decision is (the
operation of an edge or a block, the parents of a node, a channel number) is for the kinds of space
to say: :class:`~nasfast.spaces.spec.CellSpec`, :class:`~nasfast.spaces.block_spec.BlockSpec` and
:class:`~nasfast.spaces.nats_sss.SizeSpec`.

Encodings of an :class:`Architecture`, and the functions between them:

* *decisions*: ``arch.op_indices``, ``[num_decisions]``; the name is the one of the commonest kind;
* *string*: the benchmark's own notation, ``to_string`` / ``from_string``;
* *index*: the position in the list of the space, ``to_index`` / ``from_index``.
"""

from __future__ import annotations

import enum
import math
import operator
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt

SHOWN = 200  # characters of what came, in a message

IntArray = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]


class OpKind(enum.IntEnum):
    """What a candidate operation computes at stride 1 with equal input and output channels."""

    ZERO = 0  # nothing flows along the edge
    IDENTITY = 1
    # Convolution with padding kernel // 2, batch norm; the ReLU is first in a CellSpec and last in
    # a BlockSpec.
    CONV = 2
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
        op_indices: The decisions. In a space with operations on edges: the candidate operation of
            each edge, in edge order.
        spec: The space it belongs to.
    """

    op_indices: tuple[int, ...]
    spec: Space = field(repr=False, hash=False)

    def __str__(self) -> str:
        """Return the benchmark's own string."""
        return self.spec.to_string(self)

    @property
    def op_counts(self) -> dict[str, int]:
        """How many edges or blocks carry each candidate operation, by operation name."""
        return self.spec.op_counts(self)

    @property
    def connected(self) -> bool:
        """Whether a path of operations other than zero leads from the input to the output."""
        return self.longest_path >= 0

    @property
    def longest_path(self) -> int:
        """Edges on the longest path from input to output, -1 without such a path."""
        return self.spec.longest(self, lambda op: 1)

    @property
    def depth(self) -> int:
        """Most convolutions on any path from input to output, -1 without such a path."""
        return self.spec.longest(self, lambda op: int(op is not None and op.kind == OpKind.CONV))


@dataclass(frozen=True)
class Space(ABC):
    """A search space: its decisions, its list of architectures, and its encodings.

    Attributes:
        name: Short name, as in ``nasfast.spaces.get(name)``.
        title: The name that papers use.
    """

    name: str
    title: str

    # What a kind of space has to say.

    @property
    @abstractmethod
    def options(self) -> tuple[int, ...]:
        """How many values each decision can take, ``[num_decisions]``."""

    @property
    @abstractmethod
    def num_archs(self) -> int:
        """Architectures of the whole space: the length of its list."""

    @abstractmethod
    def to_string(self, arch: Architecture) -> str:
        """Write an architecture in the notation of the space."""

    @abstractmethod
    def from_string(self, string: str) -> Architecture:
        """Read the notation of the space.

        Raises:
            ValueError: If the text is no architecture of the space; the message says what was
                wanted where, and what came.
        """

    @abstractmethod
    def to_index(self, arch: Architecture) -> int:
        """Return the position of an architecture in the list of the space.

        Raises:
            ValueError: If the architecture belongs to another space.
        """

    @abstractmethod
    def from_index(self, index: int) -> Architecture:
        """Return the architecture at a position of the list of the space.

        Raises:
            ValueError: If the index is out of range.
        """

    def to_indices(self, archs: Sequence[Architecture]) -> npt.NDArray[np.int64]:
        """Return the positions of architectures in the list of the space, int64 ``[archs]``.

        Raises:
            ValueError: If an architecture belongs to another space.
        """
        return np.array([self.to_index(arch) for arch in archs], dtype=np.int64)

    def from_indices(self, indices: Sequence[int]) -> list[Architecture]:
        """Return the architectures at positions of the list of the space.

        Raises:
            ValueError: If an index is out of range.
        """
        return [self.from_index(index) for index in indices]

    @abstractmethod
    def enumerate(self, mask: BoolArray | None = None) -> list[Architecture]:
        """List every architecture, or those of a masked subset, in the order of the list."""

    @abstractmethod
    def op_counts(self, arch: Architecture) -> dict[str, int]:
        """Count how many edges or blocks carry each candidate operation, by operation name."""

    @abstractmethod
    def longest(self, arch: Architecture, weight: Callable[[OpSpec | None], int]) -> int:
        """Return the weight of the heaviest path from input to output, -1 if there is none.

        Args:
            arch: An architecture of the space.
            weight: Weight of one step along the path by its operation, None for a step without
                one (as from a block to the output).
        """

    @abstractmethod
    def _choices(self, mask: BoolArray | None) -> list[list[int]]:
        """Return the allowed values of each decision."""

    def _wanted(self, decision: int) -> str:
        """Say in words what a decision picks, for messages."""
        return "an option"

    _decisions = "decisions"  # what they are called in messages

    # What follows from it.

    @property
    def num_decisions(self) -> int:
        """Decisions that make an architecture."""
        return len(self.options)

    def __len__(self) -> int:
        """Architectures of the whole space."""
        return self.num_archs

    def __getstate__(self) -> dict[str, object]:
        """Leave what is cached out of pickles."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    def _check_own(self, arch: Architecture, name: str) -> None:
        if arch.spec is not self and arch.spec != self:
            raise ValueError(
                f"{name}: wanted an architecture of {self.name}, got one of {arch.spec.name}"
            )

    def _check_index(self, index: int) -> int:
        if not 0 <= operator.index(index) < self.num_archs:
            raise ValueError(f"index: wanted 0..{self.num_archs - 1} in {self.name}, got {index}")
        return operator.index(index)

    def arch(self, op_indices: Sequence[int] | IntArray) -> Architecture:
        """Make an architecture from its decisions.

        Args:
            op_indices: The value of each decision, ``[num_decisions]``; in a space with operations
                on edges one operation index for each edge.

        Raises:
            ValueError: If the number of decisions is wrong or a value is out of range.
        """
        indices = tuple(operator.index(k) for k in op_indices)
        options = self.options
        if len(indices) != len(options):
            raise ValueError(
                f"op_indices: {self.name} has {len(options)} {self._decisions}, got {len(indices)}"
            )
        for decision, (k, count) in enumerate(zip(indices, options, strict=True)):
            if not 0 <= k < count:
                raise ValueError(
                    f"op_indices[{decision}]: wanted {self._wanted(decision)} in 0..{count - 1}, "
                    f"got {k}"
                )
        return Architecture(indices, self)

    def sample(
        self, count: int, seed: int, mask: BoolArray | None = None, *, distinct: bool = False
    ) -> list[Architecture]:
        """Draw architectures uniformly: each decision independently, over its allowed values.

        Of a space of choice blocks these are raw encodings, with loose ends, as RandomNAS draws
        them; distinct ones come from its list of distinct pruned subnets.

        Args:
            count: How many.
            seed: Seed of the draw; the same seed gives the same list.
            mask: What is allowed, as in :meth:`enumerate`.
            distinct: Draw without replacement.

        Raises:
            ValueError: If ``count`` is negative, or larger than the set when drawing without
                replacement.
        """
        total, at = self._population(mask, distinct)
        self._check_count(count, total if distinct else None)
        rng = random.Random(seed)
        if distinct:
            ranks: Sequence[int] = rng.sample(range(total), count)
        else:
            ranks = [rng.randrange(total) for _ in range(count)]
        return [at(rank) for rank in ranks]

    def _population(
        self, mask: BoolArray | None, distinct: bool
    ) -> tuple[int, Callable[[int], Architecture]]:
        """How many architectures there are to draw from, and what gives each of them."""
        choices = self._choices(mask)
        total = math.prod(len(allowed) for allowed in choices)
        return total, lambda rank: self._from_rank(rank, choices)

    def _check_count(self, count: int, total: int | None) -> None:
        if count < 0:
            raise ValueError(f"count: wanted at least 0, got {count}")
        if total is not None and count > total:
            raise ValueError(f"count: wanted 0..{total} distinct architectures, got {count}")

    def _from_rank(self, rank: int, choices: Sequence[Sequence[int]]) -> Architecture:
        indices = []
        for allowed in reversed(choices):
            rank, k = divmod(rank, len(allowed))
            indices.append(allowed[k])
        return Architecture(tuple(reversed(indices)), self)

    def _rank(self, arch: Architecture) -> int:
        """Lexicographic rank of the decisions."""
        rank = 0
        for k, count in zip(arch.op_indices, self.options, strict=True):
            rank = rank * count + k
        return rank

    def neighbours(self, arch: Architecture) -> Iterator[Architecture]:
        """Return the architectures that differ in exactly one decision.

        Raises:
            ValueError: If the architecture belongs to another space.
        """
        self._check_own(arch, "arch")
        return self._neighbours(arch)

    def _neighbours(self, arch: Architecture) -> Iterator[Architecture]:
        before = arch.op_indices
        for decision, count in enumerate(self.options):
            for k in range(count):
                if k != before[decision]:
                    yield Architecture((*before[:decision], k, *before[decision + 1 :]), self)

    def op_array(self, archs: Sequence[Architecture]) -> IntArray:
        """Stack decisions, int32 ``[archs, num_decisions]``.

        Raises:
            ValueError: If an architecture belongs to another space.
        """
        for position, arch in enumerate(archs):
            self._check_own(arch, f"archs[{position}]")
        flat = [arch.op_indices for arch in archs]
        return np.array(flat, dtype=np.int32).reshape(len(flat), self.num_decisions)


def check_ops(kind: str, ops: Sequence[OpSpec], signs: str) -> None:
    """Check the candidate operations of a space.

    Args:
        kind: Class of the space, for messages.
        ops: The operations.
        signs: Characters that the notation of the space uses, so that no name may.

    Raises:
        ValueError: If two share a name, a name holds a sign, or a kernel is even.
    """
    names = [op.name for op in ops]
    if len(set(names)) != len(names) or any(set(signs) & set(name) for name in names):
        raise ValueError(f"{kind}: wanted distinct names without '{signs}', got {names}")
    if any(op.kernel < 1 or op.kernel % 2 == 0 for op in ops):
        raise ValueError(f"{kind}: wanted odd kernels of at least 1")


def allowed_ops(ops: Sequence[OpSpec], without: Sequence[str]) -> BoolArray:
    """Return which operations are left when some are left out, bool ``[num_ops]``.

    Raises:
        ValueError: If a name is no operation, or none would be left.
    """
    names = [op.name for op in ops]
    for name in without:
        if name not in names:
            raise ValueError(
                f"without: unknown operation {name!r}, wanted some of {', '.join(names)}"
            )
    allowed = np.array([name not in without for name in names])
    if not allowed.any():
        raise ValueError("without: no operation is left")
    return allowed


def masked_choices(
    mask: BoolArray | None,
    shape: tuple[int, int],
    row: str,
    first: int = 0,
    of: str = "operation",
) -> list[list[int]]:
    """Return what each row of a mask allows; everything without a mask.

    Args:
        mask: bool of the given shape.
        shape: Decisions and the values of each.
        row: What a row is, for messages.
        first: Number of the first row, for messages.
        of: What a column is, for messages.

    Raises:
        ValueError: If shape or dtype differ, or nothing is left in a row.
    """
    if mask is None:
        return [list(range(shape[1]))] * shape[0]
    mask = np.asarray(mask)
    if mask.shape != shape or mask.dtype != np.bool_:
        raise ValueError(
            f"mask: wanted bool [{shape[0]}, {shape[1]}], got {mask.dtype} {list(mask.shape)}"
        )
    empty = np.flatnonzero(~mask.any(axis=1))
    if len(empty):
        raise ValueError(f"mask: {row} {first + int(empty[0])} has no {of} left")
    return [np.flatnonzero(allowed).tolist() for allowed in mask]
