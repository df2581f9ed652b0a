# SPDX-License-Identifier: MIT
"""Official results of trainings as columns: what ``nasfast import table`` writes.

A file of :mod:`nasfast.tables.columns`. Its rows are architectures, named by one key column:

============  ==========================================================================
``index``     official index, ascending, int64 ``[rows]`` (NAS-Bench-201, NATS-Bench)
``hash``      MD5 of the graph, ascending as bytes, uint8 ``[rows, 16]`` (NAS-Bench-101)
============  ==========================================================================

What trainings came to is in columns ``{dataset}/{schedule}/{quantity}``, for instance
``cifar10/200/test_accuracy``; the schedule is the name of the training's length, mostly its epochs:

=====================  ===================================================================
``.../seeds``          number of each run, int32 ``[rows, seeds]``; -1: there is no such run
``.../<quantity>``     at the end of training, float32 ``[rows, seeds]``
``.../<quantity>``     or after each epoch, the last one last, float32
                       ``[rows, seeds, epochs]``
=====================  ===================================================================

NaN is a value that the source does not have. A quantity ends in ``_accuracy`` (a fraction between
0 and 1, whatever the source used), ``_loss`` (mean cross-entropy of an image, in nats) or
``_seconds``. Usual ones: ``train_loss``, ``train_accuracy``, ``valid_loss``, ``valid_accuracy``,
``test_loss``, ``test_accuracy``, ``train_seconds``. Other columns, with fewer than two slashes in
the name, belong to the architecture: ``parameters``, ``adjacency``, ``cifar10/flops``...

The header has ``space``, ``release``, ``sources`` (name, bytes, sha256 of each file that was
read), ``units``, ``missing`` (sentences: what the official release has and this file has not),
``checks`` and ``importer`` (version of nasfast).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nasfast.spaces.block_spec import BlockSpec
from nasfast.spaces.space import Space
from nasfast.tables.columns import Column, Columns, open_columns, write_columns
from nasfast.tables.hashes import space_hashes
from nasfast.tables.table import Table

NB101 = "nb101"

Floats = npt.NDArray[np.float64]

UNITS = {"_accuracy": "fraction", "_loss": "nats", "_seconds": "s"}
_KEYS = {"index": (np.int64, 1), "hash": (np.uint8, 2)}
_NAME = re.compile(r"[^/]+/[^/]+/[a-z][a-z0-9_]*")
_HEADER = ("space", "release", "sources", "units", "missing", "checks", "importer")


def write_curve_table(
    path: str | os.PathLike[str], header: Mapping[str, Any], columns: Mapping[str, Column]
) -> None:
    """Write official results as a whole or not at all.

    Args:
        path: File to write.
        header: As the module says, without ``units``.
        columns: As the module says.

    Raises:
        ValueError: If a column is not as the module says; nothing is written.
        OSError: If it cannot be written; what was there before is still there.
    """
    full = {**header, "units": {f"*{suffix}": unit for suffix, unit in UNITS.items()}}
    shapes = {name: (columns[name].dtype, columns[name].shape) for name in columns}
    _check_header(full)
    _check_shapes(shapes)
    _check_keys(columns)
    for name in columns:
        if name.count("/") == 2:
            _check_values(name, columns[name], columns[_seeds_name(name)])
    write_columns(path, full, columns)


class CurveTable:
    """Official results of trainings, read when they are used.

    Attributes:
        columns: The file.
        space: Name of the space: ``"nb201"``, ``"nb101"``.
        release: Which official release it is of.
        rows: Number of architectures.
    """

    def __init__(self, columns: Columns) -> None:
        """Take columns that are already open.

        Raises:
            ValueError: If they are no official results as the module says.
        """
        try:
            _check_header(columns.header)
            arrays = {name: columns.array(name) for name in columns.names}
            _check_shapes({name: (array.dtype, array.shape) for name, array in arrays.items()})
        except ValueError as error:
            raise ValueError(f"{columns.path}: not a usable table: {error}") from None
        self.columns = columns
        self.space: str = columns.header["space"]
        self.release: str = columns.header["release"]
        self.rows = columns.rows

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> CurveTable:
        """Open a file without reading its columns.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no such file, or what it says of its columns is damaged.
        """
        return cls(open_columns(path))

    @property
    def quantities(self) -> tuple[str, ...]:
        """Names of the columns with results, sorted, without those of the seeds."""
        return tuple(
            name
            for name in self.columns.names
            if name.count("/") == 2 and not name.endswith("/seeds")
        )

    @property
    def indices(self) -> npt.NDArray[np.int64]:
        """Official index of each row, ascending.

        Raises:
            ValueError: If the rows are named by hashes.
        """
        if "index" not in self.columns.names:
            raise ValueError(
                f"{self.columns.path}: wanted rows by official index, got rows by hash"
            )
        return self.columns.array("index")

    def rows_of_hashes(self, hashes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Find rows by the MD5 of the graph.

        Args:
            hashes: uint8 ``[n, 16]``.

        Returns:
            Row of each, -1 where there is none, int64 ``[n]``.

        Raises:
            ValueError: If the rows are named by official indices, or hashes are of another shape.
        """
        if "hash" not in self.columns.names:
            raise ValueError(
                f"{self.columns.path}: wanted rows by hash, got rows by official index"
            )
        if hashes.dtype != np.uint8 or hashes.ndim != 2 or hashes.shape[1] != 16:
            raise ValueError(f"hashes: wanted uint8 [n, 16], got {hashes.dtype} {hashes.shape}")
        known = _as_bytes(self.columns.array("hash"))
        wanted = _as_bytes(hashes)
        found = np.searchsorted(known, wanted)
        found[found == len(known)] = 0
        hit = known[found] == wanted if len(known) else np.zeros(len(wanted), dtype=bool)
        return np.where(hit, found, -1).astype(np.int64)

    def seeds(self, dataset: str, schedule: str | int) -> tuple[int, ...]:
        """Return the numbers of the runs that any row has, ascending."""
        numbers = np.unique(self.columns.array(f"{dataset}/{schedule}/seeds"))
        return tuple(int(number) for number in numbers if number >= 0)

    def curve(
        self, dataset: str, schedule: str | int, quantity: str, seed: int | None = None
    ) -> Floats:
        """Return a quantity after each epoch.

        Args:
            dataset: As in the name of the column.
            schedule: Likewise.
            quantity: Likewise.
            seed: Number of one run, or the mean over the runs that have a value.

        Returns:
            float64 ``[rows, epochs]``; NaN where there is no value. A quantity that is known at
            the end alone has one epoch.

        Raises:
            ValueError: If there is no such column, or no run of this number.
        """
        values = self.columns.array(f"{dataset}/{schedule}/{quantity}")
        curves = values if values.ndim == 3 else values[:, :, None]
        if seed is None:
            return mean_of_known(curves, axis=1)
        return self._of_seed(f"{dataset}/{schedule}", curves, seed)

    def truth(
        self,
        dataset: str,
        schedule: str | int,
        quantity: str = "test_accuracy",
        seed: int | None = None,
    ) -> Floats:
        """Return a quantity at the end of training, float64 ``[rows]``.

        The arguments and errors are those of :meth:`curve`.
        """
        values = self.columns.array(f"{dataset}/{schedule}/{quantity}")
        last = values[:, :, -1] if values.ndim == 3 else values
        if seed is None:
            return mean_of_known(last, axis=1)
        return self._of_seed(f"{dataset}/{schedule}", last[:, :, None], seed)[:, 0]

    def last_epochs_mean(
        self,
        dataset: str,
        schedule: str | int,
        quantity: str = "test_accuracy",
        seed: int | None = None,
        k: int = 3,
    ) -> Floats:
        """Return the mean of a quantity over the last epochs, float64 ``[rows]``.

        A run that lacks one of the epochs has no such mean. The other arguments and errors are
        those of :meth:`curve`.

        Raises:
            ValueError: Also if the column has fewer epochs than k, or k is not positive.
        """
        name = f"{dataset}/{schedule}/{quantity}"
        values = self.columns.array(name)
        epochs = values.shape[2] if values.ndim == 3 else 1
        if not 1 <= k <= epochs:
            raise ValueError(f"k: wanted 1 to {epochs}, the epochs of {name}, got {k}")
        curves = values[:, :, -k:] if values.ndim == 3 else values[:, :, None]
        means = curves.mean(axis=2, dtype=np.float64)
        if seed is None:
            return mean_of_known(means, axis=1)
        return self._of_seed(f"{dataset}/{schedule}", means[:, :, None], seed)[:, 0]

    def as_table(self, space: Space, column: str | None) -> Table:
        """Return a quantity at the end of training by official index of a space.

        Args:
            space: The space that the rows belong to; of NAS-Bench-101's, a space of choice blocks,
                whose architectures have the values of their cells, NaN where there is none.
            column: ``"dataset/schedule/quantity"`` for the mean over runs, and with ``"/777"``
                after it that of run 777 alone.

        Raises:
            ValueError: If the table is of another space or has no such column or run.
        """
        path = self.columns.path
        by_hash = self.space == NB101 and isinstance(space, BlockSpec)
        if self.space != space.name and not by_hash:
            raise ValueError(f"{path}: wanted a table of {space.name}, got one of {self.space}")
        parts = (column or "").split("/")
        name = "/".join(parts[:3])
        if len(parts) not in (3, 4) or name not in self.quantities:
            raise ValueError(
                f"{path}: wanted one of {', '.join(self.quantities)} as column, if need be with "
                f"the number of a run after it as in {self.quantities[0]}/0, got {column!r}"
            )
        seed = None
        if len(parts) == 4:
            if not parts[3].isdecimal():
                raise ValueError(f"{path}: wanted the number of a run, got {column!r}")
            seed = int(parts[3])
        words = f"{parts[2].replace('_', ' ')}, {parts[0]}, {parts[1]}, "
        words += "mean of the runs" if seed is None else f"run {seed}"
        if isinstance(space, BlockSpec):
            rows = self.rows_of_hashes(space_hashes(space))
            values = np.append(self.truth(parts[0], parts[1], parts[2], seed), np.nan)
            return Table(f"{path.name}:{column}", words, values[rows])  # the last where rows are -1
        indices = self.indices
        if len(indices) and (indices.min() < 0 or indices.max() >= space.num_archs):
            raise ValueError(
                f"{path}: wanted official indices below {space.num_archs}, "
                f"got {indices.min()} to {indices.max()}"
            )
        truth = np.full(space.num_archs, np.nan)
        truth[indices] = self.truth(parts[0], parts[1], parts[2], seed)
        return Table(f"{path.name}:{column}", words, truth)

    def _of_seed(self, group: str, values: Column, seed: int) -> Floats:
        seeds = self.columns.array(f"{group}/seeds")
        chosen = seeds == seed
        if not chosen.any():
            known = ", ".join(map(str, np.unique(seeds[seeds >= 0]).tolist()))
            raise ValueError(f"seed: wanted one of {known or 'none'} of {group}, got {seed}")
        found = np.full((values.shape[0], values.shape[2]), np.nan)
        rows, places = np.nonzero(chosen)
        found[rows] = values[rows, places]
        return found


def mean_of_known(values: Column, axis: int) -> Floats:
    """Return the mean of what is not NaN, NaN where there is nothing; in float64."""
    known = ~np.isnan(values)
    total = np.sum(values, axis=axis, dtype=np.float64, where=known)
    count = known.sum(axis=axis)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _as_bytes(hashes: npt.NDArray[np.uint8]) -> npt.NDArray[np.bytes_]:
    """Return hashes as one item each; zeros at the end make no difference among equal lengths."""
    return np.ascontiguousarray(hashes).view("S16")[:, 0]


def _seeds_name(name: str) -> str:
    return f"{name.rpartition('/')[0]}/seeds"


def _check_header(header: Mapping[str, Any]) -> None:
    lacking = [key for key in _HEADER if key not in header]
    if lacking:
        raise ValueError(f"header: {', '.join(lacking)} missing")
    for key in ("space", "release", "importer"):
        if not isinstance(header[key], str):
            raise ValueError(f"header: wanted text in {key!r}, got {header[key]!r:.60}")
    for key in ("sources", "missing", "checks"):
        if not isinstance(header[key], Sequence) or isinstance(header[key], str):
            raise ValueError(f"header: wanted a list in {key!r}, got {header[key]!r:.60}")


def _check_shapes(columns: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> None:
    keys = [key for key in _KEYS if key in columns]
    if len(keys) != 1:
        raise ValueError(
            f"columns: wanted one of index and hash, got {' and '.join(keys) or 'none'}"
        )
    dtype, ndim = _KEYS[keys[0]]
    got, shape = columns[keys[0]]
    if got != dtype or len(shape) != ndim or (keys[0] == "hash" and shape[1] != 16):
        raise ValueError(f"columns[{keys[0]!r}]: got {got} {list(shape)}")
    found = [name for name in columns if name.count("/") >= 2]
    if not found:
        raise ValueError("columns: wanted results dataset/schedule/quantity, got none")
    for name in found:
        if not _NAME.fullmatch(name):
            raise ValueError(f"columns: wanted a name dataset/schedule/quantity, got {name!r}")
        got, shape = columns[name]
        if name.endswith("/seeds"):
            if got != np.int32 or len(shape) != 2:
                raise ValueError(
                    f"columns[{name!r}]: wanted int32 [rows, seeds], got {got} {shape}"
                )
            continue
        if not name.endswith(tuple(UNITS)):
            raise ValueError(f"columns: wanted a quantity in {', '.join(UNITS)}, got {name!r}")
        if _seeds_name(name) not in columns:
            raise ValueError(f"columns: {_seeds_name(name)!r} is missing beside {name!r}")
        runs = columns[_seeds_name(name)][1]
        if got != np.float32 or shape[:2] != runs or len(shape) not in (2, 3) or 0 in shape[2:]:
            raise ValueError(
                f"columns[{name!r}]: wanted float32 {list(runs)} or with epochs, "
                f"got {got} {list(shape)}"
            )


def _check_keys(columns: Mapping[str, Column]) -> None:
    """Check that rows ascend, each named once."""
    name = "index" if "index" in columns else "hash"
    keys = columns[name] if name == "index" else _as_bytes(columns[name])
    order = np.sort(keys)
    if not np.array_equal(order, keys) or (order[1:] == order[:-1]).any():
        raise ValueError(f"columns[{name!r}]: wanted each row once and ascending")
    if name == "index" and len(keys) and keys[0] < 0:
        raise ValueError(f"columns['index']: wanted official indices from 0, got {keys[0]}")


def _check_values(name: str, column: Column, seeds: Column) -> None:
    if name.endswith("/seeds"):
        ordered = np.sort(column, axis=1)
        twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
        if twice.any():
            row = int(np.flatnonzero(twice.any(axis=1))[0])
            raise ValueError(
                f"columns[{name!r}]: row {row} has a run twice: {column[row].tolist()}"
            )
        if column.size and column.min() < -1:
            raise ValueError(f"columns[{name!r}]: wanted numbers of runs or -1, got {column.min()}")
        return
    if not np.isnan(column[seeds < 0]).all():
        raise ValueError(f"columns[{name!r}]: has values of runs that {_seeds_name(name)!r} lacks")
    if np.isinf(column).any():
        raise ValueError(f"columns[{name!r}]: has infinite values")
    largest = 1.0 if name.endswith("_accuracy") else np.inf
    if column.size and (np.fmin.reduce(column, None) < 0 or np.fmax.reduce(column, None) > largest):
        raise ValueError(
            f"columns[{name!r}]: wanted values from 0 to {largest}, "
            f"got {np.nanmin(column)} to {np.nanmax(column)}"
        )
