# SPDX-License-Identifier: MIT
"""How well the estimators of fine-tuned architectures rank."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nasfast import metrics
from nasfast.report.correlate import measure
from nasfast.report.model import EstimateRow, FineTuningReport

TOP = 10  # architectures whose truth is averaged

_Floats = npt.NDArray[np.float64]


def estimate_rows(report: FineTuningReport) -> tuple[EstimateRow, ...]:
    """Agreement of each estimator with the ground truth; none without one.

    Only architectures with a finite truth take part, in the mean of the first ones too. 95 %
    intervals come from 1,000 bootstrap resamples of the architectures.
    """
    if report.truth is None:
        return ()
    known = np.isfinite(report.truth)
    truth = report.truth[known]
    return tuple(
        EstimateRow(
            estimate.name,
            measure("kendall_tau_b", metrics.kendall_tau, estimate.scores[known], truth),
            measure("spearman", metrics.spearman, estimate.scores[known], truth),
            top_truth(estimate.scores[known], truth),
        )
        for estimate in report.estimates
    )


def top_truth(scores: _Floats, truth: _Floats) -> float:
    """Mean truth of the first architectures by score; those without a score are never among them.

    Args:
        scores: Higher is better, ``[archs]``.
        truth: Finite, ``[archs]``.
    """
    best = metrics.top_k(scores, TOP)
    best = best[np.isfinite(scores[best])]
    return float(truth[best].mean()) if len(best) else float("nan")
