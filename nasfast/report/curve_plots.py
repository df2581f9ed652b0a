# SPDX-License-Identifier: MIT
"""The plots of fine-tuning: how well estimators rank, and what they select, against steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from nasfast import metrics
from nasfast.report import numbers
from nasfast.report.finetuning import TOP, top_truth
from nasfast.report.model import EstimateCurve, FineTuningReport
from nasfast.report.plots import LINES, Plot, legend_above, new_axes, say_empty, style

_RESAMPLES = 200


def make_curve_plots(report: FineTuningReport) -> tuple[Plot, ...]:
    """The two plots of fine-tuning, none without ground truth or curves."""
    if report.truth is None or not report.curves:
        return ()
    known = np.isfinite(report.truth)
    truth = report.truth[known]
    with style():
        return (
            _correlations(report.curves, known, truth),
            _selections(report.curves, known, truth, report.truth_name),
        )


def _correlations(
    curves: Sequence[EstimateCurve], known: npt.NDArray[np.bool_], truth: npt.NDArray[np.float64]
) -> Plot:
    figure, axes = new_axes()
    axes.set_xlabel("steps of fine-tuning")
    axes.set_ylabel("Spearman \N{GREEK SMALL LETTER RHO}")
    drawn = 0
    for curve, (color, line) in zip(curves, LINES, strict=False):
        points = []
        for step, scores in zip(curve.steps, curve.scores[:, known], strict=True):
            if np.isfinite(scores).sum() >= 2:
                rho = metrics.spearman(scores, truth, bootstrap=_RESAMPLES)
                if np.isfinite(rho.value):
                    points.append((step, rho.value, *(rho.interval or (rho.value, rho.value))))
        if points:
            x, y, low, high = np.array(points).T
            axes.fill_between(x, low, high, color=color, alpha=0.13, linewidth=0)
            axes.plot(x, y, color=color, linestyle=line, linewidth=1.6, label=curve.name,
                      marker="o" if len(x) == 1 else None, markersize=3.5)  # fmt: skip
            drawn += 1
    caption = (
        "Rank correlation with the ground truth against steps of fine-tuning, over "
        f"{numbers.things(truth.size, 'architecture', 'architectures')}; bands are 95 % "
        f"bootstrap intervals over architectures, {_RESAMPLES} resamples."
    )
    return Plot("finetuning_correlation", figure, _finish(axes, drawn, caption))


def _selections(
    curves: Sequence[EstimateCurve], known: npt.NDArray[np.bool_],
    truth: npt.NDArray[np.float64], truth_name: str,
) -> Plot:  # fmt: skip
    figure, axes = new_axes()
    count = min(TOP, truth.size)
    axes.set_xlabel("steps of fine-tuning")
    axes.set_ylabel(f"mean truth of the first {count}")
    drawn = 0
    for curve, (color, line) in zip(curves, LINES, strict=False):
        means = np.array([top_truth(scores, truth) for scores in curve.scores[:, known]])
        if np.isfinite(means).any():
            axes.plot(curve.steps, means, color=color, linestyle=line, linewidth=1.6,
                      label=curve.name, marker="o" if len(means) == 1 else None,
                      markersize=3.5)  # fmt: skip
            drawn += 1
    caption = (
        f"Mean of {truth_name} over the {count} architectures that each estimator ranks first, "
        "against steps of fine-tuning."
    )
    if drawn:
        best = float(np.sort(truth)[-count:].mean())
        axes.axhline(best, color="#8b9097", linewidth=0.8)
        axes.axhline(float(truth.mean()), color="#8b9097", linewidth=0.8, linestyle=":")
        caption += (
            f" The upper grey line is the best possible, {numbers.significant(best)}; the dotted "
            f"one is the mean of all, {numbers.significant(float(truth.mean()))}."
        )
    return Plot("finetuning_top", figure, _finish(axes, drawn, caption))


def _finish(axes: Axes, drawn: int, caption: str) -> str:
    """Add the legend, or say that nothing is drawn; return the caption."""
    if not drawn:
        say_empty(axes)
        return caption + " No value is finite."
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    legend_above(axes)
    return caption
