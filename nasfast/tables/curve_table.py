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

NaN is a value that the source does not have, or that is not finite there; where a source has
infinite ones, a note of the header counts them. A quantity ends in ``_accuracy`` (a fraction
between 0 and 1, whatever the source used), ``_loss`` (mean cross-entropy of an image, in nats) or
``_seconds``. Usual ones: ``train_loss``, ``train_accuracy``, ``valid_loss``, ``valid_accuracy``,
``test_loss``, ``test_accuracy``, ``train_seconds``. Other columns, with fewer than two slashes in
the name, belong to the architecture: ``parameters``, ``adjacency``, ``cifar10/flops``...

The header has ``space``, ``release``, ``sources`` (name, bytes, sha256 of each file that was
read), ``units``, ``missing`` (sentences: what the official release has and this file has not),
``checks`` and ``importer`` (version of nasfast).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from nasfast.spaces.block_spec import BlockSpec
from nasfast.spaces.space import Space
from nasfast.tables.columns import Column, Columns, open_columns, write_columns
from nasfast.tables.curve_checks import (
    KEYS,
    UNITS,
    check_header,
    check_keys,
    check_shapes,
    check_values,
    seeds_name,
)
from nasfast.tables.hashes import rows_of, space_hashes
from nasfast.tables.table import Table

NB101 = "nb101"

Floats = npt.NDArray[np.float64]


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
    check_header(full)
    check_shapes(shapes)
    check_keys(columns)
    for name in columns:
        if name.count("/") == 2:
            check_values(name, columns[name], columns[seeds_name(name)])
    write_columns(path, full, columns)


class CurveTable:
    """Official results of trainings, read when they are used.

    Attributes:
        columns: The file.
        space: Name of the space: ``"nb201"``, ``"nats-sss"``, ``"nb101"``.
        release: Which official release it is of.
        rows: Number of architectures.
    """

    def __init__(self, columns: Columns) -> None:
        """Take columns that are already open.

        Raises:
            ValueError: If they are no official results as the module says.
        """
        try:
            check_header(columns.header)
            arrays = {name: columns.array(name) for name in columns.names}
            check_shapes({name: (array.dtype, array.shape) for name, array in arrays.items()})
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
            ValueError: If the rows are named by official indices or are not ascending, or hashes
                are of another shape.
        """
        if "hash" not in self.columns.names:
            raise ValueError(
                f"{self.columns.path}: wanted rows by hash, got rows by official index"
            )
        try:
            return rows_of(self.columns.array("hash"), hashes)
        except ValueError as error:
            raise ValueError(f"{self.columns.path}: {error}") from None

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
            ValueError: If there is no such column of results, or no run of this number.
        """
        values = self._results(f"{dataset}/{schedule}/{quantity}")
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
        values = self._results(f"{dataset}/{schedule}/{quantity}")
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
        values = self._results(name)
        epochs = values.shape[2] if values.ndim == 3 else 1
        if not 1 <= k <= epochs:
            raise ValueError(f"k: wanted 1 to {epochs}, the epochs of {name}, got {k}")
        curves = values[:, :, -k:] if values.ndim == 3 else values[:, :, None]
        means = curves.mean(axis=2, dtype=np.float64)
        if seed is None:
            return mean_of_known(means, axis=1)
        return self._of_seed(f"{dataset}/{schedule}", means[:, :, None], seed)[:, 0]

    def as_table(self, space: Space, column: str | None) -> Table:
        """Return an accuracy or a loss at the end of training by official index of a space.

        Losses are negated, as higher is better. The columns that are used are compared with their
        checksums.

        Args:
            space: The space that the rows belong to; of NAS-Bench-101's, a space of choice blocks,
                whose architectures have the values of their cells, NaN where there is none.
            column: ``"dataset/schedule/quantity"`` for the mean over runs, and with ``"/777"``
                after it that of run 777 alone.

        Raises:
            ValueError: If the table is of another space, is damaged, has no such column or run, or
                no value of any architecture of the space.
        """
        path = self.columns.path
        by_hash = self.space == NB101 and isinstance(space, BlockSpec)
        if self.space != space.name and not by_hash:
            raise ValueError(f"{path}: wanted a table of {space.name}, got one of {self.space}")
        parts = (column or "").split("/")
        name = "/".join(parts[:3])
        if len(parts) not in (3, 4) or name not in self.quantities:
            near = difflib.get_close_matches(name, self.quantities, n=1, cutoff=0.0)
            raise ValueError(
                f"{path}: wanted one of its {len(self.quantities)} columns of results, if need be "
                f"with the number of a run after it as in {self.quantities[0]}/0, got {column!r}; "
                f"nearest: {near[0]}"
            )
        seed = None
        if len(parts) == 4:
            if not parts[3].isdecimal():
                raise ValueError(f"{path}: wanted the number of a run, got {column!r}")
            seed = int(parts[3])
        words = f"{parts[2].replace('_', ' ')}, {parts[0]}, {parts[1]}, "
        words += "mean of the runs" if seed is None else f"run {seed}"
        try:
            values, words = higher_is_better(name, self._checked_truth(name, seed), words)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        if isinstance(space, BlockSpec):
            rows = self.rows_of_hashes(space_hashes(space))
            truth = np.append(values, np.nan)[rows]  # the last where rows are -1
        else:
            indices = self.indices
            if len(indices) and (indices.min() < 0 or indices.max() >= space.num_archs):
                raise ValueError(
                    f"{path}: wanted official indices below {space.num_archs}, "
                    f"got {indices.min()} to {indices.max()}"
                )
            truth = np.full(space.num_archs, np.nan)
            truth[indices] = values
        if not np.isfinite(truth).any():
            raise ValueError(
                f"{path}: has {column} of no architecture of {space.name} ({self.rows:,} rows)"
            )
        return Table(f"{path.name}:{column}", words, truth)

    def check(self, *names: str) -> None:
        """Compare results, the numbers of their runs and the names of the rows with checksums.

        Args:
            names: Columns of results.

        Raises:
            ValueError: If there is none of a name, or they are damaged; the message names them.
        """
        key = next(key for key in KEYS if key in self.columns.names)
        self.columns.check({key, *names, *map(seeds_name, names)})

    def _checked_truth(self, name: str, seed: int | None) -> Floats:
        self.check(name)
        dataset, schedule, quantity = name.split("/")
        return self.truth(dataset, schedule, quantity, seed)

    def _results(self, name: str) -> Column:
        if name in self.columns.names and name not in self.quantities:
            raise ValueError(
                f"{self.columns.path}: wanted a column of results, "
                f"dataset/schedule/quantity, got {name!r}"
            )
        return self.columns.array(name)

    def _of_seed(self, group: str, values: Column, seed: int) -> Floats:
        seeds = self.columns.array(f"{group}/seeds")
        chosen = seeds == seed
        if seed < 0 or not chosen.any():  # -1 stands where there is no run
            known = ", ".join(map(str, np.unique(seeds[seeds >= 0]).tolist()))
            raise ValueError(f"seed: wanted one of {known or 'none'} of {group}, got {seed}")
        found = np.full((values.shape[0], values.shape[2]), np.nan)
        rows, places = np.nonzero(chosen)
        found[rows] = values[rows, places]
        return found


def higher_is_better(name: str, values: Floats, words: str) -> tuple[Floats, str]:
    """Turn a quantity into ground truth, of which higher is better.

    Args:
        name: Of its column.
        values: What it has.
        words: What it is, for people.

    Returns:
        The values, of a loss negated, and the words, which say so.

    Raises:
        ValueError: If it is neither an accuracy nor a loss.
    """
    if name.endswith("_accuracy"):
        return values, words
    if name.endswith("_loss"):
        return -values, f"{words}, negated"
    raise ValueError(f"wanted an accuracy or a loss as ground truth, got {name!r}")


def mean_of_known(values: Column, axis: int) -> Floats:
    """Return the mean of what is not NaN, NaN where there is nothing; in float64."""
    known = ~np.isnan(values)
    total = np.sum(values, axis=axis, dtype=np.float64, where=known)
    count = known.sum(axis=axis)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
