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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

INPUT, OUTPUT = "input", "output"
# In the published order, which the hash depends on.
OPS = ("conv3x3-bn-relu", "conv1x1-bn-relu", "maxpool3x3")
MAX_VERTICES = 7
MAX_EDGES = 9

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
