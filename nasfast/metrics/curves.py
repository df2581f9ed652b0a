# SPDX-License-Identifier: MIT
"""Curves over the top of a space: identification of its architectures, and their probability."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import numpy.typing as npt

from nasfast.metrics.inputs import Floats, Ints, Scores, column
from nasfast.metrics.resampling import Statistic, estimate, finite_rows
from nasfast.metrics.results import Interval, IntervalOptions, Resampled

# Levels of a curve with a band: each is kept once a resample.
_MAX_BANDED_LEVELS = 4096


@dataclass(frozen=True, eq=False)
class TopCurve:
    """A share for each top of the space, a top being all architectures of at least some truth.

    Attributes:
        name: ``"top_identification"`` or ``"sampling_mass"``.
        levels: Least truth of each top, descending unless given otherwise, ``[levels]``.
        values: ``[levels]``; nan for a top without architectures.
        baseline: What a random ranking, or uniform sampling, is expected to have: the share of
            the architectures that are in the top, ``[levels]``.
        n: Architectures used.
        dropped: Architectures left out because one of their values is not finite.
        ties_scores: As in :class:`Measured`, of scores or probabilities.
        ties_truth: As in :class:`Measured`.
        band: Pointwise percentile bootstrap intervals, levels and baseline held fixed,
            ``[2, levels]``; None if they were not asked for.
        confidence: Level of each interval; None without.
        resampled: What was drawn anew; None without ``band``.
    """

    name: str
    levels: Floats
    values: Floats
    baseline: Floats
    n: int
    dropped: int
    ties_scores: int
    ties_truth: int
    band: Floats | None
    confidence: float | None
    resampled: Resampled | None


def top_identification_curve(
    scores: Scores,
    truth: npt.ArrayLike,
    *,
    levels: npt.ArrayLike | None = None,
    **options: Unpack[IntervalOptions],
) -> TopCurve:
    """Share of each top's ``m`` architectures that is among the ``m`` best by score: its recall.

    Equal scores across the cut count in part, as if drawn at random. A random ranking has
    ``m / n``.

    Args:
        scores: As for :func:`kendall_tau`.
        truth: As for :func:`kendall_tau`.
        levels: Least truth of each top; every distinct truth, best first, unless given.
        **options: As in :class:`IntervalOptions`.

    Returns:
        The curve over the rows in which both values are finite.

    Raises:
        ValueError: If an input is not 1-d, lengths differ, no row is finite, an option is out of
            range, or a band is asked for at more than 4,096 levels.

    Source:
        The paper on two-stage evaluation, section 4.1, figure 1 (left).
    """
    columns: dict[str, Scores] = {"scores": scores, "truth": truth}
    return _curve("top_identification", _recalls, columns, levels, options)


def sampling_mass_curve(
    probabilities: npt.ArrayLike,
    truth: npt.ArrayLike,
    *,
    levels: npt.ArrayLike | None = None,
    **options: Unpack[IntervalOptions],
) -> TopCurve:
    """Probability that an architecture drawn from a distribution is in each top.

    With a search's architecture weights after the softmax, the probability of an architecture is
    the product of those of its operations. Uniform sampling has ``m / n``.

    Args:
        probabilities: Of each architecture, not negative, ``[n]``; brought to the sum 1 over the
            rows used.
        truth: As for :func:`kendall_tau`.
        levels: As for :func:`top_identification_curve`.
        **options: As in :class:`IntervalOptions`.

    Returns:
        The curve over the rows in which both values are finite; nan if all probabilities are 0.

    Raises:
        ValueError: As for :func:`top_identification_curve`, or if a probability is negative.

    Source:
        The paper on two-stage evaluation, section 4.1, figure 1 (right).
    """
    values = column("probabilities", probabilities)
    if (values < 0.0).any():
        raise ValueError(f"probabilities: wanted none below 0, got {values.min()}")
    columns: dict[str, Scores] = {"probabilities": values, "truth": truth}
    return _curve("sampling_mass", _masses, columns, levels, options)


def _curve(
    name: str,
    function: Callable[[Floats, Floats, Floats], Floats],
    columns: dict[str, Scores],
    levels: npt.ArrayLike | None,
    options: IntervalOptions,
) -> TopCurve:
    interval = Interval(**options)
    rows = finite_rows(columns, min_rows=1)
    truth = rows.rest[0]
    at = np.unique(truth)[::-1] if levels is None else column("levels", levels)
    if interval.bootstrap and at.size > _MAX_BANDED_LEVELS:
        raise ValueError(
            f"levels: wanted at most {_MAX_BANDED_LEVELS} with a bootstrap, got {at.size}"
        )
    found = estimate(Statistic(lambda x, y: function(x, y, at)), rows, interval)
    band = None
    if found.samples is not None:
        tails = [(1.0 - interval.confidence) / 2.0, (1.0 + interval.confidence) / 2.0]
        with warnings.catch_warnings():  # a top that no resample has is nan, as it should be
            warnings.simplefilter("ignore", RuntimeWarning)
            band = np.nanquantile(found.samples, tails, axis=0)
    return TopCurve(
        name=name,
        levels=at,
        values=np.asarray(found.value),
        baseline=_count_at_least(truth, at) / truth.size,
        n=rows.n,
        dropped=rows.dropped,
        ties_scores=found.ties[0],
        ties_truth=found.ties[1],
        band=band,
        confidence=interval.confidence if band is not None else None,
        resampled=found.resampled if band is not None else None,
    )


def _count_at_least(values: Floats, levels: Floats) -> Ints:
    return values.size - np.searchsorted(np.sort(values), levels, side="left")


def _recalls(scores: Floats, truth: Floats, levels: Floats) -> Floats:
    n = truth.size
    # Of each architecture: how many score better, at least as well, and are at least as good. So
    # it is among the m best by score for sure if `through` <= m, and in the top of m if
    # `quality` <= m.
    order = np.argsort(-scores, kind="stable")
    scores, truth = scores[order], truth[order]
    through = _count_at_least(scores, scores)
    before = np.searchsorted(-scores, -scores, side="left")
    quality = _count_at_least(truth, truth)
    tops = _count_at_least(truth, levels)
    identified = np.searchsorted(np.sort(np.maximum(through, quality)), tops, side="right")
    # The equal scores that hold the m-th place share what places are left to them.
    last = np.maximum(tops, 1) - 1
    start, end = before[last], through[last]
    by_group = np.sort(before * (n + 1) + quality)
    members = np.searchsorted(by_group, start * (n + 1) + tops, side="right") - start
    part = np.where(end > tops, members * (tops - start) / (end - start), 0.0)
    with np.errstate(invalid="ignore"):
        return (identified + part) / tops


def _masses(probabilities: Floats, truth: Floats, levels: Floats) -> Floats:
    order = np.argsort(-truth, kind="stable")
    cumulated = np.concatenate([[0.0], np.cumsum(probabilities[order])])
    with np.errstate(invalid="ignore"):
        masses = cumulated[_count_at_least(truth, levels)] / cumulated[-1]
    return np.where(_count_at_least(truth, levels) > 0, masses, np.nan)
