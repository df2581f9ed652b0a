# SPDX-License-Identifier: MIT
"""The plot of estimators on a table's learning curves: correlation against epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nasfast.from_table import EstimatorPoint, TableCorrelations
from nasfast.report import numbers
from nasfast.report.plots import LINES, Plot, say_empty, style

_PANEL_INCHES = (3.9, 3.5)
# Two more than the five of all plots, with colours and dashes of their own.
_LINES: tuple[tuple[str, Any], ...] = (
    *LINES, ("#8a6d00", (0, (6, 2))), ("#a3123f", (0, (2, 1.4))), ("#00707f", (0, (8, 2, 2, 2))),
)  # fmt: skip


def table_plot(found: TableCorrelations) -> Plot:
    """Spearman's rho against epochs of training, a panel for each share of the architectures."""
    shares = list(dict.fromkeys(point.top for point in found.points))
    with style():
        size = (_PANEL_INCHES[0] * max(1, len(shares)), _PANEL_INCHES[1])
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, max(1, len(shares)), sharey=True, squeeze=False)[0]
        for axes, share in zip(panels, shares, strict=False):
            _panel(axes, [point for point in found.points if point.top == share], share, found)
        panels[0].set_ylabel("Spearman \N{GREEK SMALL LETTER RHO}")
        handles, labels = panels[0].get_legend_handles_labels()
        if handles:
            columns = 4 * max(1, len(shares)) - 2
            figure.legend(handles, labels, loc="outside upper center", ncols=columns,
                          frameon=False, fontsize=8.0, handlelength=3.2)  # fmt: skip
        else:
            say_empty(panels[0])
    return Plot("table_correlation", figure, _caption(found))


def _panel(
    axes: Axes, points: Sequence[EstimatorPoint], share: float, found: TableCorrelations
) -> None:
    axes.tick_params(length=3.0, width=0.7)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("epochs of training")
    axes.axhline(0.0, color="#8b9097", linewidth=0.6)
    kinds = list(dict.fromkeys(point.estimator for point in points))
    most = max(point.spearman.n for point in points)
    what = f"all {most:,} {found.unit}" if share == 1.0 else f"best {100 * share:g} %, {most:,}"
    axes.set_title(what, fontsize=9.0)
    for place, name in enumerate(kinds):
        color, line = _LINES[place % len(_LINES)]
        of_kind = [p for p in points if p.estimator == name and np.isfinite(p.spearman.value)]
        if not of_kind:
            continue
        x = [point.epoch for point in of_kind]
        y = [point.spearman.value for point in of_kind]
        limits = [point.spearman.interval or (point.spearman.value,) * 2 for point in of_kind]
        low, high = np.array(limits).T
        axes.fill_between(x, low, high, color=color, alpha=0.13, linewidth=0)
        alone = {"linestyle": "", "marker": "o", "markersize": 3.5}
        drawn = alone if len(x) == 1 else {"linestyle": line, "linewidth": 1.6}
        axes.plot(x, y, color=color, label=name, **drawn)


def _caption(found: TableCorrelations) -> str:
    seeds = numbers.things(len(found.seeds), "training", "trainings")
    words = (
        f"Rank correlation of estimators with {found.truth_name}, against the epochs of training "
        f"that they know; {found.name}. An estimate is the mean over {seeds}."
    )
    if any(point.spearman.interval for point in found.points):
        words += f" Bands are 95 % bootstrap intervals over {found.unit}."
    return words
