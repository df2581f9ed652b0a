# SPDX-License-Identifier: MIT
"""Kendall's tau: quotients of exact counts of pairs, which compiled code makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Unpack

import numpy as np
import numpy.typing as npt

from nasfast import native
from nasfast.metrics.inputs import Floats, PerImage, Scores, one_of
from nasfast.metrics.resampling import Statistic, Ties, measure
from nasfast.metrics.results import Interval, IntervalOptions, RankCorrelation

Counts = npt.NDArray[np.int64]  # [..., 10], the fields of PairCounts in csrc/host/kendall.h

# Below this, 1 - r^2 is rounding: one discordant pair among a million rows still leaves 8e-12.
_PERFECT = 1e-12


def kendall_tau(
    scores: Scores,
    truth: npt.ArrayLike | PerImage,
    *,
    variant: Literal["a", "b", "c"] = "b",
    **options: Unpack[IntervalOptions],
) -> RankCorrelation:
    """Kendall's tau: how many more pairs of architectures are ordered alike than contrarily.

    With ``d = concordant - discordant`` of ``p = n (n - 1) / 2`` pairs:

    * ``"a"``: ``d / p``; a tied pair counts as neither, so ties hold the value away from 1.
    * ``"b"``: ``d / sqrt((p - tied in scores) (p - tied in truth))``; 1 where the ties agree too.
    * ``"c"``: ``2 d / (n^2 (m - 1) / m)``, ``m`` the smaller number of distinct values; can come
      near 1 where one side has fewer values than the other.

    Args:
        scores: Scores, higher is better, ``[n]``, or :class:`PerImage` or :class:`PerSeed`.
        truth: Values to agree with, higher is better, ``[n]``, or beside a :class:`PerImage`
            another of the same images, which are then drawn together.
        variant: As above.
        **options: As in :class:`IntervalOptions`.

    Returns:
        The correlation over the rows in which both values are finite; b and c are nan for a
        constant column.

    Raises:
        ValueError: If an input is not 1-d, lengths differ, fewer than two rows are finite, or an
            option is out of range.
        ImportError: If ``nasfast._host`` is not built.

    Definition:
        ``scipy.stats.kendalltau`` for b and c, to 1e-12.

    Source:
        Kendall, The treatment of ties in ranking problems, Biometrika 33, 1945 (a, b); Stuart,
        The estimation and comparison of strengths of association in contingency tables,
        Biometrika 40, 1953 (c).
    """
    one_of("variant", variant, ("a", "b", "c"))
    columns: dict[str, Scores] = {"scores": scores, "truth": truth}
    name = f"kendall_tau_{variant}"
    return measure(RankCorrelation, name, tau_statistic(variant), columns, options)


def partial_kendall_tau(
    scores: Scores,
    truth: npt.ArrayLike,
    given: npt.ArrayLike,
    **options: Unpack[IntervalOptions],
) -> RankCorrelation:
    """Kendall's tau-b of scores and truth with the part that a third ranking explains taken out.

    ``(t_st - t_sg t_tg) / sqrt((1 - t_sg^2) (1 - t_tg^2))`` with tau-b for every ``t``: does the
    score know more of the truth than, say, the number of parameters does? Undefined where
    ``given`` orders one of the other two perfectly.

    Args:
        scores: As for :func:`kendall_tau`.
        truth: As for :func:`kendall_tau`.
        given: The ranking to hold fixed, ``[n]``; its direction does not matter.
        **options: As in :class:`IntervalOptions`.

    Returns:
        The correlation over the rows in which all three values are finite.

    Raises:
        ValueError: As for :func:`kendall_tau`.
        ImportError: If ``nasfast._host`` is not built.

    Source:
        Kendall, Partial rank correlation, Biometrika 32, 1942; there without ties.
    """
    columns: dict[str, Scores] = {"scores": scores, "truth": truth, "given": given}
    statistic = _PartialTau(_partial_tau_b)
    return measure(RankCorrelation, "partial_kendall_tau_b", statistic, columns, options)


def tau_statistic(variant: str) -> Statistic:
    """Tau of two columns as a statistic with compiled resampling."""
    return _Tau(lambda x, y: float(_tau(_count_pairs(x, y), variant)), variant)


def partial(xy: Any, xz: Any, yz: Any) -> Any:
    """Correlation of x and y given z from the three correlations; elementwise."""
    xy, xz, yz = (np.asarray(r, dtype=np.float64) for r in (xy, xz, yz))
    left_x, left_y = 1.0 - xz * xz, 1.0 - yz * yz
    # Written so that nan counts as undefined too.
    defined = (left_x > _PERFECT) & (left_y > _PERFECT)
    scale = np.sqrt(np.where(defined, left_x * left_y, np.nan))
    return np.clip((xy - xz * yz) / scale, -1.0, 1.0)


@dataclass(frozen=True)
class _Tau(Statistic):
    variant: str

    def value_and_ties(self, *columns: Floats) -> tuple[Any, Ties]:
        counts = _count_pairs(*columns)  # which has the ties: another sort of them is not needed
        return float(_tau(counts, self.variant)), (int(counts[8]), int(counts[9]))

    def resample_architectures(self, columns: Floats, interval: Interval) -> Floats:
        x, y = columns
        return _tau(_resampled_pairs(x, y, interval), self.variant)


class _PartialTau(Statistic):
    def resample_architectures(self, columns: Floats, interval: Interval) -> Floats:
        # Equal seeds draw equal rows, whatever the columns.
        x, y, z = columns
        pairs = ((x, y), (x, z), (y, z))
        return partial(*(_tau(_resampled_pairs(a, b, interval), "b") for a, b in pairs))


def _partial_tau_b(x: Floats, y: Floats, z: Floats) -> float:
    xy, xz, yz = (_tau(_count_pairs(a, b), "b") for a, b in ((x, y), (x, z), (y, z)))
    return float(partial(xy, xz, yz))


def _count_pairs(x: Floats, y: Floats) -> Counts:
    return native.host().count_pairs(np.ascontiguousarray(x), np.ascontiguousarray(y))


def _resampled_pairs(x: Floats, y: Floats, interval: Interval) -> Counts:
    return native.host().bootstrap_pairs(
        x, y, interval.bootstrap, interval.seed, interval.num_threads
    )


def _tau(counts: Counts, variant: str) -> Floats:
    rows, concordant, discordant, tied_x, tied_y = np.moveaxis(counts[..., :5], -1, 0)
    total = rows * (rows - 1) // 2
    excess = (concordant - discordant).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        if variant == "a":
            tau = excess / total
        elif variant == "b":
            # Two roots: the product of two counts would not fit.
            tau = excess / np.sqrt(total - tied_x) / np.sqrt(total - tied_y)
        else:
            fewer = np.minimum(counts[..., 6], counts[..., 7]).astype(np.float64)
            tau = 2.0 * excess / (rows.astype(np.float64) ** 2 * (fewer - 1.0) / fewer)
    return np.clip(tau, -1.0, 1.0)
