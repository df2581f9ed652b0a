# SPDX-License-Identifier: MIT
"""Ground truth: what architectures reach when they are trained on their own.

Three sources: tables of trainings that ``nasfast build-table`` wrote, of which ``digits-nb201`` is
shipped (:mod:`nasfast.tables.trainings`); official results that ``nasfast import table`` converted
(:mod:`nasfast.tables.curve_table`); and ``.npz`` files with one value for each official index, or,
for spaces of choice blocks, for each hash of NAS-Bench-101 (:mod:`nasfast.tables.hashes`).
"""

from __future__ import annotations

import difflib
import os
from importlib import resources
from pathlib import Path

import numpy as np

from nasfast.spaces.block_spec import BlockSpec
from nasfast.spaces.space import Space
from nasfast.spaces.spec import CellSpec
from nasfast.tables import trainings
from nasfast.tables.arrays import check_order, read_arrays
from nasfast.tables.columns import is_columns
from nasfast.tables.curve_table import CurveTable
from nasfast.tables.hashes import HASH, read_by_hash
from nasfast.tables.table import Table
from nasfast.tables.trainings import TrainingTable

__all__ = ["CurveTable", "Table", "TrainingTable", "load", "shipped"]

_SUFFIX = ".npz"


def shipped() -> tuple[str, ...]:
    """Return the names of the tables that come with nasfast."""
    return tuple(sorted(_shipped_files()))


def _shipped_files() -> dict[str, Path]:
    folder = Path(str(resources.files("nasfast.tables")))
    return {file.stem: file for file in folder.iterdir() if file.suffix == _SUFFIX}


def load(source: str | os.PathLike[str], space: Space, column: str | None = None) -> Table:
    """Load ground truth.

    Args:
        source: Name of a shipped table, or path of an ``.npz`` file or of a file that
            ``nasfast import table`` wrote.
        space: The space that the values belong to.
        column: Of a table of trainings: ``"test"`` (the default) or ``"valid"``, the mean over its
            seeds, or one seed as in ``"test/1"``. Of official results: as
            ``"cifar10/200/test_accuracy"``, the mean over the runs, or one run as in
            ``"cifar10/200/test_accuracy/777"``. Of another ``.npz`` file: the array, one number
            for each official index, ``[num_archs]``; NaN where unknown. If that file also has an
            array ``arch_str``, its order is checked. If it has an array ``hash`` of NAS-Bench-101's
            hashes, ascending uint8 ``[rows, 16]``, and the space is one of choice blocks: one
            number for each hash, ``[rows]``, which every architecture of that cell has.

    Returns:
        The table; a :class:`TrainingTable` if it has trainings.

    Raises:
        FileNotFoundError: If there is neither such a table nor such a file.
        ValueError: If the file is damaged, of another space, or has no such column.
    """
    name, path, known = os.fspath(source), Path(source), _shipped_files()
    if name in known:
        path = known[name]
    elif not path.is_file():
        names = ", ".join(sorted(known))
        raise FileNotFoundError(
            f"table: {name!r} is neither a file nor a shipped table ({names or 'there are none'})"
        )
    if is_columns(path):
        return CurveTable.open(path).as_table(space, column)
    if trainings.HEADER in read_arrays(path, ())[0]:
        if not isinstance(space, CellSpec):
            raise ValueError(f"{path}: a table of trainings is of another space than {space.name}")
        return trainings.read(path, space, column)
    return _read_values(path, space, column)


def _read_values(path: Path, space: Space, column: str | None) -> Table:
    names, arrays = read_arrays(path, {"arch_str", HASH, column or ""})
    truth = arrays.get(column or "")
    if truth is None:
        near = difflib.get_close_matches(column or "", names, n=1, cutoff=0.0)
        raise ValueError(
            f"{path}: wanted one of its arrays as column, got {column!r}; "
            f"nearest: {near[0] if near else 'it has none'}"
        )
    if HASH in names and isinstance(space, BlockSpec) and column is not None:
        return read_by_hash(path, arrays, space, column)
    if truth.shape != (space.num_archs,) or truth.dtype.kind not in "fiu":
        raise ValueError(
            f"{path}: wanted numbers [{space.num_archs}] in column {column!r}, "
            f"got {truth.dtype} {list(truth.shape)}"
        )
    if "arch_str" in arrays:
        try:
            check_order(arrays["arch_str"], space, np.arange(space.num_archs))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return Table(f"{path.name}:{column}", str(column), truth.astype(np.float64))
