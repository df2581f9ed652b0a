# SPDX-License-Identifier: MIT
"""What a file of official results holds, in plain values."""

from __future__ import annotations

from typing import Any

import numpy as np

from nasfast.tables.curve_table import CurveTable

_BEST = 3


def overview(table: CurveTable) -> dict[str, Any]:
    """Read a whole table once and say what is in it.

    Returns:
        The header; ``rows``; ``columns``: type, shape, and for results how many values are
        ``missing``; ``best``: of each test accuracy at the end of training, mean over runs, the
        best rows.

    Raises:
        ValueError: If a column is damaged; the message names it.
    """
    table.columns.check()
    results = set(table.quantities)
    columns: dict[str, dict[str, Any]] = {}
    for name in table.columns.names:
        array = table.columns.array(name)
        columns[name] = {"type": str(array.dtype), "shape": list(array.shape)}
        if name in results:
            columns[name]["missing"] = int(np.isnan(array).sum())
    return {
        **table.columns.header,
        "rows": table.rows,
        "columns": columns,
        "best": {
            name: _best(table, name)
            for name in table.quantities
            if name.endswith("/test_accuracy")
        },
    }  # fmt: skip


def _best(table: CurveTable, name: str) -> list[dict[str, Any]]:
    dataset, schedule, quantity = name.split("/")
    values = table.truth(dataset, schedule, quantity)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(-values[known], kind="stable")][:_BEST]
    by_index = "index" in table.columns.names
    keys = table.columns.array("index" if by_index else "hash")
    return [
        {
            "index" if by_index else "hash": (
                int(keys[row]) if by_index else bytes(keys[row]).hex()
            ),
            "mean": float(values[row]),
        }
        for row in order
    ]
