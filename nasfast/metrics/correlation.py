# SPDX-License-Identifier: MIT
"""Correlations of ranks and of values: Spearman, Pearson, and either given a third column."""

from __future__ import annotations

from typing import Any, Literal, Unpack

import numpy as np
import numpy.typing as npt

from nasfast.metrics.inputs import Floats, Ints, PerImage, Scores, one_of
from nasfast.metrics.kendall import partial, partial_kendall_tau
from nasfast.metrics.resampling import Statistic, Ties, draw_rows, measure
from nasfast.metrics.results import Interval, IntervalOptions, RankCorrelation


def spearman(
    scores: Scores, truth: npt.ArrayLike | PerImage, **options: Unpack[IntervalOptions]
) -> RankCorrelation:
    """Spearman's rho: Pearson's correlation of the ranks, where tied values share their mean rank.

    Args:
        scores: As for :func:`kendall_tau`.
        truth: As for :func:`kendall_tau`.
        **options: As in :class:`IntervalOptions`.

    Returns:
        The correlation over the rows in which both values are finite.

    Raises:
        ValueError: As for :func:`kendall_tau`.

    Definition:
        ``scipy.stats.spearmanr``, to 1e-12.
    """
    columns: dict[str, Scores] = {"scores": scores, "truth": truth}
    return measure(RankCorrelation, "spearman", SPEARMAN, columns, options)


def pearson(
    scores: Scores, truth: npt.ArrayLike | PerImage, **options: Unpack[IntervalOptions]
) -> RankCorrelation:
    """Pearson's correlation of the values themselves.

    Args:
        scores: As for :func:`kendall_tau`.
        truth: As for :func:`kendall_tau`.
        **options: As in :class:`IntervalOptions`.

    Returns:
        The correlation over the rows in which both values are finite.

    Raises:
        ValueError: As for :func:`kendall_tau`.

    Definition:
        ``scipy.stats.pearsonr``, to 1e-12.
    """
    columns: dict[str, Scores] = {"scores": scores, "truth": truth}
    return measure(RankCorrelation, "pearson", Statistic(_pearson), columns, options)


def partial_correlation(
    scores: Scores,
    truth: npt.ArrayLike,
    given: npt.ArrayLike,
    *,
    method: Literal["kendall", "spearman", "pearson"],
    **options: Unpack[IntervalOptions],
) -> RankCorrelation:
    """Correlation of scores and truth with what a third column explains taken out.

    ``(r_st - r_sg r_tg) / sqrt((1 - r_sg^2) (1 - r_tg^2))``; for Pearson this is the correlation
    of what least squares on ``given`` leaves of the other two. With the number of parameters or
    FLOPs as ``given``: does the score know more than the size?

    Args:
        scores: As for :func:`kendall_tau`.
        truth: As for :func:`kendall_tau`.
        given: What to hold fixed, ``[n]``; its direction does not matter.
        method: The correlation ``r``; ``"kendall"`` is :func:`partial_kendall_tau`.
        **options: As in :class:`IntervalOptions`.

    Returns:
        The correlation over the rows in which all three values are finite; nan where ``given``
        explains one of the other two perfectly.

    Raises:
        ValueError: As for :func:`kendall_tau`.
    """
    one_of("method", method, ("kendall", "spearman", "pearson"))
    if method == "kendall":
        return partial_kendall_tau(scores, truth, given, **options)
    columns: dict[str, Scores] = {"scores": scores, "truth": truth, "given": given}
    statistic = _PARTIAL_SPEARMAN if method == "spearman" else Statistic(_partial_pearson)
    return measure(RankCorrelation, f"partial_{method}", statistic, columns, options)


class _OfRanks(Statistic):
    """A statistic of dense integer ranks, which columns are made to once for all resamples."""

    def value_and_ties(self, *columns: Floats) -> tuple[Any, Ties]:
        codes = [_codes(column) for column in columns]
        return self.function(*codes), (_count_equal(codes[0]), _count_equal(codes[1]))

    def resample_architectures(self, columns: Floats, interval: Interval) -> Floats:
        codes = np.stack([_codes(column) for column in columns])
        drawn = draw_rows(codes.shape[1], interval)
        return np.array([self.function(*codes[:, rows]) for rows in drawn])


def _spearman(*columns: Floats | Ints) -> float:
    return _pearson(*(_mean_ranks(column) for column in columns))


def _partial_spearman(*columns: Floats | Ints) -> float:
    return _partial_pearson(*(_mean_ranks(column) for column in columns))


def _partial_pearson(x: Floats, y: Floats, z: Floats) -> float:
    return float(partial(_pearson(x, y), _pearson(x, z), _pearson(y, z)))


def _pearson(x: Floats, y: Floats) -> float:
    x, y = _centred(x), _centred(y)
    return float(np.clip((x @ y) / np.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def _centred(values: Floats) -> Floats:
    """Mean 0 and the largest about 1; nan for a constant."""
    # A mean of equal values need not equal them, so what is left of them could pass for spread.
    if values.min() == values.max():
        return np.full(values.shape, np.nan)
    values = _near_one(values)
    return _near_one(values - values.mean())


def _near_one(values: Floats) -> Floats:
    """Times a power of two, which rounds nothing: squares then neither overflow nor vanish."""
    return np.ldexp(values, -np.frexp(np.abs(values).max())[1])


def _codes(values: Floats | Ints) -> Ints:
    if values.dtype.kind == "i":
        return values.astype(np.intp, copy=False)
    codes: Ints = np.unique(values, return_inverse=True)[1]
    return codes


def _count_equal(codes: Ints) -> int:
    counts = np.bincount(codes)
    return int(counts[counts > 1].sum())


def _mean_ranks(values: Floats | Ints) -> Floats:
    codes = _codes(values)
    counts = np.bincount(codes)
    last = np.cumsum(counts)
    ranks: Floats = (last - (counts - 1) / 2.0)[codes]
    return ranks


SPEARMAN: Statistic = _OfRanks(_spearman)
_PARTIAL_SPEARMAN = _OfRanks(_partial_spearman)
