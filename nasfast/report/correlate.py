# SPDX-License-Identifier: MIT
"""The rank correlations of a report."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from nasfast import metrics
from nasfast.report.model import CorrelationRow, PrecisionCheck, Report

_Floats = npt.NDArray[np.float64]


def correlations(report: Report) -> tuple[CorrelationRow, ...]:
    """Agreement of each score of a report with its ground truth.

    Rows: supernet loss (negated), supernet accuracy, each control, and the loss with the
    parameter count held fixed. Only architectures with a finite truth take part; ``dropped``
    counts those among them whose score is not finite. 95 % intervals come from 1,000 bootstrap
    resamples of the architectures, or 200 where more than 2,000 have a truth.

    Returns:
        One row for each score; none without ground truth. A correlation over fewer than two
        architectures is nan.
    """
    if report.truth is None:
        return ()
    truth = np.asarray(report.truth, dtype=np.float64)
    known = np.isfinite(truth)
    truth = truth[known]
    loss = -np.asarray(report.loss, dtype=np.float64)
    scores: list[tuple[str, npt.NDArray[np.floating | np.integer]]] = [
        ("Supernet loss, negated", loss),
        ("Supernet accuracy", report.accuracy),
    ]
    scores += [(control.name, control.scores) for control in report.controls]
    rows = []
    for name, values in scores:
        pair = (np.asarray(values, dtype=np.float64)[known], truth)
        kendall = measure("kendall_tau_b", metrics.kendall_tau, *pair)
        spearman = measure("spearman", metrics.spearman, *pair)
        rows.append(CorrelationRow(name, kendall, spearman))
    if report.params is not None:
        given = np.asarray(report.params, dtype=np.float64)[known]
        partial = measure(
            "partial_kendall_tau_b", metrics.partial_kendall_tau, loss[known], truth, given
        )
        rows.append(CorrelationRow("Supernet loss, parameter count held fixed", partial, None))
    return tuple(rows)


def precision_check(
    precision: str, loss: _Floats, accuracy: _Floats, fp32_loss: _Floats, fp32_accuracy: _Floats
) -> PrecisionCheck:
    """Compare the scores of a sample in a precision with those in fp32.

    Args:
        precision: Of the ranking: ``"tf32"`` or ``"bf16"``.
        loss: Mean losses in it, ``[archs]``.
        accuracy: Accuracies in it, ``[archs]``.
        fp32_loss: Mean losses in fp32, ``[archs]``.
        fp32_accuracy: Accuracies in fp32, ``[archs]``.

    Returns:
        Tau-b over the architectures whose two losses are finite (NaN over fewer than two), and
        the largest difference of accuracies over all.
    """
    kendall = measure("kendall_tau_b", metrics.kendall_tau, -loss, -fp32_loss)
    differences = np.abs(accuracy - fp32_accuracy)
    return PrecisionCheck(precision, kendall, float(differences.max(initial=0.0)))


def measure(
    name: str, function: Callable[..., metrics.RankCorrelation], *columns: _Floats
) -> metrics.RankCorrelation:
    """Correlate columns with an interval; NaN over fewer than two rows of finite values."""
    n = columns[0].size
    used = int(np.isfinite(np.stack(columns)).all(axis=0).sum())
    if used < 2:
        # The metric refuses so few; a report on a space that went wrong must still be written.
        return metrics.RankCorrelation(name, float("nan"), used, n - used, 0, 0, None, None)
    return function(*columns, bootstrap=1000 if used <= 2000 else 200)
