# SPDX-License-Identifier: MIT
"""NAS-Bench-101: cells of up to 7 vertices and 9 edges with an operation on each inner vertex.

Encodings of a :class:`Nb101Cell`, and the functions between them:

* *matrix and operations*: ``cell.matrix``, ``cell.ops``, as in the published data;
* *hash*: 128 bits that equal networks share (``cell.hash``), as published;
* *bits*: the upper triangle of the matrix as a number (``adjacency_bits``), as in
  :func:`enumerate_nb101`.

Source: Ying, Klein, Real, Christiansen, Murphy and Hutter, NAS-Bench-101, ICML 2019, section 2 and
the benchmark's code.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, SupportsInt

import numpy as np
import numpy.typing as npt

from nasfast import native
from nasfast.spaces.space import OpKind, OpSpec

INPUT, OUTPUT = "input", "output"
OP_SPECS = (
    OpSpec("conv3x3-bn-relu", OpKind.CONV, 3),
    OpSpec("conv1x1-bn-relu", OpKind.CONV, 1),
    OpSpec("maxpool3x3", OpKind.MAX_POOL, 3),
)
OPS = tuple(op.name for op in OP_SPECS)  # in the published order, which the hash depends on
MAX_VERTICES = 7
MAX_EDGES = 9
NO_OP = 255  # in arrays of operation indices, past the last inner vertex

Matrix = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Nb101Cell:
    """A cell of NAS-Bench-101: immutable and hashable, valid by construction.

    Two cells are equal if they are written the same; whether they are the same network is what
    :attr:`hash` tells. Vertex 0 is the input, the last vertex is the output.

    Attributes:
        matrix: ``matrix[i][j]`` is 1 where an edge leads from vertex i to vertex j, otherwise 0.
        ops: ``"input"``, the operation of each inner vertex (see :data:`OPS`), ``"output"``.
    """

    matrix: Matrix
    ops: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check the cell.

        Raises:
            ValueError: If the matrix is not square and strictly upper triangular with zeros and
                ones, has fewer than 2 or more than 7 vertices or more than 9 edges, does not fit
                the operations, an operation is unknown, or no path leads from input to output.
        """
        matrix = self.matrix
        size = len(matrix)
        if not 2 <= size <= MAX_VERTICES:
            raise ValueError(f"matrix: wanted 2..{MAX_VERTICES} vertices, got {size}")
        for i, row in enumerate(matrix):
            if len(row) != size:
                raise ValueError(f"matrix: wanted {size} columns in row {i}, got {len(row)}")
            for j, entry in enumerate(row):
                if type(entry) is not int or entry not in (0, 1):
                    raise ValueError(f"matrix[{i}][{j}]: wanted 0 or 1, got {entry!r}")
                if entry and i >= j:
                    raise ValueError(
                        f"matrix[{i}][{j}]: wanted 0 on and below the diagonal (an edge leads to a "
                        "later vertex), got 1"
                    )
        edges = sum(map(sum, matrix))
        if edges > MAX_EDGES:
            raise ValueError(f"matrix: wanted at most {MAX_EDGES} edges, got {edges}")
        if len(self.ops) != size:
            raise ValueError(f"ops: wanted {size}, one for each vertex, got {len(self.ops)}")
        for v, op in enumerate(self.ops):
            ends = {0: (INPUT,), size - 1: (OUTPUT,)}
            if op not in ends.get(v, OPS):
                wanted = " or ".join(map(repr, ends.get(v, OPS)))
                raise ValueError(f"ops[{v}]: wanted {wanted}, got {op!r}")
        if size - 1 not in _reached(matrix):
            raise ValueError("matrix: no path leads from the input to the output")

    @classmethod
    def from_lists(
        cls, matrix: Sequence[Sequence[Any]] | npt.NDArray[Any], ops: Sequence[str]
    ) -> Nb101Cell:
        """Make a cell from nested lists or an array.

        Entries have to be integers or booleans; whole floating-point numbers are not taken.

        Raises:
            ValueError: If it is no valid cell, as for :class:`Nb101Cell`.
        """
        rows = []
        for i, row in enumerate(matrix):
            if not isinstance(row, Sequence | np.ndarray):
                raise ValueError(f"matrix[{i}]: wanted a row of zeros and ones, got {row!r}")
            whole = (bool, np.bool_, np.integer)
            rows.append(tuple(int(entry) if isinstance(entry, whole) else entry for entry in row))
        return cls(tuple(rows), tuple(ops))

    @property
    def num_vertices(self) -> int:
        """Vertices, with input and output."""
        return len(self.matrix)

    @property
    def num_edges(self) -> int:
        """Edges."""
        return sum(map(sum, self.matrix))

    @property
    def adjacency_bits(self) -> int:
        """The matrix as a number: bit b is the b-th pair of ``np.triu_indices(7, 1)``."""
        pairs = itertools.combinations(range(MAX_VERTICES), 2)
        size = self.num_vertices
        return sum(
            self.matrix[i][j] << bit for bit, (i, j) in enumerate(pairs) if i < size and j < size
        )

    def pruned(self) -> Nb101Cell:
        """Return the cell without the vertices that are on no path from input to output."""
        matrix = self.matrix
        backward = tuple(zip(*(row[::-1] for row in matrix[::-1]), strict=True))
        last = self.num_vertices - 1
        leads = {last - v for v in _reached(backward)}
        kept = sorted(_reached(matrix) & leads)
        if len(kept) == self.num_vertices:
            return self
        rows = tuple(tuple(matrix[i][j] for j in kept) for i in kept)
        return Nb101Cell(rows, tuple(self.ops[v] for v in kept))

    def vertex_channels(self, in_channels: int, out_channels: int) -> tuple[int, ...]:
        """Return how many channels each vertex has, by the benchmark's rule, ``[num_vertices]``.

        The inner vertices that lead to the output share its channels equally, the first of them
        one more each until the remainder is spent, because the output concatenates them. Every
        other inner vertex has as many as the widest inner vertex it leads to. Where an edge joins
        inner vertices of different widths, the last channels of the source are dropped
        (:meth:`dropped_channels`). An edge from the input goes through a projection that gives the
        target's width.

        Args:
            in_channels: Of the input vertex.
            out_channels: Of the output vertex.

        Raises:
            ValueError: If a number is not positive, a vertex is on no path from input to output, or
                there are fewer output channels than vertices that share them.
        """
        if min(in_channels, out_channels) < 1:
            raise ValueError(
                f"channels: wanted at least 1, got {in_channels} in, {out_channels} out"
            )
        if self.pruned() is not self:
            raise ValueError("cell: wanted a pruned one, some vertex is on no path to the output")
        last = self.num_vertices - 1
        sharing = [v for v in range(1, last) if self.matrix[v][last]]
        if len(sharing) > out_channels:
            raise ValueError(
                f"out_channels: wanted at least {len(sharing)}, one for each vertex that leads to "
                f"the output, got {out_channels}"
            )
        channels = [0] * last + [out_channels]
        channels[0] = in_channels
        for place, v in enumerate(sharing):
            each, rest = divmod(out_channels, len(sharing))
            channels[v] = each + (place < rest)
        for v in range(last - 1, 0, -1):
            if not self.matrix[v][last]:
                channels[v] = max(channels[t] for t in range(v + 1, last) if self.matrix[v][t])
        return tuple(channels)

    def dropped_channels(self, in_channels: int, out_channels: int) -> dict[tuple[int, int], int]:
        """Return how many channels each edge between inner vertices drops: none or the last one.

        Raises:
            ValueError: As for :meth:`vertex_channels`.
        """
        channels = self.vertex_channels(in_channels, out_channels)
        inner = itertools.combinations(range(1, self.num_vertices - 1), 2)
        return {(i, j): channels[i] - channels[j] for i, j in inner if self.matrix[i][j]}

    def num_params(
        self,
        stem_channels: int = 128,
        stacks: int = 3,
        modules: int = 3,
        classes: int = 10,
        image_channels: int = 3,
    ) -> int:
        """Count the trainable parameters of the benchmark's network around this cell.

        A 3x3 stem, then stacks of modules, channels doubling from one stack to the next, then a
        dense layer. Every convolution has a batch norm with scale and shift and no bias.

        Raises:
            ValueError: As for :meth:`vertex_channels`.
        """

        def conv(kernel: int, sources: int, targets: int) -> int:
            return kernel * kernel * sources * targets + 2 * targets

        kernels = {"conv3x3-bn-relu": 3, "conv1x1-bn-relu": 1}
        params, width = conv(3, image_channels, stem_channels), stem_channels
        for layer in range(stacks * modules):
            before = width
            width *= 2 if layer and layer % modules == 0 else 1
            channels = self.vertex_channels(before, width)
            for v, (op, own) in enumerate(zip(self.ops, channels, strict=True)):
                params += conv(kernels[op], own, own) if op in kernels else 0
                params += conv(1, before, own) if self.matrix[0][v] else 0
        return params + (width + 1) * classes

    @property
    def hash(self) -> str:
        """The published 128-bit hash of the pruned cell, 32 hexadecimal digits.

        Every vertex starts from the MD5 of ``(out-degree, in-degree, label)``, where the label is
        -1 for the input, -2 for the output, otherwise the index in :data:`OPS`. As many rounds as
        there are vertices then replace it by the MD5 of the sorted hashes of its predecessors, of
        its successors, and its own, with ``|`` between the three. The result is the MD5 of the
        sorted list of them, written as Python writes a list.
        """
        cell = self.pruned()
        matrix, size = cell.matrix, cell.num_vertices
        labels = [-1, *(OPS.index(op) for op in cell.ops[1:-1]), -2]
        into = [[i for i in range(size) if matrix[i][v]] for v in range(size)]
        out_of = [[j for j in range(size) if matrix[v][j]] for v in range(size)]
        hashes = [_md5(str((len(out_of[v]), len(into[v]), labels[v]))) for v in range(size)]
        for _ in range(size):
            hashes = [
                _md5(
                    "".join(sorted(hashes[i] for i in into[v]))
                    + "|"
                    + "".join(sorted(hashes[j] for j in out_of[v]))
                    + "|"
                    + hashes[v]
                )
                for v in range(size)
            ]
        return _md5(str(sorted(hashes)))


def _md5(text: str) -> str:
    return hashlib.md5(text.encode("utf-8"), usedforsecurity=False).hexdigest()


def _reached(matrix: Matrix) -> set[int]:
    """Return the vertices that a path leads to from vertex 0, with it."""
    reached = {0}
    for v, row in enumerate(matrix):
        if v in reached:
            reached.update(j for j, entry in enumerate(row) if entry)
    return reached


class Nb101List(NamedTuple):
    """Cells of NAS-Bench-101 as arrays, sorted by hash.

    Attributes:
        hash: uint8 ``[cells, 16]``; ``bytes(row).hex()`` is :attr:`Nb101Cell.hash`.
        num_vertices: uint8 ``[cells]``.
        adj_bits: uint32 ``[cells]``, :attr:`Nb101Cell.adjacency_bits`.
        ops: Index in :data:`OPS` of each inner vertex, 255 past the last, uint8 ``[cells, 5]``.
    """

    hash: npt.NDArray[np.uint8]
    num_vertices: npt.NDArray[np.uint8]
    adj_bits: npt.NDArray[np.uint32]
    ops: npt.NDArray[np.uint8]

    def cell(self, row: int) -> Nb101Cell:
        """Return the cell of a row."""
        return cell_of(self.num_vertices[row], self.adj_bits[row], self.ops[row])


def cell_of(
    num_vertices: SupportsInt, adjacency_bits: SupportsInt, ops: npt.NDArray[np.integer]
) -> Nb101Cell:
    """Return the cell of a row of :class:`Nb101List` or of a published table of this form.

    Raises:
        ValueError: If it is no valid cell.
    """
    size, bits = int(num_vertices), int(adjacency_bits)
    if not 2 <= size <= MAX_VERTICES:
        raise ValueError(f"num_vertices: wanted 2..{MAX_VERTICES}, got {size}")
    matrix = [[0] * size for _ in range(size)]
    for bit, (i, j) in enumerate(itertools.combinations(range(MAX_VERTICES), 2)):
        if bits >> bit & 1:
            if j >= size:
                raise ValueError(f"adjacency_bits: an edge ({i}, {j}), but {size} vertices")
            matrix[i][j] = 1
    inner = [int(k) for k in ops[: size - 2]]
    for v, k in enumerate(inner, start=1):
        if k >= len(OPS):
            raise ValueError(f"ops: wanted an index in 0..{len(OPS) - 1} for vertex {v}, got {k}")
    return Nb101Cell.from_lists(matrix, [INPUT, *(OPS[k] for k in inner), OUTPUT])


def enumerate_nb101(
    max_vertices: int = MAX_VERTICES, on_progress: Callable[[int, int], None] | None = None
) -> Nb101List:
    """List every distinct cell of up to so many vertices: 423,624 of up to 7.

    Cells are distinct by their hash, and no two cells that are not isomorphic share one
    (:func:`count_classes`). Of each class the list holds the cell that the authors' generator meets
    first: the fewest vertices; then the smallest number whose bits, from the lowest, are the edges
    by target, then source; then the lexicographically smallest operation indices.

    Args:
        max_vertices: 2..7, with input and output.
        on_progress: Called with the labelled cells looked at and their total.

    Raises:
        ValueError: If ``max_vertices`` is out of range.
        ImportError: If ``nasfast._host`` is not built.
    """
    return Nb101List(*native.host().nb101_cells(max_vertices, on_progress)[:4])


def count_classes(max_vertices: int = MAX_VERTICES) -> int:
    """Count the cells of up to so many vertices that are distinct as graphs, without their hashes.

    Two cells are the same graph if inner vertices can be renumbered so that edges and operations
    agree. That the count equals the number of distinct hashes shows that the hash never confuses
    two of them.

    Raises:
        ValueError: If ``max_vertices`` is out of range.
        ImportError: If ``nasfast._host`` is not built.
    """
    return int(native.host().nb101_cells(max_vertices, None)[4])


def hash_cells(
    num_vertices: npt.NDArray[np.uint8],
    adjacency_bits: npt.NDArray[np.uint32],
    ops: npt.NDArray[np.uint8],
) -> npt.NDArray[np.uint8]:
    """Hash many cells, each pruned first; :attr:`Nb101Cell.hash` is the definition.

    Args:
        num_vertices: ``[cells]``.
        adjacency_bits: ``[cells]``.
        ops: ``[cells, 5]``, as in :class:`Nb101List`.

    Returns:
        uint8 ``[cells, 16]``.

    Raises:
        ValueError: If shapes differ or a cell is not valid; the message names the cell.
        ImportError: If ``nasfast._host`` is not built.
    """
    return native.host().nb101_hashes(num_vertices, adjacency_bits, ops)
