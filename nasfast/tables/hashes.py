# SPDX-License-Identifier: MIT
"""Values by hash: what NAS-Bench-101 says of the architectures of a space of choice blocks."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nasfast.spaces.block_spec import BlockSpec
from nasfast.spaces.counts import nb101_hashes
from nasfast.tables.arrays import Arrays
from nasfast.tables.table import Table

Hashes = npt.NDArray[np.uint8]
HASH = "hash"


@cache
def space_hashes(space: BlockSpec) -> Hashes:
    """Return the NAS-Bench-101 hash of each architecture of a space, uint8 ``[num_archs, 16]``.

    It is that of the cell without its loose ends. The hashes are kept for the next call.

    Raises:
        ValueError: If the space does not fit into NAS-Bench-101.
        ImportError: If ``nasfast._host`` is not built.
    """
    hashes = nb101_hashes(space)
    hashes.setflags(write=False)
    return hashes


def rows_of(known: Hashes, wanted: Hashes) -> npt.NDArray[np.int64]:
    """Find hashes among ascending distinct ones.

    Args:
        known: uint8 ``[rows, 16]``.
        wanted: uint8 ``[n, 16]``.

    Returns:
        Row of each, -1 where there is none, int64 ``[n]``.

    Raises:
        ValueError: If one is not of this shape, or ``known`` is not ascending or has a hash twice.
    """
    if wanted.dtype != np.uint8 or wanted.ndim != 2 or wanted.shape[1] != 16:
        raise ValueError(f"hashes: wanted uint8 [n, 16], got {wanted.dtype} {list(wanted.shape)}")
    if known.dtype != np.uint8 or known.ndim != 2 or known.shape[1] != 16 or len(known) == 0:
        raise ValueError(
            f"{HASH!r}: wanted uint8 [rows, 16], got {known.dtype} {list(known.shape)}"
        )
    keys, sought = as_bytes(known), as_bytes(wanted)
    rising = keys[1:] > keys[:-1]
    if not rising.all():
        row = int(np.argmin(rising)) + 1
        raise ValueError(
            f"{HASH!r}: wanted distinct hashes in ascending order, got "
            f"{known[row].tobytes().hex()} in row {row} after {known[row - 1].tobytes().hex()}"
        )
    found = np.minimum(np.searchsorted(keys, sought), len(keys) - 1)
    return np.where(keys[found] == sought, found, -1).astype(np.int64)


def as_bytes(hashes: Hashes) -> npt.NDArray[np.bytes_]:
    """Return each hash as one value; all have 16 bytes, so zeros at their end mislead nobody."""
    return np.ascontiguousarray(hashes).view("S16").reshape(-1)


def read_by_hash(path: Path, arrays: Arrays, space: BlockSpec, column: str) -> Table:
    """Return the values of a table whose rows are named by hashes.

    Args:
        path: The file, for messages and names.
        arrays: Its arrays ``hash`` and ``column``.
        space: The space.
        column: Name of the values, one for each hash.

    Returns:
        The value of each architecture's cell; NaN where the file does not have its hash.

    Raises:
        ValueError: If the arrays do not fit, or the file knows no cell of the space.
    """
    known, values = arrays[HASH], arrays[column]
    try:
        rows = rows_of(known, space_hashes(space))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if values.shape != (len(known),) or values.dtype.kind not in "fiu":
        raise ValueError(
            f"{path}: wanted numbers [{len(known)}] in column {column!r}, one for each hash, "
            f"got {values.dtype} {list(values.shape)}"
        )
    found: npt.NDArray[Any] = rows >= 0
    if not found.any():
        raise ValueError(f"{path}: none of its {len(known):,} hashes is of a cell of {space.name}")
    truth = np.where(found, values[rows].astype(np.float64), np.nan)
    return Table(f"{path.name}:{column}", column, truth)
