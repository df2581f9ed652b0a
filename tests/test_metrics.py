# SPDX-License-Identifier: MIT
"""Rank metrics against hand-computed cases, the definitions by brute force, and scipy."""

from __future__ import annotations

import math
import time
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nasfast import metrics

small_integers = st.integers(-3, 3)
pairs = st.lists(st.tuples(small_integers, small_integers), min_size=2, max_size=25)
triples = st.lists(
    st.tuples(small_integers, small_integers, small_integers), min_size=2, max_size=20
)


def tau_b_by_definition(x, y):
    concordance = tied_x = tied_y = count = 0
    for i, j in combinations(range(len(x)), 2):
        dx, dy = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
        concordance += dx * dy
        tied_x += dx == 0
        tied_y += dy == 0
        count += 1
    scale = math.sqrt((count - tied_x) * (count - tied_y))
    return concordance / scale if scale else math.nan


def same(a, b):
    return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-12)


@pytest.mark.parametrize(
    ("scores", "truth", "tau", "rho"),
    [
        ([1, 2, 3], [10, 20, 30], 1.0, 1.0),
        ([1, 2, 3], [30, 20, 10], -1.0, -1.0),
        # 6 pairs, one discordant (3, 4): (5 - 1) / 6. Ranks differ by 1 twice: 1 - 6 * 2 / 60.
        ([1, 2, 3, 4], [1, 2, 4, 3], 4 / 6, 0.8),
        # One tie in scores: 2 of 3 pairs comparable there, both concordant: 2 / sqrt(2 * 3).
        ([1, 1, 2], [1, 2, 3], 2 / math.sqrt(6), 1.5 / math.sqrt(1.5 * 2)),
    ],
)
def test_hand_computed(scores, truth, tau, rho):
    assert metrics.kendall_tau(scores, truth).value == pytest.approx(tau, abs=1e-15)
    assert metrics.spearman(scores, truth).value == pytest.approx(rho, abs=1e-15)


@given(pairs)
def test_tau_b_is_its_definition_and_scipys(rows):
    x, y = zip(*rows, strict=True)
    ours = metrics.kendall_tau(x, y).value
    assert same(ours, tau_b_by_definition(x, y))
    assert same(ours, float(stats.kendalltau(x, y).statistic))


@given(pairs)
def test_spearman_is_scipys(rows):
    x, y = zip(*rows, strict=True)
    if len(set(x)) == 1 or len(set(y)) == 1:  # scipy warns there
        assert math.isnan(metrics.spearman(x, y).value)
    else:
        assert same(metrics.spearman(x, y).value, float(stats.spearmanr(x, y).statistic))


def test_partial_tau_by_hand():
    # tau(x, y) = 4/6 (pair 3-4), tau(x, z) = 4/6 (pair 1-2), tau(y, z) = 2/6 (both pairs).
    x, y, z = [1, 2, 3, 4], [1, 2, 4, 3], [2, 1, 3, 4]
    by_hand = (4 / 6 - 4 / 6 * 2 / 6) / math.sqrt((1 - 16 / 36) * (1 - 4 / 36))
    assert metrics.partial_kendall_tau(x, y, z).value == pytest.approx(by_hand, rel=1e-14)
    assert by_hand == pytest.approx(math.sqrt(0.4))


@given(triples)
def test_partial_tau_is_the_pearson_partial_of_pair_signs(rows):
    # Tau-b is the uncentred correlation of the signs of all ordered pairs, so the partial is the
    # correlation of what is left of two sign vectors after projecting out the third.
    signs = [
        np.array([np.sign(a - b) for a, b in permutations(column, 2)], dtype=float)
        for column in zip(*rows, strict=True)
    ]
    ours = metrics.partial_kendall_tau(*zip(*rows, strict=True)).value
    u, v, w = signs
    if not w.any():
        assert math.isnan(ours)
        return
    u, v = u - (u @ w) / (w @ w) * w, v - (v @ w) / (w @ w) * w
    scale = math.sqrt((u @ u) * (v @ v))
    if scale < 1e-9:
        assert math.isnan(ours)
    else:
        assert ours == pytest.approx((u @ v) / scale, abs=1e-9)


def test_partial_tau_takes_out_a_common_cause():
    rng = np.random.default_rng(3)
    cause = rng.normal(size=2000)
    x, y = cause + rng.normal(size=2000), cause + rng.normal(size=2000)
    plain = metrics.kendall_tau(x, y).value
    assert plain == pytest.approx(1 / 3, abs=0.03)
    # Greiner's relation: tau is 1/3 between the two and 1/2 to their cause, so the partial is
    # (1/3 - 1/4) / (3/4) = 1/9; not 0, though the Pearson partial is.
    partial = metrics.partial_kendall_tau(x, y, cause)
    assert partial.value == pytest.approx(1 / 9, abs=0.03)
    assert metrics.partial_kendall_tau(x, y, -cause).value == pytest.approx(partial.value)


def test_partial_tau_is_undefined_where_given_explains_all():
    x = np.arange(10.0)
    rng = np.random.default_rng(0)
    assert math.isnan(metrics.partial_kendall_tau(x, rng.random(10), x**3).value)
    assert math.isnan(metrics.partial_kendall_tau(rng.random(10), x, -x).value)
    assert math.isnan(metrics.partial_kendall_tau(x, rng.random(10), np.ones(10)).value)


@given(pairs)
def test_symmetries(rows):
    x, y = (np.array(c, dtype=float) for c in zip(*rows, strict=True))
    for function in (metrics.kendall_tau, metrics.spearman):
        value = function(x, y).value
        assert same(value, function(y, x).value)
        assert same(value, function(np.exp(x), y).value)
        assert same(value, -function(-x, y).value)


def test_counts_of_rows_and_ties():
    scores = [1.0, 1.0, 2.0, np.nan, 3.0, np.inf, 3.0, 3.0, 5.0]
    truth = [0.1, 0.2, 0.2, 0.3, np.nan, 0.5, 0.6, 0.7, 0.8]
    result = metrics.kendall_tau(scores, truth)
    # Left: scores 1 1 2 3 3 5 and truth .1 .2 .2 .6 .7 .8.
    assert (result.n, result.dropped) == (6, 3)
    assert (result.ties_scores, result.ties_truth) == (4, 2)
    assert (result.interval, result.confidence) == (None, None)
    assert result.value == metrics.kendall_tau([1, 1, 2, 3, 3, 5], [1, 2, 2, 6, 7, 8]).value
    partial = metrics.partial_kendall_tau(scores, truth, [np.nan, *range(8)])
    assert (partial.n, partial.dropped) == (5, 4)


@pytest.mark.parametrize("function", [metrics.kendall_tau, metrics.spearman])
def test_constant_input_is_undefined(function):
    for scores, truth in [([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [0, 0, 0]), ([1, 1], [1, 1])]:
        result = function(scores, truth, bootstrap=20)
        assert math.isnan(result.value)
        assert result.interval is None and result.confidence is None


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([1, 2], [1, 2, 3]), {}, r"truth: wanted 2 values.*got 3"),
        (([1], [1]), {}, r"scores, truth: wanted at least 2 rows.*got 1 of 1"),
        (([], []), {}, r"got 0 of 0"),
        (([1, np.nan, 2], [np.inf, 1, 2]), {}, r"got 1 of 3"),
        ((np.ones((2, 2)), [1, 2]), {}, r"scores: wanted 1 dimension, got shape \(2, 2\)"),
        (([1, 2], 3.0), {}, r"truth: wanted 1 dimension"),
        ((["a", "b"], [1, 2]), {}, r"scores: wanted numbers"),
        (([1, 2], [1, 2]), {"bootstrap": -1}, r"bootstrap: wanted at least 0"),
        (([1, 2], [1, 2]), {"confidence": 1.0}, r"confidence: wanted .* got 1.0"),
    ],
)
@pytest.mark.parametrize("function", [metrics.kendall_tau, metrics.spearman])
def test_errors_name_the_argument(function, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments, **options)


def test_partial_tau_errors_name_given():
    with pytest.raises(ValueError, match=r"given: wanted 2 values.*got 1"):
        metrics.partial_kendall_tau([1, 2], [1, 2], [1])


def test_bootstrap_is_reproducible_by_seed():
    rng = np.random.default_rng(1)
    x = rng.normal(size=200)
    y = x + rng.normal(size=200)
    first = metrics.kendall_tau(x, y, bootstrap=50, confidence=0.9, seed=7)
    assert first == metrics.kendall_tau(x, y, bootstrap=50, confidence=0.9, seed=7)
    assert first.interval != metrics.kendall_tau(x, y, bootstrap=50, seed=8).interval
    assert first.confidence == 0.9
    low, high = first.interval
    assert low < first.value < high


def test_bootstrap_of_a_perfect_ranking_is_a_point():
    interval = metrics.kendall_tau(range(50), range(50), bootstrap=20).interval
    assert interval == pytest.approx((1.0, 1.0), abs=1e-15)


def test_bootstrap_leaves_out_undefined_resamples():
    result = metrics.kendall_tau([0, 1, 1], [0, 1, 2], bootstrap=100)
    assert np.isfinite(result.interval).all()


@pytest.mark.parametrize("function", [metrics.kendall_tau, metrics.spearman])
def test_bootstrap_interval_covers(function):
    # For a bivariate normal the population values are known: Greiner's relation for tau, and the
    # grade correlation for rho.
    pearson = 0.6
    truth = {
        metrics.kendall_tau: 2 / math.pi * math.asin(pearson),
        metrics.spearman: 6 / math.pi * math.asin(pearson / 2),
    }[function]
    rng = np.random.default_rng(11)
    trials = 100
    covered = 0
    for trial in range(trials):
        x, noise = rng.normal(size=(2, 80))
        y = pearson * x + math.sqrt(1 - pearson**2) * noise
        low, high = function(x, y, bootstrap=100, confidence=0.9, seed=trial).interval
        covered += low <= truth <= high
    # Binomial(100, 0.9) lies in 80..98 with probability 0.998; bootstrap levels are approximate.
    assert 80 <= covered <= 98


@given(st.lists(st.one_of(st.floats(width=16), st.sampled_from([0.0, 1.0])), max_size=30))
def test_count_ties_by_definition(values):
    expected = sum(
        any(a == b for j, b in enumerate(values) if i != j) for i, a in enumerate(values)
    )
    assert metrics.count_ties(values) == expected


@given(
    st.lists(
        st.sampled_from([-1.0, -0.0, 0.0, 1.0, 2.5, math.nan, math.inf, -math.inf]), max_size=30
    ),
    st.integers(0, 40),
)
@settings(max_examples=200)
def test_rank_order_and_top_k(scores, k):
    expected = sorted(
        range(len(scores)),
        key=lambda i: (not math.isfinite(scores[i]), -scores[i] if math.isfinite(scores[i]) else 0),
    )
    assert metrics.rank_order(scores).tolist() == expected
    assert metrics.top_k(scores, k).tolist() == expected[:k]


def test_top_k_refuses_a_negative_k():
    with pytest.raises(ValueError, match="k: wanted at least 0, got -1"):
        metrics.top_k([1.0], -1)


def test_the_whole_of_nas_bench_201_takes_seconds():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=15_625)
    start = time.perf_counter()
    result = metrics.kendall_tau(truth + rng.normal(size=15_625), truth, bootstrap=200)
    elapsed_s = time.perf_counter() - start
    assert result.interval[1] - result.interval[0] < 0.03
    assert elapsed_s < 15.0  # about 1 s on an idle core; the margin is for shared machines
