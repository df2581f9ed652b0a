# SPDX-License-Identifier: MIT
"""What official results have to be like: :mod:`nasfast.tables.curve_table` says it in words.

Each check raises ValueError and says what was wanted and what came.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nasfast.tables.columns import Column
from nasfast.tables.hashes import as_bytes

UNITS = {"_accuracy": "fraction", "_loss": "nats", "_seconds": "s"}
KEYS = {"index": (np.int64, 1), "hash": (np.uint8, 2)}
_NAME = re.compile(r"[^/]+/[^/]+/[a-z][a-z0-9_]*")
_HEADER = ("space", "release", "sources", "units", "missing", "checks", "importer")


def seeds_name(name: str) -> str:
    """Return the column with the numbers of the runs of a result."""
    return f"{name.rpartition('/')[0]}/seeds"


def check_header(header: Mapping[str, Any]) -> None:
    """Check that all entries are there and of their types."""
    lacking = [key for key in _HEADER if key not in header]
    if lacking:
        raise ValueError(f"header: {', '.join(lacking)} missing")
    for key in ("space", "release", "importer"):
        if not isinstance(header[key], str):
            raise ValueError(f"header: wanted text in {key!r}, got {header[key]!r:.60}")
    for key in ("sources", "missing", "checks"):
        if not isinstance(header[key], Sequence) or isinstance(header[key], str):
            raise ValueError(f"header: wanted a list in {key!r}, got {header[key]!r:.60}")


def check_shapes(columns: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> None:
    """Check names, types and shapes of columns."""
    keys = [key for key in KEYS if key in columns]
    if len(keys) != 1:
        raise ValueError(
            f"columns: wanted one of index and hash, got {' and '.join(keys) or 'none'}"
        )
    dtype, ndim = KEYS[keys[0]]
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
        if seeds_name(name) not in columns:
            raise ValueError(f"columns: {seeds_name(name)!r} is missing beside {name!r}")
        runs = columns[seeds_name(name)][1]
        if got != np.float32 or shape[:2] != runs or len(shape) not in (2, 3) or 0 in shape[2:]:
            raise ValueError(
                f"columns[{name!r}]: wanted float32 {list(runs)} or with epochs, "
                f"got {got} {list(shape)}"
            )


def check_keys(columns: Mapping[str, Column]) -> None:
    """Check that rows ascend, each named once."""
    name = "index" if "index" in columns else "hash"
    keys = columns[name] if name == "index" else as_bytes(columns[name])
    order = np.sort(keys)
    if not np.array_equal(order, keys) or (order[1:] == order[:-1]).any():
        raise ValueError(f"columns[{name!r}]: wanted each row once and ascending")
    if name == "index" and len(keys) and keys[0] < 0:
        raise ValueError(f"columns['index']: wanted official indices from 0, got {keys[0]}")


def check_values(name: str, column: Column, seeds: Column) -> None:
    """Check the numbers of a column of results, or of the runs."""
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
        raise ValueError(f"columns[{name!r}]: has values of runs that {seeds_name(name)!r} lacks")
    if np.isinf(column).any():
        raise ValueError(f"columns[{name!r}]: has infinite values")
    largest = 1.0 if name.endswith("_accuracy") else np.inf
    if column.size and (np.fmin.reduce(column, None) < 0 or np.fmax.reduce(column, None) > largest):
        raise ValueError(
            f"columns[{name!r}]: wanted values from 0 to {largest}, "
            f"got {np.nanmin(column)} to {np.nanmax(column)}"
        )
