# SPDX-License-Identifier: MIT
"""How well scores order architectures, always with the number of rows and of ties.

A higher score is better throughout; pass ``-loss`` where the score is a loss. Rows in which any
value is not finite are left out and counted. What is undefined is nan.

Every metric takes the options of :class:`IntervalOptions` for a bootstrap interval. What is
resampled follows from the scores: architectures for ``[archs]``, images for :class:`PerImage`,
seeds for :class:`PerSeed`; the result names it.
"""

from nasfast.metrics.agreement import (
    RankingAgreement,
    correlation_across_supernets,
    ranking_agreement,
    top_k_overlap,
)
from nasfast.metrics.average_accuracy import (
    AVERAGE_ACCURACY_TOP_N,
    average_accuracy,
    average_accuracy_tau,
)
from nasfast.metrics.correlation import partial_correlation, pearson, spearman
from nasfast.metrics.curves import TopCurve, sampling_mass_curve, top_identification_curve
from nasfast.metrics.inputs import PerImage, PerSeed, Scores, count_ties
from nasfast.metrics.kendall import kendall_tau, partial_kendall_tau
from nasfast.metrics.results import IntervalOptions, Measured, RankCorrelation
from nasfast.metrics.selection import (
    best_of_sample,
    probability_to_surpass_random,
    rank_order,
    sampled_searches,
    surpass_random,
    top_k,
    top_k_best,
    top_k_mean,
    top_k_regret,
)
from nasfast.metrics.sparse import sparse_tau

__all__ = [
    "AVERAGE_ACCURACY_TOP_N",
    "IntervalOptions",
    "Measured",
    "PerImage",
    "PerSeed",
    "RankCorrelation",
    "RankingAgreement",
    "Scores",
    "TopCurve",
    "average_accuracy",
    "average_accuracy_tau",
    "best_of_sample",
    "correlation_across_supernets",
    "count_ties",
    "kendall_tau",
    "partial_correlation",
    "partial_kendall_tau",
    "pearson",
    "probability_to_surpass_random",
    "rank_order",
    "ranking_agreement",
    "sampled_searches",
    "sampling_mass_curve",
    "sparse_tau",
    "spearman",
    "surpass_random",
    "top_identification_curve",
    "top_k",
    "top_k_best",
    "top_k_mean",
    "top_k_overlap",
    "top_k_regret",
]
