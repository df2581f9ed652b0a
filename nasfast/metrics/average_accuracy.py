# SPDX-License-Identifier: MIT
"""The average-accuracy tau of single-path supernets: does accuracy fall with the top N?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import numpy as np
import numpy.typing as npt

from nasfast.metrics.inputs import Floats, Scores, at_least
from nasfast.metrics.kendall import tau_statistic
from nasfast.metrics.resampling import Statistic, estimate, finite_rows, measure
from nasfast.metrics.results import Interval, IntervalOptions, RankCorrelation
from nasfast.metrics.selection import inclusion

AVERAGE_ACCURACY_TOP_N = (10, 25, 50, 150, 250, 500)
"""The top-N of the paper, section 3.2."""


def average_accuracy(
    scores: Scores, truth: npt.ArrayLike, top_n: Sequence[int] = AVERAGE_ACCURACY_TOP_N
) -> Floats:
    """Mean score (supernet accuracy) of the N architectures of best truth, for each N.

    Args:
        scores: Supernet accuracies, ``[n]``, :class:`PerImage` or :class:`PerSeed`.
        truth: As for :func:`kendall_tau`. Where it is equal across the cut, each of those
            architectures counts in part, as if drawn at random.
        top_n: Numbers of architectures.

    Returns:
        ``[len(top_n)]``; nan where there are fewer than N.

    Raises:
        ValueError: If an input is not 1-d, lengths differ, or an N is below 1.

    Source:
        Exploring single-path architecture search ranking correlations, section 3.4, ``A_N``.
    """
    _check(top_n)
    columns: dict[str, Scores] = {"scores": scores, "truth": truth}
    statistic = Statistic(lambda x, y: _averages(x, y, top_n))
    return np.asarray(estimate(statistic, finite_rows(columns, min_rows=1), Interval()).value)


def average_accuracy_tau(
    scores: Scores,
    truth: npt.ArrayLike,
    *,
    top_n: Sequence[int] = AVERAGE_ACCURACY_TOP_N,
    **options: Unpack[IntervalOptions],
) -> RankCorrelation:
    """Kendall's tau-a of N and the average supernet accuracy of the N truly best architectures.

    The paper's ``tau_a``. **-1 is best**: the wider the top, the lower its average should be.

    Args:
        scores: As for :func:`average_accuracy`; the paper averages over seeds first, which is
            ``PerSeed(values, average="scores")``.
        truth: As for :func:`average_accuracy`.
        top_n: Those that exceed the number of architectures are left out; the result's name has
            the others.
        **options: As in :class:`IntervalOptions`.

    Returns:
        The correlation; nan with fewer than two N. ``n`` counts architectures.

    Raises:
        ValueError: As for :func:`average_accuracy`, or if an option is out of range.
        ImportError: If ``nasfast._host`` is not built.

    Source:
        Exploring single-path architecture search ranking correlations, section 3.4, with the tau
        of section 3.1.
    """
    _check(top_n)
    columns: dict[str, Scores] = {"scores": scores, "truth": truth}
    num_archs = finite_rows(columns).n
    used = sorted({n for n in top_n if n <= num_archs})
    name = f"average_accuracy_tau_a[N={','.join(map(str, used))}]"
    statistic = Statistic(lambda x, y: _tau_a(x, y, used))
    return measure(RankCorrelation, name, statistic, columns, options)


def _tau_a(scores: Floats, truth: Floats, top_n: Sequence[int]) -> float:
    series = np.asarray(top_n, dtype=np.float64)
    if series.size < 2:
        return float("nan")
    averages = _averages(scores, truth, top_n)
    # Sums of the same scores over other N differ by rounding: that must not order them.
    unit = 1e-13 * np.abs(averages).max() or 1.0
    return float(tau_statistic("a").function(series, np.rint(averages / unit)))


def _averages(scores: Floats, truth: Floats, top_n: Sequence[int]) -> Floats:
    averages = [
        inclusion(truth, n) @ scores / n if n <= truth.size else float("nan") for n in top_n
    ]
    return np.array(averages, dtype=np.float64)


def _check(top_n: Sequence[int]) -> None:
    for n in top_n:
        at_least("top_n", n, 1)
