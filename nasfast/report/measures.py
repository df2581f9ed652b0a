# SPDX-License-Identifier: MIT
"""The second table of a report: what a search by each score finds, and robust correlations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from nasfast import metrics
from nasfast.report.finetuning import TOP
from nasfast.report.model import MetricRow, MetricTable, Report

MANY = 2000  # architectures: above, resampling takes long
_SAMPLE, _KEEP = 200, 3  # of the paper's random search
_RUNS = 10  # searches that the one found has to surpass

_Floats = npt.NDArray[np.float64]
_Metric = Callable[..., metrics.Measured]


def resamples(architectures: int) -> int:
    """Resamples of a table with many metrics: 200, or 100 of many architectures."""
    return 200 if architectures <= MANY else 100


def metric_table(report: Report) -> MetricTable | None:
    """Metrics of what each score of a report would find, beside those of its controls.

    Scores: supernet loss (negated), supernet accuracy, each control. Only architectures with a
    finite truth take part. Intervals come from 200 bootstrap resamples of the architectures; where
    more than 2,000 have a truth from 100, and controls have none, which would take seconds. Those
    of the last row come from resamples of the images.

    Returns:
        The table; None without ground truth. A metric over fewer than two architectures is None.
    """
    if report.truth is None:
        return None
    truth = np.asarray(report.truth, dtype=np.float64)
    known = np.isfinite(truth)
    truth = truth[known]
    scores = [
        ("Supernet loss", -np.asarray(report.loss, dtype=np.float64)[known]),
        ("Supernet accuracy", np.asarray(report.accuracy, dtype=np.float64)[known]),
    ]
    scores += [(c.name, np.asarray(c.scores, dtype=np.float64)[known]) for c in report.controls]
    count = resamples(truth.size)
    controls = count if truth.size <= MANY else 0
    counts = [count, count, *(controls for _ in report.controls)]
    rows = [
        MetricRow(
            name, about,
            tuple(_measure(f, values, truth, bootstrap=k)
                  for (_, values), k in zip(scores, counts, strict=True)),
        )
        for name, about, f in _metrics(truth)
    ]  # fmt: skip
    images = _images_row(report, known, truth, len(scores), count)
    if images is not None:
        rows.append(images)
    return MetricTable(
        scores=tuple(name for name, _ in scores),
        rows=tuple(rows),
        resamples=count,
        with_controls=controls > 0 or not report.controls,
        images=None if images is None or report.correct is None else report.correct.images,
    )


def bin_width(truth: _Floats) -> float | None:
    """0.1 percentage points in the unit of the truth; None where that is no accuracy.

    Args:
        truth: Finite, ``[archs]``: in [0, 1] it is a share, up to 100 a percentage.
    """
    if truth.size == 0 or truth.min() < 0.0 or truth.max() > 100.0:
        return None
    return 0.001 if truth.max() <= 1.0 else 0.1


def _metrics(truth: _Floats) -> list[tuple[str, str, _Metric]]:
    """Name, what exactly it is, and function of each metric."""
    rows: list[tuple[str, str, _Metric]] = [
        (f"Mean truth of the top {TOP}", f"of the {TOP} architectures that rank first",
         partial(metrics.top_k_mean, k=TOP)),
        (f"Best truth of the top {TOP}", "the result of training these and keeping the best",
         partial(metrics.top_k_best, k=TOP)),
        (f"Regret of the top {TOP}", "how much better the best of all is",
         partial(metrics.top_k_regret, k=TOP)),
        (f"Best {_KEEP} of {_SAMPLE}",
         f"mean truth of the {_KEEP} that rank first among {_SAMPLE} drawn at random, expected",
         partial(metrics.best_of_sample, sample=_SAMPLE, keep=_KEEP)),
        ("P > R", f"1 \N{MINUS SIGN} (1 \N{MINUS SIGN} r/r_max)^n with n = {_RUNS}, the "
         "formula of the paper; r of r_max are no better than the first",
         partial(metrics.surpass_random, runs=_RUNS, formula="paper")),
        ("P > R, published code", f"(r/r_max)^n with n = {_RUNS}: none of n drawn is better",
         partial(metrics.surpass_random, runs=_RUNS, formula="published_code")),
    ]  # fmt: skip
    width = bin_width(truth)
    if width is not None:
        about = f"Kendall tau-b with floor(truth / {width:g}): 0.1 percentage points a bin"
        sparse = partial(metrics.sparse_tau, binning="floor", threshold=width)
        rows.append(("Sparse tau, floor", about, sparse))
    return rows


def _images_row(
    report: Report, known: npt.NDArray[np.bool_], truth: _Floats, columns: int, count: int
) -> MetricRow | None:
    """Kendall's tau of the accuracies with an interval over images; None where bits are missing."""
    correct = report.correct
    if correct is None or correct.images < 2:
        return None
    found = _measure(metrics.kendall_tau, correct.rows(known), truth, bootstrap=count)
    cells = tuple(found if k == 1 else None for k in range(columns))  # of the accuracy
    about = f"{correct.images:,} images drawn anew, not architectures"
    return MetricRow("Kendall tau-b", about, cells)


def _measure(function: _Metric, scores: Any, truth: _Floats, **options: int) -> Any:
    """A metric, None over fewer than two rows of finite values."""
    try:
        return function(scores, truth, **options)
    except ValueError:
        values = scores.means() if isinstance(scores, metrics.PerImage) else scores
        if np.isfinite(values).sum() < 2:
            return None
        raise
