# SPDX-License-Identifier: MIT
"""What a search finds, and the curves over the top of a space."""

from __future__ import annotations

import math
from itertools import combinations, pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nasfast import metrics

small = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), min_size=1, max_size=6)


def orders(scores):
    """Every order of the rows, best first, that the scores allow: all equally likely."""
    rows = range(len(scores))
    return [
        order
        for order in permutations(rows)
        if all(scores[a] >= scores[b] for a, b in pairwise(order))
    ]


def mean_over_orders(scores, of_order):
    return float(np.mean([of_order(list(order)) for order in orders(scores)]))


def test_top_k_by_hand():
    scores, truth = [0.9, 0.8, 0.7, 0.1, math.nan], [91.0, 94.0, 90.0, 95.0, 99.0]
    mean = metrics.top_k_mean(scores, truth, 2)
    assert (mean.name, mean.value, mean.n, mean.dropped) == ("top_2_mean", 92.5, 4, 1)
    assert metrics.top_k_best(scores, truth, 2).value == 94.0
    assert metrics.top_k_regret(scores, truth, 2).value == 1.0
    assert metrics.top_k_mean(scores, truth, 9).value == 92.5
    assert metrics.top_k_regret(scores, truth, 9).value == 0.0
    assert metrics.top_k_best([1.0], [5.0], 1, bootstrap=3).interval == (5.0, 5.0)


@given(small, st.integers(1, 7))
def test_top_k_is_the_mean_over_orders_of_equal_scores(rows, k):
    scores, truth = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    mean = mean_over_orders(scores, lambda order: truth[order[:k]].mean())
    best = mean_over_orders(scores, lambda order: truth[order[:k]].max())
    assert metrics.top_k_mean(scores, truth, k).value == pytest.approx(mean)
    assert metrics.top_k_best(scores, truth, k).value == pytest.approx(best)
    assert metrics.top_k_regret(scores, truth, k).value == pytest.approx(truth.max() - best)


def test_without_ties_top_k_is_the_rows_that_top_k_names():
    rng = np.random.default_rng(0)
    scores, truth = rng.normal(size=(2, 300))
    rows = metrics.top_k(scores, 10)
    result = metrics.top_k_mean(scores, truth, 10, bootstrap=50)
    assert result.value == pytest.approx(truth[rows].mean())
    assert result.interval[0] < result.value < result.interval[1]
    assert result.resampled == "architectures"
    assert metrics.top_k_best(scores, truth, 10).value == truth[rows].max()


@pytest.mark.parametrize("function", [metrics.top_k_mean, metrics.top_k_best, metrics.top_k_regret])
def test_top_k_errors(function):
    with pytest.raises(ValueError, match="k: wanted at least 1, got 0"):
        function([1.0], [1.0], 0)
    with pytest.raises(ValueError, match="wanted at least 1 row of finite values, got 0 of 1"):
        function([math.nan], [1.0], 1)
    with pytest.raises(ValueError, match="bootstrap: wanted at least 0"):
        function([1.0], [1.0], 1, bootstrap=-1)


# Search by a random sample.


def test_best_of_sample_by_hand():
    # Samples of 2 of (3: 10, 2: 30, 1: 20), best 1: {3, 2} 10, {3, 1} 10, {2, 1} 30.
    scores, truth = [3, 2, 1], [10, 30, 20]
    result = metrics.best_of_sample(scores, truth, sample=2, keep=1)
    assert result.value == pytest.approx(50 / 3)
    assert result.name == "best_1_of_2"
    assert metrics.best_of_sample(scores, truth, sample=3, keep=2).value == pytest.approx(20)
    # The two best of all rows, where there are no more than the sample.
    assert metrics.best_of_sample(scores, truth).name == "best_3_of_200"
    assert metrics.best_of_sample(scores, truth).value == pytest.approx(20)


@given(small, st.integers(1, 6), st.integers(1, 6))
def test_best_of_sample_is_the_mean_over_samples_and_orders(rows, sample, keep):
    scores, truth = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    sample = min(sample, len(rows))
    keep = min(keep, sample)
    found = []
    for order in orders(scores):
        for chosen in combinations(order, sample):  # keeps the order
            found.append(truth[list(chosen[:keep])].mean())
    ours = metrics.best_of_sample(scores, truth, sample=sample, keep=keep).value
    assert ours == pytest.approx(float(np.mean(found)))


def test_best_of_sample_weights_are_hypergeometric():
    n, sample, keep = 5000, 300, 100  # the first probabilities are below 1e-308
    ranks = np.arange(n)
    weights = sample / n * stats.hypergeom.cdf(keep - 1, n - 1, ranks, sample - 1)
    truth = np.random.default_rng(0).normal(size=n)
    ours = metrics.best_of_sample(-ranks, truth, sample=sample, keep=keep).value
    assert ours == pytest.approx(float(weights @ truth / keep), abs=1e-10)
    of_ones = metrics.best_of_sample(-ranks, np.ones(n), sample=sample, keep=keep).value
    assert of_ones == pytest.approx(1.0, abs=1e-11)


def test_single_searches_average_to_the_expectation():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=2000)
    scores = np.round(truth + rng.normal(size=2000))
    found = metrics.sampled_searches(scores, truth, draws=400, seed=1)
    expected = metrics.best_of_sample(scores, truth, bootstrap=30)
    assert found.mean() == pytest.approx(expected.value, abs=4 * found.std() / 20)
    assert expected.interval[0] < expected.value < expected.interval[1]
    assert (found == metrics.sampled_searches(scores, truth, draws=400, seed=1)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0}, "keep: wanted at least 1, got 0"),
        ({"sample": 2}, "sample: wanted at least 3, got 2"),
    ],
)
def test_best_of_sample_errors(options, message):
    with pytest.raises(ValueError, match=message):
        metrics.best_of_sample([1, 2], [1, 2], **options)
    with pytest.raises(ValueError, match=message):
        metrics.sampled_searches([1, 2], [1, 2], draws=1, **options)


def test_sampled_searches_errors():
    with pytest.raises(ValueError, match="truth: wanted 2 values"):
        metrics.sampled_searches([1, 2], [1], draws=1)
    with pytest.raises(ValueError, match="truth: wanted finite values"):
        metrics.sampled_searches([1, 2], [1, math.nan], draws=1)


# The probability to surpass random search.


@pytest.mark.parametrize(
    ("formula", "expected"), [("paper", 1 - 0.1**3), ("published_code", 0.9**3)]
)
def test_surpass_random_by_hand(formula, expected):
    chance = metrics.probability_to_surpass_random(90, 100, 3, formula=formula)
    assert chance == pytest.approx(expected)
    scores = [5, 9, 1, 2, 3, 4, 0, -1, -2, -3]
    truth = [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]  # the best score has the second-best truth
    result = metrics.surpass_random(scores, truth, runs=3, formula=formula, bootstrap=10)
    assert result.value == pytest.approx(expected)
    assert result.name == f"surpass_random[{formula}, runs=3]"
    assert 0.0 <= result.interval[0] <= result.interval[1] <= 1.0


@pytest.mark.parametrize(("formula", "agree"), [("paper", np.any), ("published_code", np.all)])
def test_surpass_random_is_what_drawing_finds(formula, agree):
    rng = np.random.default_rng(0)
    draws = rng.integers(1, 101, size=(20_000, 3))  # ranks, with replacement
    for rank in (20, 70):
        seen = agree(draws <= rank, axis=1).mean()
        ours = metrics.probability_to_surpass_random(rank, 100, 3, formula=formula)
        assert ours == pytest.approx(seen, abs=0.02)


def test_surpass_random_averages_over_equal_scores():
    result = metrics.surpass_random([1, 1, 0], [3, 1, 2], runs=1, formula="published_code")
    assert result.value == pytest.approx((3 / 3 + 1 / 3) / 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 5, 1), "rank: wanted 1 to 5, got 0"),
        ((6, 5, 1), "rank: wanted 1 to 5, got 6"),
        ((math.nan, 5, 1), "rank: wanted 1 to 5, got nan"),
        ((1, 0, 1), "num_architectures: wanted at least 1"),
        ((1, 5, 0), "runs: wanted at least 1"),
    ],
)
def test_surpass_random_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        metrics.probability_to_surpass_random(*arguments, formula="paper")


def test_surpass_random_names_its_formulas():
    with pytest.raises(ValueError, match="formula: wanted one of paper, published_code"):
        metrics.surpass_random([1, 2], [1, 2], runs=1, formula="text")


# Agreement of two rankings.


def test_top_k_overlap_by_hand():
    assert metrics.top_k_overlap([4, 3, 2, 1], [1, 4, 2, 3], 2).value == 0.5
    assert metrics.top_k_overlap([4, 3, 2, 1], [1, 4, 2, 3], 9).value == 1.0


@given(small, st.integers(1, 6))
def test_top_k_overlap_is_the_mean_over_orders(rows, k):
    k = min(k, len(rows))
    first, second = zip(*rows, strict=True)
    shares = [len({*a[:k]} & {*b[:k]}) / k for a in orders(first) for b in orders(second)]
    ours = metrics.top_k_overlap(first, second, k).value
    assert ours == pytest.approx(float(np.mean(shares)))


def test_ranking_agreement_holds_its_parts():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 40))
    both = metrics.ranking_agreement(a, b, k=5, bootstrap=20)
    assert both.kendall == metrics.kendall_tau(a, b, bootstrap=20)
    assert both.spearman == metrics.spearman(a, b, bootstrap=20)
    assert both.overlap == metrics.top_k_overlap(a, b, 5, bootstrap=20)
    same = metrics.ranking_agreement(a, a, k=5)
    assert [same.kendall.value, same.spearman.value, same.overlap.value] == pytest.approx([1] * 3)


# Curves.


def test_top_identification_by_hand():
    scores, truth = [4, 1, 3, 2, math.inf], [40, 30, 20, 10, 50]
    curve = metrics.top_identification_curve(scores, truth)
    assert curve.levels.tolist() == [40, 30, 20, 10]
    # Best of 1: found. Best two by score are 40 and 20: one of two. Of three: 40, 20 found.
    assert curve.values == pytest.approx([1, 1 / 2, 2 / 3, 1])
    assert curve.baseline == pytest.approx([0.25, 0.5, 0.75, 1])
    assert (curve.n, curve.dropped, curve.band, curve.resampled) == (4, 1, None, None)
    chosen = metrics.top_identification_curve(scores, truth, levels=[15, 100])
    assert chosen.values == pytest.approx([2 / 3, math.nan], nan_ok=True)
    assert chosen.baseline.tolist() == [0.75, 0.0]


@given(small)
def test_top_identification_is_the_mean_over_orders(rows):
    scores, truth = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    curve = metrics.top_identification_curve(scores, truth)
    for level, value in zip(curve.levels, curve.values, strict=True):
        top = {int(row) for row in np.flatnonzero(truth >= level)}
        recall = mean_over_orders(
            scores, lambda order, top=top: len({*order[: len(top)]} & top) / len(top)
        )
        assert value == pytest.approx(recall)


def test_random_scores_lie_on_the_baseline():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=400)
    levels = np.quantile(truth, [0.9, 0.5, 0.1])
    curves = [
        metrics.top_identification_curve(rng.normal(size=400), truth, levels=levels)
        for _ in range(100)
    ]
    assert np.mean([curve.values for curve in curves], axis=0) == pytest.approx(
        curves[0].baseline, abs=0.03
    )
    # All scores equal: any order, so exactly the baseline.
    flat = metrics.top_identification_curve(np.ones(400), truth)
    assert flat.values == pytest.approx(flat.baseline)


def test_sampling_mass_by_hand():
    curve = metrics.sampling_mass_curve([0.1, 0.5, 0.2, 0.2], [30, 40, 10, 30])
    assert curve.levels.tolist() == [40, 30, 10]
    assert curve.values == pytest.approx([0.5, 0.8, 1.0])
    assert curve.baseline == pytest.approx([0.25, 0.75, 1.0])
    uniform = metrics.sampling_mass_curve(np.ones(4), [30, 40, 10, 30])
    assert uniform.values == pytest.approx(uniform.baseline)
    assert np.isnan(metrics.sampling_mass_curve(np.zeros(2), [1, 2]).values).all()


def test_sampling_mass_is_the_weighted_distribution_function():
    rng = np.random.default_rng(0)
    truth, weights = rng.integers(20, size=200), rng.random(200)
    curve = metrics.sampling_mass_curve(weights, truth)
    expected = [weights[truth >= level].sum() / weights.sum() for level in curve.levels]
    assert curve.values == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "function", [metrics.top_identification_curve, metrics.sampling_mass_curve]
)
def test_bands_hold_the_curve(function):
    rng = np.random.default_rng(0)
    truth = rng.integers(10, size=300).astype(float)
    scores = np.exp(truth / 5 + rng.normal(size=300))
    levels = [*range(9, -1, -1), 20]
    curve = function(scores, truth, levels=levels, bootstrap=50, confidence=0.9, seed=2)
    low, high = curve.band
    assert ((low <= curve.values) & (curve.values <= high))[:-1].all()
    assert np.isnan([low[-1], high[-1]]).all()
    assert (curve.confidence, curve.resampled) == (0.9, "architectures")
    again = function(scores, truth, levels=levels, bootstrap=50, confidence=0.9, seed=2)
    assert np.array_equal(again.band, curve.band, equal_nan=True)


def test_curve_errors():
    with pytest.raises(ValueError, match=r"probabilities: wanted none below 0, got -0.5"):
        metrics.sampling_mass_curve([1, -0.5], [1, 2])
    with pytest.raises(ValueError, match="levels: wanted at most 4096 with a bootstrap, got 5000"):
        metrics.top_identification_curve(np.arange(5000), np.arange(5000), bootstrap=1)
    with pytest.raises(ValueError, match="truth: wanted 2 values"):
        metrics.top_identification_curve([1, 2], [1])
