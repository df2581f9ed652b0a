# SPDX-License-Identifier: MIT
"""The tables of metrics and of cost, as the words that the page shows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from nasfast import metrics
from nasfast.report import numbers
from nasfast.report.model import CostReport, MetricTable, Report, WorkRow


def value_cell(result: metrics.Measured) -> dict[str, Any]:
    """A value and its interval: correlations and probabilities to three decimals."""
    fixed = isinstance(result, metrics.RankCorrelation) or result.name.startswith("surpass")
    digits = 3 if result.name.endswith("regret") else 4  # a small difference
    shown = numbers.correlation if fixed else partial(_value, digits=digits)
    text, interval = shown(result.value), ""
    if result.interval:
        low, high = result.interval
        # As many decimals as the value has.
        decimals = len(text.partition(".")[2])
        bounds = f"{low:,.{decimals}f} to {high:,.{decimals}f}".replace("-", "\N{MINUS SIGN}")
        interval = numbers.interval((low, high)) if fixed or "e" in text else bounds
    return {"value": text, "undefined": not np.isfinite(result.value), "interval": interval}


def metric_cells(table: MetricTable, report: Report) -> dict[str, Any]:
    """The table of what a search would find; its last rows say over what."""
    truth = np.asarray(report.truth, dtype=np.float64)
    truth = truth[np.isfinite(truth)]
    return {
        "best": _value(float(truth.max())) if truth.size else "no value",
        "mean": _value(float(truth.mean())) if truth.size else "no value",
        "resamples": numbers.count(table.resamples),
        "with_controls": table.with_controls,
        "images": "" if table.images is None else numbers.count(table.images),
        # A hyphen would end a line.
        "scores": [name.replace(" -", " \N{MINUS SIGN}") for name in table.scores],
        "rows": [
            {
                "name": row.name,
                "about": row.about,
                "cells": [None if cell is None else value_cell(cell) for cell in row.cells],
            }
            for row in table.rows
        ],
        "counts": _counts(table),
    }


def _counts(table: MetricTable) -> list[tuple[str, list[str]]]:
    """Architectures and ties of each column; ties of the truth where it is binned, too."""
    if not table.rows:
        return []

    def line(cells: Sequence[metrics.Measured | None], what: str) -> list[str]:
        return ["" if cell is None else numbers.count(getattr(cell, what)) for cell in cells]

    first = table.rows[0].cells
    lines = [
        ("n", line(first, "n")),
        ("Ties in score", line(first, "ties_scores")),
        ("Ties in truth", line(first, "ties_truth")),
    ]
    for row in table.rows:
        if row.name.startswith("Sparse"):
            lines.append(("Ties in truth, binned", line(row.cells, "ties_truth")))
    return lines


def cost_cells(cost: CostReport) -> dict[str, Any]:
    """The tables of time and of what was merged and shared."""
    tables = []
    if cost.work:
        head = ["Work", "Architectures", "Steps", "Time", "A second", "GFLOP/s"]
        tables.append({"head": head, "rows": [(row.name, _work(row)) for row in cost.work]})
    if cost.merging:
        most = max(row.macs for row in cost.merging) or 1
        rows = []
        for row in cost.merging:
            share = numbers.percent(row.macs / most, 0)
            left = [numbers.count(row.networks), numbers.significant(row.macs / 1e9)]
            rows.append((row.name, [*left, share]))
        head = ["Merging", "Networks", "GMAC an image", "Share"]
        tables.append({"head": head, "rows": rows})
    return {"about": cost.about, "tables": tables}


def _work(row: WorkRow) -> list[str]:
    rate = ""
    if row.seconds:
        count, unit = (row.archs, "architectures") if row.steps is None else (row.steps, "steps")
        rate = f"{_value(count / row.seconds, 3)} {unit}" if count is not None else ""
    gflops = "" if row.macs is None or not row.seconds else _value(2e-9 * row.macs / row.seconds, 3)
    return [
        "" if row.archs is None else numbers.count(row.archs),
        "" if row.steps is None else numbers.count(row.steps),
        duration(row.seconds),
        rate,
        gflops,
    ]


def duration(seconds: float) -> str:
    """A time in the unit that a reader would choose."""
    if seconds < 120.0:
        return f"{seconds:.1f} s"
    return f"{seconds / 60.0:.1f} min" if seconds < 7200.0 else f"{seconds / 3600.0:.1f} h"


def _value(value: float, digits: int = 4) -> str:
    if np.isnan(value):
        return "undefined"
    return numbers.significant(value, digits)
