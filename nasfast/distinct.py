# SPDX-License-Identifier: MIT
"""Distinct rows of integer arrays, many times faster than comparing rows."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from nasfast.spaces.spec import IntArray

_Integer = TypeVar("_Integer", bound=np.integer)


def distinct_rows(rows: npt.NDArray[_Integer]) -> tuple[npt.NDArray[_Integer], IntArray]:
    """Return the distinct rows, in lexicographic order, and which of them each row is.

    Args:
        rows: Integers of at least 0, ``[rows, columns]``, with at least one row and column.

    Returns:
        The distinct rows, ``[distinct, columns]``, and the position of each row, int32 ``[rows]``.
    """
    base = int(rows.max()) + 1
    keys, limit = rows[:, 0].astype(np.int64), base  # keys are below the limit
    for column in rows.T[1:]:
        if limit * base >= 2**62:
            found, keys = np.unique(keys, return_inverse=True)  # in their order
            keys, limit = keys.reshape(-1), len(found)
        keys, limit = keys * base + column, limit * base
    _, first, of = np.unique(keys, return_index=True, return_inverse=True)
    return rows[first], of.reshape(-1).astype(np.int32)
