# SPDX-License-Identifier: MIT
"""Agreement of two rankings, and correlation of metrics across supernets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Unpack

import numpy as np
import numpy.typing as npt

from nasfast.metrics.correlation import SPEARMAN, spearman
from nasfast.metrics.inputs import Floats, PerImage, Scores, at_least
from nasfast.metrics.kendall import kendall_tau
from nasfast.metrics.resampling import Statistic, measure
from nasfast.metrics.results import IntervalOptions, Measured, RankCorrelation
from nasfast.metrics.selection import inclusion


@dataclass(frozen=True)
class RankingAgreement:
    """How alike two rankings are, neither of them the truth; ``ties_truth`` is of the second.

    Attributes:
        kendall: Tau-b.
        spearman: Rho.
        overlap: Share of the one's best that are among the other's.
    """

    kendall: RankCorrelation
    spearman: RankCorrelation
    overlap: Measured


def ranking_agreement(
    first: Scores, second: npt.ArrayLike | PerImage, *, k: int, **options: Unpack[IntervalOptions]
) -> RankingAgreement:
    """Compare two scores of the same architectures: two precisions, seeds, or numbers of images.

    Args:
        first: Scores, higher is better, ``[n]``, or :class:`PerImage` or :class:`PerSeed`.
        second: Other scores, higher is better, ``[n]``, or beside a :class:`PerImage` another of
            the same images, which are then drawn together.
        k: Of :func:`top_k_overlap`.
        **options: As in :class:`IntervalOptions`.

    Raises:
        ValueError: As for :func:`kendall_tau`, or if ``k`` is below 1.
        ImportError: If ``nasfast._host`` is not built.
    """
    return RankingAgreement(
        kendall=kendall_tau(first, second, **options),
        spearman=spearman(first, second, **options),
        overlap=top_k_overlap(first, second, k, **options),
    )


def top_k_overlap(
    first: Scores, second: npt.ArrayLike | PerImage, k: int, **options: Unpack[IntervalOptions]
) -> Measured:
    """Share of the ``k`` best by one score that are among the ``k`` best by the other.

    Where equal scores reach across a cut, the expectation over random orders of them. Two
    unrelated rankings have ``k / n``.

    Args:
        first: As for :func:`ranking_agreement`.
        second: As for :func:`ranking_agreement`.
        k: How many, at least 1; all of them where there are fewer.
        **options: As in :class:`IntervalOptions`.

    Returns:
        In [0, 1], over the rows in which both values are finite.

    Raises:
        ValueError: As for :func:`top_k_mean`.
    """
    at_least("k", k, 1)

    def value(x: Floats, y: Floats) -> float:
        return float(inclusion(x, k) @ inclusion(y, k) / min(k, x.size))

    columns: dict[str, Scores] = {"first": first, "second": second}
    return measure(Measured, f"top_{k}_overlap", Statistic(value), columns, options, min_rows=1)


def correlation_across_supernets(
    measured: Mapping[str, npt.ArrayLike], **options: Unpack[IntervalOptions]
) -> dict[tuple[str, str], RankCorrelation]:
    """Spearman's rho of every two metrics, each supernet being one point.

    Which cheap metric of a supernet tells how good the architecture is that a search with it
    finds? In the paper: supernet accuracy, sparse tau and final performance.

    Args:
        measured: By name of the metric, its value for each supernet, ``[supernets]``.
        **options: As in :class:`IntervalOptions`; supernets are resampled.

    Returns:
        For each pair of names, in their order; ``n`` and ties count supernets.

    Raises:
        ValueError: If there are fewer than two metrics, one is not 1-d, lengths differ, or fewer
            than two supernets have both values of a pair.

    Source:
        Yu et al., How to Train Your Super-Net, section 4 and figure 11.
    """
    if len(measured) < 2:
        raise ValueError(f"measured: wanted at least 2 metrics, got {len(measured)}")
    return {
        (a, b): measure(
            RankCorrelation,
            f"spearman[{a}, {b}]",
            SPEARMAN,
            {a: np.asarray(measured[a]), b: measured[b]},
            options,
            unit="supernets",
        )
        for a, b in combinations(measured, 2)
    }
