# SPDX-License-Identifier: MIT
"""NAS-Bench-101 as its authors publish it.

That is ``nasbench_only108.tfrecord`` or ``nasbench_full.tfrecord``. A record is one training, JSON:
``[hash, epochs, adjacency, operations, metrics]``, where adjacency is a string of digits row by
row, operations are joined by commas, and metrics is the base64 of a ``ModelMetrics`` message of
protocol buffers, with evaluations at the beginning, halfway and at the end. Trainings of one length
of one architecture are its repeats, in the order of the file.

Columns beside those of the results (:mod:`nasfast.tables.curve_table`), the dataset being
``cifar10`` and the schedule 4, 12, 36 or 108; the runs are numbered 0, 1, 2:

=================  ====================================================================
``hash``           as in the file, uint8 ``[rows, 16]``
``vertices``       of the module, int8 ``[rows]``
``adjacency``      0 or 1, uint8 ``[rows, 7, 7]``; 0 behind the last vertex
``operations``     int8 ``[rows, 7]``: -1 input, -2 output, 0 conv3x3-bn-relu,
                   1 conv1x1-bn-relu, 2 maxpool3x3; -3 behind the last vertex
``parameters``     trainable ones, int32 ``[rows]``
=================  ====================================================================

Source:
    Ying et al., NAS-Bench-101, ICML 2019; format and sizes: github.com/google-research/nasbench.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nasfast.spaces.nb101 import NO_OP, hash_cells
from nasfast.tables.columns import Column
from nasfast.tables.curve_table import mean_of_known
from nasfast.tables.importers import Check, Imported, Importer, OnProgress, Source
from nasfast.tables.nb101_records import (
    NO_VERTEX,
    QUANTITIES,
    VERTICES,
    RecordError,
    graph_of,
    hash_of,
    joined,
    metrics_of,
)
from nasfast.tables.tfrecord import Batch, read_records

ROWS = 423_624
REPEATS = 3
BUDGETS = (4, 12, 36, 108)

# Best means of three repeats after 108 epochs, as many papers print them.
_BEST = {"test_accuracy": 0.943175752957662, "valid_accuracy": 0.9505542318026224}
_PUBLISHED = {
    "4c39c3936e36a85269881d659e44e61a245babcb72cb374eacacf75d0e5f4fd1": "nasbench_only108.tfrecord",
    "3d64db8180fb1b0207212f9032205064312b6907a3bbc81eabea10db2f5c7e9c": "nasbench_full.tfrecord",
}


def why_not(path: Path) -> str | None:
    """Say why a path is no TFRecord file of NAS-Bench-101; None: it is, or is a damaged one."""
    if not path.is_file():
        return "not a file"
    with path.open("rb") as file:
        start = file.read(64)
    if b'["' in start[12:16] or path.suffix == ".tfrecord":
        return None
    return "does not end in .tfrecord and does not begin with a record of JSON"


def read(path: Path, on_progress: OnProgress) -> Imported:
    """Read a file of NAS-Bench-101.

    Raises:
        ValueError: If a record is damaged, is none of NAS-Bench-101, or does not fit the others.
    """
    size, done, digest = path.stat().st_size, 0, hashlib.sha256()

    def on_bytes(piece: bytes) -> None:
        nonlocal done
        digest.update(piece)
        done += len(piece)
        on_progress(done, size)

    trainings = _Trainings(path)
    for batch in read_records(path, on_bytes):
        trainings.add(batch)
    return trainings.imported(Source(path.name, size, digest.hexdigest()))


IMPORTER = Importer("NAS-Bench-101 tfrecord", why_not, read)


class _Trainings:
    """What the records so far come to; rows in the order of the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.row_of: dict[bytes, int] = {}
        self.graphs: list[int] = []  # Python's hash of adjacency and operations as written
        # Memory that nothing was written to takes none.
        self.parameters = np.zeros(ROWS, dtype=np.int32)
        self.vertices = np.zeros(ROWS, dtype=np.int8)
        self.adjacency = np.zeros((ROWS, VERTICES, VERTICES), dtype=np.uint8)
        self.operations = np.full((ROWS, VERTICES), NO_VERTEX, dtype=np.int8)
        self.runs: dict[int, bytearray] = {}
        self.values: dict[int, npt.NDArray[np.float32]] = {}  # [rows, repeats, when, quantity]

    def add(self, batch: Batch) -> None:
        """Take in some records."""
        try:
            entries = _parsed(batch)
            rows = np.empty(len(entries), dtype=np.int64)
            epochs, repeats = rows.copy(), rows.copy()
            first = []  # the first record of an architecture
            for index, entry in enumerate(entries):
                known = len(self.row_of)
                try:
                    rows[index], epochs[index], repeats[index] = self._place(entry)
                except (ValueError, TypeError) as error:
                    raise RecordError(index, str(error)) from None
                if len(self.row_of) > known:
                    first.append(index)
            self._check_graphs(first)
            parameters, values = metrics_of([entry[4] for entry in entries])
            self.parameters[rows[first]] = parameters[first]
            odd = np.flatnonzero(parameters != self.parameters[rows])
            if len(odd):
                raise RecordError(
                    int(odd[0]),
                    f"parameters: wanted {self.parameters[rows[odd[0]]]} as in another record of "
                    f"hash {entries[odd[0]][0]}, got {parameters[odd[0]]}",
                )
        except RecordError as error:
            raise ValueError(f"{self.path}: {batch.place(error.index)}: {error}") from None
        for budget in np.unique(epochs).tolist():
            of = epochs == budget
            self.values[budget][rows[of], repeats[of]] = values[of]

    def _place(self, entry: Any) -> tuple[int, int, int]:
        """Return row, epochs and number of a training; make the row if it is the first."""
        if not isinstance(entry, list) or len(entry) != 5:
            raise ValueError(
                f"wanted [hash, epochs, adjacency, operations, metrics], got {entry!r:.80}"
            )
        text, epochs, adjacency, operations, _ = entry
        if not isinstance(adjacency, str) or not isinstance(operations, str):
            raise ValueError(
                f"adjacency, operations: wanted text, got {adjacency!r:.60}, {operations!r:.60}"
            )
        key = hash_of(text)
        row = self.row_of.get(key)
        if row is None:
            row = self._new_row(key, adjacency, operations)
        elif hash((adjacency, operations)) != self.graphs[row]:
            # The vertices may be in another order; the first one is kept.
            count, matrix, labels = _padded(adjacency, operations)
            if why := _why_none_of(key, count[None], matrix[None], labels[None]):
                raise ValueError(f"{why}; an earlier record of this hash has another graph")
        # JSON's 108.0 and true are equal to integers.
        if type(epochs) is not int or epochs not in BUDGETS:
            raise ValueError(f"epochs: wanted one of {BUDGETS}, got {epochs!r:.80}")
        runs = self.runs.get(epochs)
        if runs is None:
            runs = self.runs[epochs] = bytearray(ROWS)
            shape = (ROWS, REPEATS, 2, len(QUANTITIES))
            self.values[epochs] = np.zeros(shape, dtype=np.float32)
        repeat = runs[row]
        if repeat == REPEATS:
            raise ValueError(
                f"wanted {REPEATS} trainings of {epochs} epochs of hash {text}, got one more"
            )
        runs[row] = repeat + 1
        return row, epochs, repeat

    def _new_row(self, key: bytes, adjacency: str, operations: str) -> int:
        row = len(self.row_of)
        if row == ROWS:
            raise ValueError(f"wanted {ROWS:,} architectures, got one more: hash {key.hex()}")
        graph = _padded(adjacency, operations)
        self.row_of[key] = row
        self.graphs.append(hash((adjacency, operations)))
        self.vertices[row], self.adjacency[row], self.operations[row] = graph
        return row

    def _check_graphs(self, first: list[int]) -> None:
        """Check the graphs of the last rows, which these records of the batch began."""
        begin, end = len(self.row_of) - len(first), len(self.row_of)
        if begin == end:
            return
        keys = b"".join(islice(reversed(self.row_of), len(first)))
        written = np.frombuffer(keys, dtype=np.uint8).reshape(-1, 16)[::-1]
        new = slice(begin, end)
        graphs = (self.vertices[new], self.adjacency[new], self.operations[new])
        sound = joined(graphs[0], graphs[1])
        if sound.all():
            sound = (_hashes(*graphs) == written).all(axis=1)
        if not sound.all():
            place = int(np.argmin(sound))
            one = slice(place, place + 1)
            why = _why_none_of(
                written[place].tobytes(), graphs[0][one], graphs[1][one], graphs[2][one]
            )
            raise RecordError(first[place], str(why))

    def imported(self, source: Source) -> Imported:
        """Return all as columns, sorted by hash."""
        rows = len(self.row_of)
        if not rows:
            raise ValueError(f"{self.path}: wanted records, got none")
        columns = _Sorted(self)
        budgets = sorted(self.runs)
        only108 = budgets == [108]
        published = _PUBLISHED.get(source.sha256)
        name = "NAS-Bench-101 only108" if only108 else "NAS-Bench-101 full"
        missing = self._missing((108,) if only108 else BUDGETS)
        notes = [
            f"sha256 is that of the published {published}"
            if published
            else "sha256 is that of no published file",
            "no losses and no curves in this source: evaluations halfway and at the end",
        ]
        checks = []
        if 108 in budgets and not missing:
            for quantity, wanted in _BEST.items():
                got = float(np.max(mean_of_known(columns[f"cifar10/108/{quantity}"], axis=1)))
                good = bool(abs(got - wanted) < 1e-6)
                what = f"best mean {quantity.replace('_', ' ')} after 108 epochs"
                checks.append(Check(what, f"{wanted:.6f}", f"{got:.6f}", good))
        return Imported("nb101", name, columns, [source], missing, checks, notes)

    def _missing(self, budgets: tuple[int, ...]) -> list[str]:
        rows, missing = len(self.row_of), []
        if rows < ROWS:
            missing.append(f"{ROWS - rows:,} of {ROWS:,} architectures")
        for budget in budgets:
            runs = self.runs.get(budget)
            lacking = rows * REPEATS - (sum(runs or b""))
            if lacking:
                missing.append(
                    f"{lacking:,} of {rows * REPEATS:,} trainings of {budget} epochs of the "
                    f"architectures it has"
                )
        return missing


class _Sorted(Mapping[str, Column]):
    """The columns in the order of the hashes, made when they are asked for."""

    def __init__(self, trainings: _Trainings) -> None:
        rows = len(trainings.row_of)
        hashes = np.frombuffer(b"".join(trainings.row_of), dtype=np.uint8).reshape(rows, 16)
        order = np.argsort(hashes.view("S16")[:, 0], kind="stable")
        kept = {
            "vertices": trainings.vertices,
            "adjacency": trainings.adjacency,
            "operations": trainings.operations,
            "parameters": trainings.parameters,
        }
        self._makers: dict[str, Callable[[], Column]] = {"hash": lambda: hashes[order]}
        for name, column in kept.items():
            self._makers[name] = partial(np.take, column, order, axis=0)
        for budget, runs in trainings.runs.items():
            counts = np.frombuffer(runs, dtype=np.uint8)[order]
            have = np.arange(REPEATS, dtype=np.int32) < counts[:, None]
            numbers = np.where(have, np.arange(REPEATS, dtype=np.int32), np.int32(-1))
            self._makers[f"cifar10/{budget}/seeds"] = numbers.copy
            values = trainings.values[budget]
            for when, prefix in enumerate(("halfway_", "")):
                for place, quantity in enumerate(QUANTITIES):
                    self._makers[f"cifar10/{budget}/{prefix}{quantity}"] = partial(
                        _present, values[:, :, when, place], order, have
                    )

    def __getitem__(self, name: str) -> Column:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def _padded(
    adjacency: str, operations: str
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.uint8], npt.NDArray[np.int8]]:
    """Return vertices ``[]``, adjacency ``[7, 7]`` and operations ``[7]`` of a graph as written."""
    matrix, labels = graph_of(adjacency, operations)
    count = len(labels)
    square = np.zeros((VERTICES, VERTICES), dtype=np.uint8)
    square[:count, :count] = matrix
    padded = np.full(VERTICES, NO_VERTEX, dtype=np.int8)
    padded[:count] = labels
    return np.array(count, dtype=np.int8), square, padded


def _why_none_of(
    key: bytes,
    vertices: npt.NDArray[np.int8],
    adjacency: npt.NDArray[np.uint8],
    operations: npt.NDArray[np.int8],
) -> str | None:
    """Say why the only one of some graphs is not that of a hash; None: it is."""
    if not joined(vertices, adjacency).all():
        return f"adjacency: no path leads from input to output in the graph of hash {key.hex()}"
    found = _hashes(vertices, adjacency, operations).tobytes()
    return None if found == key else f"hash: wanted {found.hex()} for its graph, got {key.hex()}"


def _hashes(
    vertices: npt.NDArray[np.int8],
    adjacency: npt.NDArray[np.uint8],
    operations: npt.NDArray[np.int8],
) -> npt.NDArray[np.uint8]:
    """Compute the published hash of each graph, uint8 ``[graphs, 16]``."""
    rows, columns = np.triu_indices(VERTICES, 1)
    bits = adjacency[:, rows, columns].astype(np.uint32) @ (
        np.uint32(1) << np.arange(len(rows), dtype=np.uint32)
    )
    inner = np.where(operations[:, 1:-1] < 0, NO_OP, operations[:, 1:-1]).astype(np.uint8)
    return hash_cells(vertices.astype(np.uint8), bits.astype(np.uint32), inner)


def _present(values: Column, order: Column, have: Column) -> Column:
    """Return values of rows in another order, NaN where there is no run."""
    return np.where(have, values[order], np.float32(np.nan))


def _parsed(batch: Batch) -> list[Any]:
    """Return the JSON of each record; all at once because that is faster."""
    try:
        entries = json.loads(b"[" + b",".join(batch.records) + b"]")
        if len(entries) == len(batch.records):
            return entries
    except (ValueError, RecursionError):
        pass  # one by one, to say which
    entries = []
    for index, record in enumerate(batch.records):
        try:
            entries.append(json.loads(record))
        except (ValueError, RecursionError) as error:
            raise RecordError(index, f"wanted JSON, got {record!r:.80} ({error})") from None
    return entries
