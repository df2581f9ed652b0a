# SPDX-License-Identifier: MIT
"""The plots of the top of a space: which architectures are found there, and their operations."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from nasfast import metrics
from nasfast.report import numbers
from nasfast.report.draw import ABSENT_OP, op_styles
from nasfast.report.measures import resamples
from nasfast.report.model import ArchOps, Report
from nasfast.report.plots import LINES, Plot, legend_above, new_axes, say_empty, style

TOPS = metrics.AVERAGE_ACCURACY_TOP_N
_LEVELS = 48  # of a curve
_MARKERS = "os^Dv*P"

_Floats = npt.NDArray[np.float64]


def make_top_curves(report: Report) -> tuple[Plot, ...]:
    """The identification curve, and the mass curve where a search has a distribution.

    None without ground truth, or with one of fewer than two architectures.
    """
    if report.truth is None or np.isfinite(report.truth).sum() < 2:
        return ()
    known = np.isfinite(report.truth)
    truth = np.asarray(report.truth, dtype=np.float64)[known]
    levels = _levels(truth)
    with style():
        plots = [_identification(report, known, truth, levels)]
        if report.sampling is not None:
            mass = np.asarray(report.sampling.probabilities, dtype=np.float64)[known]
            plots.append(_mass(report.sampling.name, mass, truth, levels))
    return tuple(plots)


def make_usage_plots(report: Report) -> tuple[Plot, ...]:
    """How many of the top N use an operation, and its share of their edges or blocks.

    Two plots by the supernet's loss and, where some of it is known, two by the ground truth; none
    where the operations are unknown.
    """
    if report.ops is None:
        return ()
    loss = np.asarray(report.loss, dtype=np.float64)
    orders = [("loss", "supernet loss", -loss)]
    if report.truth is not None and np.isfinite(report.truth).any():
        orders.append(("truth", "ground truth", np.asarray(report.truth, dtype=np.float64)))
    with style():
        return tuple(
            plot
            for name, words, scores in orders
            for plot in _usage(name, words, scores, report.ops)
        )


# Curves over the top of the space.


def _levels(truth: _Floats) -> _Floats:
    """Least truth of tops of about 10, ..., all architectures, evenly spaced in their logarithm."""
    first = min(10, truth.size)
    sizes = np.unique(np.geomspace(first, truth.size, _LEVELS).round().astype(int))
    return np.unique(np.sort(truth)[::-1][sizes - 1])[::-1]


def _identification(
    report: Report, known: npt.NDArray[np.bool_], truth: _Floats, levels: _Floats
) -> Plot:
    figure, axes = new_axes()
    _tops_axis(axes, "found among as many best by score")
    scores = [
        ("supernet loss", -np.asarray(report.loss, dtype=np.float64)),
        ("supernet accuracy", np.asarray(report.accuracy, dtype=np.float64)),
    ]
    scores += [(c.name, np.asarray(c.scores, dtype=np.float64)) for c in report.controls]
    count, drawn = resamples(truth.size), 0
    for (name, values), (color, line) in zip(scores, itertools.cycle(LINES), strict=False):
        finite = values[known]
        if not np.isfinite(finite).any():
            continue
        curve = metrics.top_identification_curve(
            finite, truth, levels=levels, bootstrap=0 if drawn else count
        )
        x = curve.baseline * curve.n
        if curve.band is not None:
            axes.fill_between(x, *curve.band, color=color, alpha=0.13, linewidth=0)
        if not drawn:
            _baseline(axes, curve, "a random ranking")
        width = 1.4 if drawn else 2.2
        axes.plot(x, curve.values, color=color, linestyle=line, linewidth=width, label=name)
        drawn += 1
    caption = (
        "Top identification: of the architectures that are truly the best m (across), the share "
        "that a score has among its own best m. A random ranking has m of all. The band is a 95 % "
        f"bootstrap interval over architectures, {count} resamples, for the first line."
    )
    return Plot("top_identification", figure, _finish(axes, drawn, caption))


def _mass(name: str, probabilities: _Floats, truth: _Floats, levels: _Floats) -> Plot:
    figure, axes = new_axes()
    _tops_axis(axes, "probability to be sampled")
    curve = metrics.sampling_mass_curve(probabilities, truth, levels=levels)
    drawn = int(np.isfinite(curve.values).any())
    if drawn:
        _baseline(axes, curve, "uniform sampling")
        color, line = LINES[0]
        x = curve.baseline * curve.n
        axes.plot(x, curve.values, color=color, linestyle=line, linewidth=2.2, label=name)
    caption = (
        "Sampling mass: the probability that an architecture drawn from the distribution of the "
        "search is among the truly best m (across)."
    )
    return Plot("sampling_mass", figure, _finish(axes, drawn, caption))


def _tops_axis(axes: Axes, label: str) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: numbers.count(round(value)))
    axes.set_xlabel("truly best m architectures")
    axes.set_ylabel(label)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.set_ylim(0.0, 1.0)


def _baseline(axes: Axes, curve: metrics.TopCurve, label: str) -> None:
    x = curve.baseline * curve.n
    axes.plot(x, curve.baseline, color="#8b9097", linestyle=(0, (1, 1)), linewidth=1.2, label=label)


def _finish(axes: Axes, drawn: int, caption: str) -> str:
    if not drawn:
        say_empty(axes)
        return caption + " No value is finite."
    legend_above(axes)
    return caption


# Operations of the best.


@dataclass(frozen=True, eq=False)
class Usage:
    """Use of each operation among the first of a ranking.

    Attributes:
        sizes: Architectures of each top, ascending; the last is all of them.
        using: Share of them that has the operation on at least one edge or block, ``[tops, ops]``.
        share: Share of all their edges or used blocks, ``[tops, ops]``.
    """

    sizes: tuple[int, ...]
    using: _Floats
    share: _Floats


def usage(ops: ArchOps, scores: _Floats) -> Usage:
    """Count operations among the top N for several N, those of the paper.

    Args:
        ops: Of all architectures.
        scores: Higher is better, ``[archs]``; those that are not finite take no part. Equal ones
            keep the order of their rows.
    """
    order = metrics.rank_order(scores)[: int(np.isfinite(scores).sum())]
    sizes = (*(n for n in TOPS if n < len(order)), len(order))
    has = ops.chosen[order][:, :, None] == np.arange(len(ops.names))
    using = np.stack([has[:n].any(axis=1).mean(axis=0) for n in sizes])
    carries = ops.chosen[order] >= 0
    share = [has[:n].sum(axis=(0, 1)) / max(carries[:n].sum(), 1) for n in sizes]
    return Usage(sizes, using, np.stack(share))


def _usage(name: str, words: str, scores: _Floats, ops: ArchOps) -> tuple[Plot, Plot]:
    """The share of architectures with an operation, and its share of all edges or blocks."""
    finite = int(np.isfinite(scores).sum())
    found = usage(ops, scores) if finite else None
    plots = []
    for kind, label, about in (
        ("usage", f"top N that use it, by {words}",
         f"Share of the top N architectures that have an operation on at least one {ops.on}"),
        ("share", f"share of their {ops.on}s, by {words}",
         f"Share of an operation among all {ops.on}s of the top N"
         + (" that lead to the output" if ops.on == "block" else "")),
    ):  # fmt: skip
        figure, axes = new_axes()
        caption = f"{about}, ranked by {words}"
        if found is None:
            say_empty(axes)
            caption += ": no value is finite."
        else:
            values = found.using if kind == "usage" else found.share
            _draw_usage(axes, ops.names, values, found.sizes)
            axes.set_ylabel(label)
            caption += (
                f"; the last point is all {numbers.things(finite, 'architecture', 'architectures')}"
                " of the ranking."
            )
        plots.append(Plot(f"operation_{kind}_by_{name}", figure, caption))
    return plots[0], plots[1]


def _draw_usage(
    axes: Axes, names: Sequence[str], values: _Floats, sizes: Sequence[int]
) -> None:  # fmt: skip
    styles = op_styles(names)
    x = np.arange(len(sizes))
    for k, (op, marker) in enumerate(zip(names, _MARKERS * len(names), strict=False)):
        line: dict[str, Any] = {"color": "#8b9097", "linewidth": 1.4, "linestyle": (0, (1, 1.6))}
        if op != ABSENT_OP:
            drawn = styles[op]
            line = {"color": drawn.color, "linewidth": 0.7 * drawn.width}
            if drawn.dashes:
                # In units of the width, as SVG has them in units of the drawing.
                dashes = [float(d) / drawn.width for d in drawn.dashes.split()]
                line["linestyle"] = (0, tuple(dashes))
        axes.plot(x, values[:, k], marker=marker, markersize=4.5, label=op, **line)
    axes.set_xticks(x, [*(numbers.count(n) for n in sizes[:-1]), f"all {sizes[-1]:,}"])
    axes.set_xlabel("top N")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.set_ylim(bottom=0.0)
    legend_above(axes)
