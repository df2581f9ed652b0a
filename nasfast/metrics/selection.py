# SPDX-License-Identifier: MIT
"""What a search would find: the best by score, and how good they truly are.

Where equal scores leave the choice open, the value is the mean over all orders of the equal ones,
so it does not depend on how rows happen to be sorted. ``rank_order`` and ``top_k``, which must
name architectures, take equal scores in the order of their rows.
"""

from __future__ import annotations

from typing import Literal, Unpack

import numpy as np
import numpy.typing as npt

from nasfast.metrics.inputs import Floats, Ints, Scores, at_least, column, one_of
from nasfast.metrics.resampling import Statistic, measure
from nasfast.metrics.results import IntervalOptions, Measured

Formula = Literal["paper", "published_code"]


def rank_order(scores: npt.ArrayLike) -> Ints:
    """Indices of all architectures, best first.

    Equal scores keep the order of their indices; scores that are not finite come last.

    Args:
        scores: Scores, higher is better, ``[n]``.

    Returns:
        A permutation of ``0 .. n - 1``, ``[n]``, int.

    Raises:
        ValueError: If ``scores`` is not 1-d or not numeric.
    """
    values = column("scores", scores)
    return np.argsort(np.where(np.isfinite(values), -values, np.inf), kind="stable")


def top_k(scores: npt.ArrayLike, k: int) -> Ints:
    """Indices of the ``k`` best architectures, best first, in the order of :func:`rank_order`.

    Args:
        scores: Scores, higher is better, ``[n]``.
        k: How many, at least 0; all of them where there are fewer.

    Returns:
        ``[min(k, n)]``, int.

    Raises:
        ValueError: If ``k`` is negative or ``scores`` is not 1-d.
    """
    at_least("k", k, 0)
    return rank_order(scores)[:k]


def top_k_mean(
    scores: Scores, truth: npt.ArrayLike, k: int, **options: Unpack[IntervalOptions]
) -> Measured:
    """Mean truth of the ``k`` architectures of best score.

    Args:
        scores: As for :func:`kendall_tau`.
        truth: As for :func:`kendall_tau`.
        k: How many, at least 1; all of them where there are fewer.
        **options: As in :class:`IntervalOptions`.

    Returns:
        In the unit of ``truth``, over the rows in which both values are finite.

    Raises:
        ValueError: If an input is not 1-d, lengths differ, no row is finite, ``k`` is below 1, or
            an option is out of range.

    Source:
        The SoTL thesis, section 4.2, "Top 10".
    """
    at_least("k", k, 1)
    statistic = Statistic(lambda x, y: float(inclusion(x, k) @ y / min(k, y.size)))
    return _select(f"top_{k}_mean", statistic, scores, truth, options)


def top_k_best(
    scores: Scores, truth: npt.ArrayLike, k: int, **options: Unpack[IntervalOptions]
) -> Measured:
    """Best truth among the ``k`` architectures of best score.

    Args:
        scores: As for :func:`kendall_tau`.
        truth: As for :func:`kendall_tau`.
        k: As for :func:`top_k_mean`.
        **options: As in :class:`IntervalOptions`.

    Returns:
        In the unit of ``truth``, over the rows in which both values are finite.

    Raises:
        ValueError: As for :func:`top_k_mean`.
    """
    at_least("k", k, 1)
    statistic = Statistic(lambda x, y: _best_of_top(x, y, k))
    return _select(f"top_{k}_best", statistic, scores, truth, options)


def top_k_regret(
    scores: Scores, truth: npt.ArrayLike, k: int, **options: Unpack[IntervalOptions]
) -> Measured:
    """How much better the best truth of all is than that among the ``k`` best by score.

    Args:
        scores: As for :func:`kendall_tau`.
        truth: As for :func:`kendall_tau`.
        k: As for :func:`top_k_mean`.
        **options: As in :class:`IntervalOptions`.

    Returns:
        At least 0, in the unit of ``truth``; the best of all is among the finite rows.

    Raises:
        ValueError: As for :func:`top_k_mean`.
    """
    at_least("k", k, 1)
    statistic = Statistic(lambda x, y: float(y.max()) - _best_of_top(x, y, k))
    return _select(f"top_{k}_regret", statistic, scores, truth, options)


def best_of_sample(
    scores: Scores,
    truth: npt.ArrayLike,
    *,
    sample: int = 200,
    keep: int = 3,
    **options: Unpack[IntervalOptions],
) -> Measured:
    """Mean truth of the ``keep`` best by score among ``sample`` architectures drawn at random.

    The result of the paper's whole search. The value is the expectation over all samples without
    replacement, exactly, not that of one draw (see :func:`sampled_searches` for draws). Given the
    200 sampled architectures themselves it is the paper's number.

    Args:
        scores: As for :func:`kendall_tau`.
        truth: As for :func:`kendall_tau`.
        sample: Architectures drawn; all of them where there are fewer.
        keep: Architectures kept, at most ``sample``.
        **options: As in :class:`IntervalOptions`.

    Returns:
        In the unit of ``truth``, over the rows in which both values are finite.

    Raises:
        ValueError: As for :func:`top_k_mean`, or if ``keep`` is not from 1 to ``sample``.

    Source:
        Yu et al., How to Train Your Super-Net, section 3, last metric.
    """
    _check_search(sample, keep)
    statistic = Statistic(lambda x, y: _expected_search(x, y, sample, keep))
    return _select(f"best_{keep}_of_{sample}", statistic, scores, truth, options)


def sampled_searches(
    scores: npt.ArrayLike,
    truth: npt.ArrayLike,
    *,
    sample: int = 200,
    keep: int = 3,
    draws: int,
    seed: int = 0,
) -> Floats:
    """Results of single random searches, whose mean is :func:`best_of_sample`.

    Args:
        scores: Finite, higher is better, ``[n]``.
        truth: Finite, ``[n]``.
        sample: As for :func:`best_of_sample`.
        keep: As for :func:`best_of_sample`.
        draws: Searches.
        seed: Of the draws.

    Returns:
        Mean truth of what each search found, ``[draws]``.

    Raises:
        ValueError: If an input is not 1-d and finite, lengths differ, or a number is out of range.
    """
    _check_search(sample, keep)
    at_least("draws", draws, 0)
    x, y = column("scores", scores), column("truth", truth)
    if x.size != y.size or not x.size:
        raise ValueError(f"truth: wanted {x.size} values, at least 1, got {y.size}")
    for name, values in (("scores", x), ("truth", y)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: wanted finite values")
    rng = np.random.default_rng(seed)
    found = np.empty(draws)
    for draw in range(draws):
        # In random order, so a stable sort takes equal scores in random order.
        rows = rng.choice(x.size, size=min(sample, x.size), replace=False)
        found[draw] = y[rows[rank_order(x[rows])[:keep]]].mean()
    return found


def probability_to_surpass_random(
    rank: float, num_architectures: int, runs: int, *, formula: Formula
) -> float:
    """Probability that the architecture found is better than randomly searched ones.

    With ranks ascending in quality, ``r_max`` the best, a random architecture is no better than
    the found one with probability ``r / r_max``. The paper's text and its code differ:

    * ``"paper"``: ``1 - (1 - r / r_max)^runs``: at least one of ``runs`` random architectures is
      no better.
    * ``"published_code"``: ``(r / r_max)^runs``: none of them is better.

    Args:
        rank: Of the best architecture found, from 1, the worst of all, to ``num_architectures``.
        num_architectures: Of the space, ``r_max``.
        runs: Searches, at least 1; the code's default is 10, its calls have 3.
        formula: As above.

    Raises:
        ValueError: If a number is out of range or the formula unknown.

    Source:
        Yu et al., How to Train Your Super-Net, section 3, and its code,
        nasws/cnn/visualization/tool.py.
    """
    one_of("formula", formula, ("paper", "published_code"))
    at_least("num_architectures", num_architectures, 1)
    at_least("runs", runs, 1)
    if not 1 <= rank <= num_architectures:
        raise ValueError(f"rank: wanted 1 to {num_architectures}, got {rank}")
    share = rank / num_architectures
    return 1.0 - (1.0 - share) ** runs if formula == "paper" else share**runs


def surpass_random(
    scores: Scores,
    truth: npt.ArrayLike,
    *,
    runs: int,
    formula: Formula,
    **options: Unpack[IntervalOptions],
) -> Measured:
    """:func:`probability_to_surpass_random` of the architecture of best score.

    Its rank is the number of architectures, itself included, of no better truth.

    Args:
        scores: As for :func:`kendall_tau`.
        truth: As for :func:`kendall_tau`, of the whole space or a fair sample of it.
        runs: As for :func:`probability_to_surpass_random`.
        formula: As for :func:`probability_to_surpass_random`.
        **options: As in :class:`IntervalOptions`.

    Returns:
        A probability, over the rows in which both values are finite.

    Raises:
        ValueError: As for :func:`top_k_mean` and :func:`probability_to_surpass_random`.
    """
    probability_to_surpass_random(1, 1, runs, formula=formula)  # for its errors

    def value(x: Floats, y: Floats) -> float:
        found = y[x == x.max()]
        ranks = np.searchsorted(np.sort(y), found, side="right").tolist()
        chances = [
            probability_to_surpass_random(rank, y.size, runs, formula=formula) for rank in ranks
        ]
        return float(np.mean(chances))

    name = f"surpass_random[{formula}, runs={runs}]"
    return _select(name, Statistic(value), scores, truth, options)


def inclusion(scores: Floats, k: int) -> Floats:
    """Probability that each architecture is among the ``k`` of best score.

    1 or 0, and between them where equal scores reach across the cut.

    Args:
        scores: Finite, ``[n]``.
        k: At least 1.

    Returns:
        ``[n]``; the sum is ``min(k, n)``.
    """
    if k >= scores.size:
        return np.ones(scores.size)
    cut = np.partition(scores, scores.size - k)[scores.size - k]
    above, at = scores > cut, scores == cut
    return above + at * ((k - above.sum()) / at.sum())


def _best_of_top(scores: Floats, truth: Floats, k: int) -> float:
    chance = inclusion(scores, k)
    sure, open_ = truth[chance == 1.0], truth[(chance > 0.0) & (chance < 1.0)]
    least = sure.max() if sure.size else -np.inf
    if not open_.size:
        return float(least)
    places = min(k, truth.size) - sure.size
    open_ = np.sort(open_)[::-1]
    return float(_search_weights(open_.size, places, 1) @ np.maximum(open_, least))


def _expected_search(scores: Floats, truth: Floats, sample: int, keep: int) -> float:
    n = scores.size
    sample, keep = min(sample, n), min(keep, n)
    codes = np.unique(-scores, return_inverse=True)[1]  # 0 is best
    # In random order, equal scores have the same expected truth.
    means = np.bincount(codes, weights=truth) / np.bincount(codes)
    return float(_search_weights(n, sample, keep) @ means[np.sort(codes)] / keep)


def _search_weights(n: int, sample: int, keep: int) -> Floats:
    """Probability of each rank to be among the best ``keep`` of ``sample`` drawn from ``n``.

    ``sample / n``, to be drawn, times the hypergeometric probability that fewer than ``keep`` of
    the other ``sample - 1`` are among the better ranks.
    """
    weights = np.zeros(n)
    for better in range(keep):
        # Probability of exactly so many better ones, from the first rank that has them on. In
        # logarithms: the first can be too small for a float where later ones are not.
        with np.errstate(divide="ignore"):
            t = np.arange(better)
            first = np.log((sample - 1.0 - t) / (n - 1.0 - t)).sum()
            rank = np.arange(better, n - 1, dtype=np.float64)
            steps = np.log((rank + 1.0) / (rank + 1.0 - better))
            steps += np.log(np.maximum(n - rank - sample + better, 0.0) / (n - 1.0 - rank))
        weights[better:] += np.exp(first + np.concatenate([[0.0], np.cumsum(steps)]))
    return weights * (sample / n)


def _check_search(sample: int, keep: int) -> None:
    at_least("keep", keep, 1)
    at_least("sample", sample, keep)


def _select(
    name: str,
    statistic: Statistic,
    scores: Scores,
    truth: npt.ArrayLike,
    options: IntervalOptions,
) -> Measured:
    columns: dict[str, Scores] = {"scores": scores, "truth": truth}
    return measure(Measured, name, statistic, columns, options, min_rows=1)
