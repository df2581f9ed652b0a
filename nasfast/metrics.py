# SPDX-License-Identifier: MIT
"""Rank metrics: how well scores order architectures, always with the number of pairs and of ties.

A higher score is better throughout; pass ``-loss`` where the score is a loss. Rows in which any
value is not finite are left out of a correlation and counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

__all__ = [
    "RankCorrelation",
    "count_ties",
    "kendall_tau",
    "partial_kendall_tau",
    "rank_order",
    "spearman",
    "top_k",
]

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.intp]
_Statistic = Callable[..., float]

# Below this, 1 - tau^2 is rounding: one discordant pair among a million rows still leaves 8e-12.
_PERFECT = 1e-12


@dataclass(frozen=True)
class RankCorrelation:
    """One rank correlation and what is needed to judge it.

    Attributes:
        name: ``"kendall_tau_b"``, ``"spearman"`` or ``"partial_kendall_tau_b"``.
        value: In [-1, 1]; nan where it is undefined, as for a constant input.
        n: Architectures used.
        dropped: Architectures left out because one of their values is not finite.
        ties_scores: Used architectures that share their score with at least one other.
        ties_truth: The same for the truth.
        interval: Percentile bootstrap interval over architectures; None if it was not asked for
            or the value is undefined.
        confidence: Level of ``interval``, in (0, 1); None without an interval.
    """

    name: str
    value: float
    n: int
    dropped: int
    ties_scores: int
    ties_truth: int
    interval: tuple[float, float] | None
    confidence: float | None


def kendall_tau(
    scores: npt.ArrayLike,
    truth: npt.ArrayLike,
    *,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
) -> RankCorrelation:
    """Kendall's tau-b, which corrects the number of comparable pairs for ties on either side.

    ``(concordant - discordant) / sqrt((pairs - tied in scores) (pairs - tied in truth))``.

    Args:
        scores: Scores, higher is better, ``[n]``.
        truth: Values to agree with, higher is better, ``[n]``.
        bootstrap: Resamples of the architectures for the interval; 0 for none. Resamples in
            which the value is undefined are left out.
        confidence: Level of the interval, in (0, 1).
        seed: Seed of the resampling; equal seeds give equal intervals.

    Returns:
        The correlation over the rows in which both values are finite.

    Raises:
        ValueError: If an input is not 1-d, lengths differ, fewer than two rows are finite, or an
            option is out of range.

    Source:
        Kendall, The treatment of ties in ranking problems, Biometrika 33, 1945.
    """
    columns = {"scores": scores, "truth": truth}
    return _correlate("kendall_tau_b", _tau_b, columns, bootstrap, confidence, seed)


def spearman(
    scores: npt.ArrayLike,
    truth: npt.ArrayLike,
    *,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
) -> RankCorrelation:
    """Spearman's rho: Pearson's correlation of the ranks, where tied values share their mean rank.

    Args:
        scores: As for :func:`kendall_tau`.
        truth: As for :func:`kendall_tau`.
        bootstrap: As for :func:`kendall_tau`.
        confidence: As for :func:`kendall_tau`.
        seed: As for :func:`kendall_tau`.

    Returns:
        The correlation over the rows in which both values are finite.

    Raises:
        ValueError: As for :func:`kendall_tau`.
    """
    columns = {"scores": scores, "truth": truth}
    return _correlate("spearman", _rho, columns, bootstrap, confidence, seed)


def partial_kendall_tau(
    scores: npt.ArrayLike,
    truth: npt.ArrayLike,
    given: npt.ArrayLike,
    *,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
) -> RankCorrelation:
    """Kendall's tau-b of scores and truth with the part that a third ranking explains taken out.

    ``(t_st - t_sg t_tg) / sqrt((1 - t_sg^2) (1 - t_tg^2))`` with tau-b for every ``t``: does the
    score know more of the truth than, say, the number of parameters does? Undefined where
    ``given`` orders one of the other two perfectly.

    Args:
        scores: As for :func:`kendall_tau`.
        truth: As for :func:`kendall_tau`.
        given: The ranking to hold fixed, ``[n]``; its direction does not matter.
        bootstrap: As for :func:`kendall_tau`.
        confidence: As for :func:`kendall_tau`.
        seed: As for :func:`kendall_tau`.

    Returns:
        The correlation over the rows in which all three values are finite.

    Raises:
        ValueError: As for :func:`kendall_tau`.

    Source:
        Kendall, Partial rank correlation, Biometrika 32, 1942; there without ties.
    """
    columns = {"scores": scores, "truth": truth, "given": given}
    return _correlate("partial_kendall_tau_b", _partial_tau_b, columns, bootstrap, confidence, seed)


def count_ties(values: npt.ArrayLike) -> int:
    """Number of entries that equal at least one other entry; a nan equals nothing.

    Args:
        values: ``[n]``.

    Raises:
        ValueError: If ``values`` is not 1-d or not numeric.
    """
    column = _column("values", values)
    counts = np.unique(column[~np.isnan(column)], return_counts=True)[1]
    return int(counts[counts > 1].sum())


def rank_order(scores: npt.ArrayLike) -> _Ints:
    """Indices of all architectures, best first.

    Equal scores keep the order of their indices; scores that are not finite come last.

    Args:
        scores: Scores, higher is better, ``[n]``.

    Returns:
        A permutation of ``0 .. n - 1``, ``[n]``, int.

    Raises:
        ValueError: If ``scores`` is not 1-d or not numeric.
    """
    column = _column("scores", scores)
    return np.argsort(np.where(np.isfinite(column), -column, np.inf), kind="stable")


def top_k(scores: npt.ArrayLike, k: int) -> _Ints:
    """Indices of the ``k`` best architectures, best first, in the order of :func:`rank_order`.

    Args:
        scores: Scores, higher is better, ``[n]``.
        k: How many, at least 0; all of them where there are fewer.

    Returns:
        ``[min(k, n)]``, int.

    Raises:
        ValueError: If ``k`` is negative or ``scores`` is not 1-d.
    """
    if k < 0:
        raise ValueError(f"k: wanted at least 0, got {k}")
    return rank_order(scores)[:k]


def _correlate(
    name: str,
    statistic: _Statistic,
    columns: dict[str, npt.ArrayLike],
    bootstrap: int,
    confidence: float,
    seed: int,
) -> RankCorrelation:
    if bootstrap < 0:
        raise ValueError(f"bootstrap: wanted at least 0 resamples, got {bootstrap}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence: wanted a level between 0 and 1, got {confidence}")
    table, dropped = _finite_rows(columns)
    # Only the order matters: small integers sort faster than floats, once for each resample.
    codes = np.stack([np.unique(column, return_inverse=True)[1] for column in table])
    value = statistic(*codes)
    interval = None
    if bootstrap and np.isfinite(value):
        interval = _bootstrap_interval(statistic, codes, bootstrap, confidence, seed)
    return RankCorrelation(
        name=name,
        value=value,
        n=table.shape[1],
        dropped=dropped,
        ties_scores=count_ties(table[0]),
        ties_truth=count_ties(table[1]),
        interval=interval,
        confidence=confidence if interval else None,
    )


def _bootstrap_interval(
    statistic: _Statistic, codes: _Ints, resamples: int, confidence: float, seed: int
) -> tuple[float, float] | None:
    rng = np.random.default_rng(seed)
    n = codes.shape[1]
    values = np.array([statistic(*codes[:, rng.integers(n, size=n)]) for _ in range(resamples)])
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    low, high = np.quantile(values, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return float(low), float(high)


def _tau_b(x: _Ints, y: _Ints) -> float:
    # The method concerns the p-value alone, which nobody reads: the asymptotic one costs least,
    # but divides by n - 2.
    method: Literal["asymptotic", "auto"] = "asymptotic" if x.size > 2 else "auto"
    return float(stats.kendalltau(x, y, method=method).statistic)


def _partial_tau_b(x: _Ints, y: _Ints, z: _Ints) -> float:
    xy, xz, yz = _tau_b(x, y), _tau_b(x, z), _tau_b(y, z)
    left_x, left_y = 1.0 - xz * xz, 1.0 - yz * yz
    # Written so that nan counts as undefined too.
    if not (left_x > _PERFECT and left_y > _PERFECT):
        return float("nan")
    return float(np.clip((xy - xz * yz) / np.sqrt(left_x * left_y), -1.0, 1.0))


def _rho(x: _Ints, y: _Ints) -> float:
    a, b = _mean_ranks(x), _mean_ranks(y)
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    if not scale > 0.0:
        return float("nan")
    return float(np.clip((a @ b) / scale, -1.0, 1.0))


def _mean_ranks(codes: _Ints) -> _Floats:
    counts = np.bincount(codes)
    last = np.cumsum(counts)
    ranks: _Floats = (last - (counts - 1) / 2.0)[codes]
    return ranks


def _finite_rows(columns: dict[str, npt.ArrayLike]) -> tuple[_Floats, int]:
    arrays = {name: _column(name, values) for name, values in columns.items()}
    n = arrays["scores"].size
    for name, array in arrays.items():
        if array.size != n:
            raise ValueError(f"{name}: wanted {n} values, one for each of scores, got {array.size}")
    table = np.stack(list(arrays.values()))
    finite = np.isfinite(table).all(axis=0)
    used = int(finite.sum())
    if used < 2:
        names = ", ".join(arrays)
        raise ValueError(f"{names}: wanted at least 2 rows of finite values, got {used} of {n}")
    return table[:, finite], n - used


def _column(name: str, values: npt.ArrayLike) -> _Floats:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: wanted numbers, got {type(values).__name__}: {error}") from None
    if array.ndim != 1:
        raise ValueError(f"{name}: wanted 1 dimension, got shape {array.shape}")
    return array
