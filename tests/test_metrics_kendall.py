# SPDX-License-Identifier: MIT
"""The Kendall family against definitions by brute force, scipy, and the published sparse code."""

from __future__ import annotations

import math
import sys
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nasfast import metrics, native

MASK = 2**64 - 1
STEP = 0x9E3779B97F4A7C15

values = st.one_of(
    st.integers(-3, 3).map(float),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 1e-320, -1e-320, 1e300, -1e300]),
)
pairs = st.lists(st.tuples(values, values), min_size=2, max_size=40)


def counts_by_definition(x, y):
    n = len(x)
    concordant = discordant = tied_x = tied_y = tied_both = 0
    for i, j in combinations(range(n), 2):
        sign_x, sign_y = (x[i] > x[j]) - (x[i] < x[j]), (y[i] > y[j]) - (y[i] < y[j])
        concordant += sign_x * sign_y == 1
        discordant += sign_x * sign_y == -1
        tied_x += sign_x == 0
        tied_y += sign_y == 0
        tied_both += sign_x == sign_y == 0
    distinct = [len(set(column)) for column in (x, y)]
    shared = [sum(list(column).count(value) > 1 for value in column) for column in (x, y)]
    return [n, concordant, discordant, tied_x, tied_y, tied_both, *distinct, *shared]


def count(x, y):
    return native.host().count_pairs(np.array(x, dtype=float), np.array(y, dtype=float))


@given(pairs)
def test_counts_are_their_definition(rows):
    x, y = zip(*rows, strict=True)
    assert count(x, y).tolist() == counts_by_definition(x, y)


@pytest.mark.parametrize(("n", "kinds"), [(1023, 7), (1024, 2000), (3000, 40), (2500, 10**9)])
@pytest.mark.parametrize("scale", [1.0, 1e-300, 1e290])
def test_counts_of_many_rows_are_their_definition(n, kinds, scale):
    # From 1,024 rows on they are sorted by digits.
    rng = np.random.default_rng(n)
    x = rng.integers(-kinds, kinds, size=n) * scale
    y = np.where(rng.random(n) < 0.5, x, rng.normal(size=n) * scale)
    sign_x, sign_y = (np.sign(np.subtract.outer(column, column)) for column in (x, y))
    agree = sign_x * sign_y
    expected = [(agree > 0).sum() // 2, (agree < 0).sum() // 2]
    expected += [((sign == 0).sum() - n) // 2 for sign in (sign_x, sign_y)]
    expected += [(((sign_x == 0) & (sign_y == 0)).sum() - n) // 2]
    assert count(x, y)[1:6].tolist() == expected


def test_keys_that_share_their_leading_bits_are_sorted():
    # All but one value lie within 2^-40 of each other, so 33 leading bits cannot tell them apart.
    rng = np.random.default_rng(0)
    x = 1.0 + rng.permutation(5000) * 2.0**-52
    x[0] = -1e300
    y = rng.permutation(5000).astype(float)
    tau = float(stats.kendalltau(x, y).statistic)
    assert metrics.kendall_tau(x, y).value == pytest.approx(tau, abs=1e-12)
    assert metrics.kendall_tau(y, x).value == pytest.approx(tau, abs=1e-12)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        # Pairs of (1 1), (1 2), (2 3), (3 2): 3 concordant, 1 discordant, one tied in each.
        ("a", 2 / 6),
        ("b", 2 / math.sqrt(5 * 5)),
        ("c", 2 * 2 / (16 * 2 / 3)),
    ],
)
def test_variants_by_hand(variant, expected):
    result = metrics.kendall_tau([1, 1, 2, 3], [1, 2, 3, 2], variant=variant)
    assert result.value == pytest.approx(expected, abs=1e-15)
    assert result.name == f"kendall_tau_{variant}"
    assert (result.n, result.ties_scores, result.ties_truth) == (4, 2, 2)


@pytest.mark.parametrize("variant", ["b", "c"])
@given(rows=pairs)
def test_variants_are_scipys(variant, rows):
    x, y = zip(*rows, strict=True)
    ours = metrics.kendall_tau(x, y, variant=variant).value
    theirs = float(stats.kendalltau(x, y, variant=variant).statistic)
    assert ours == pytest.approx(theirs, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("decimals", [1, 3, 16])
@pytest.mark.parametrize("variant", ["b", "c"])
def test_variants_are_scipys_at_length(variant, decimals):
    rng = np.random.default_rng(decimals)
    truth = rng.normal(size=20_000)
    scores = np.round(truth + rng.normal(size=truth.size), decimals)
    theirs = float(stats.kendalltau(scores, truth, variant=variant).statistic)
    ours = metrics.kendall_tau(scores, truth, variant=variant).value
    assert ours == pytest.approx(theirs, abs=1e-12)


def test_tau_a_of_a_constant_is_zero_and_the_others_undefined():
    constant = [[1, 1, 1], [1, 2, 3]]
    assert metrics.kendall_tau(*constant, variant="a").value == 0.0
    for variant in ("b", "c"):
        result = metrics.kendall_tau(*constant, variant=variant, bootstrap=10)
        assert math.isnan(result.value)
        assert (result.interval, result.resampled) == (None, None)


class SplitMix64:
    """The documented generator, in plain integers."""

    def __init__(self, seed, resample):
        self.state = mix((mix((seed + STEP) & MASK) + (resample + 1) * STEP) & MASK)

    def below(self, bound):
        self.state = (self.state + STEP) & MASK
        return mix(self.state) * bound >> 64


def mix(z):
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def resampled_rows(n, resamples, seed):
    streams = [SplitMix64(seed, index) for index in range(resamples)]
    return [[stream.below(n) for _ in range(n)] for stream in streams]


def test_splitmix_is_the_published_one():
    # First outputs from state 0, of the generator's authors.
    stream = SplitMix64(0, 0)
    stream.state = 0
    wanted = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [stream.below(2**64) for _ in range(3)] == wanted


@pytest.mark.parametrize("kinds", [3, 1000])
def test_bootstrap_counts_what_it_says_it_draws(kinds):
    rng = np.random.default_rng(0)
    x, y = rng.integers(kinds, size=(2, 60)).astype(float)
    found = native.host().bootstrap_pairs(x, y, 5, 2**63 + 7, 1)
    rows = resampled_rows(60, 5, 2**63 + 7)
    assert found.tolist() == [
        counts_by_definition(x[draw].tolist(), y[draw].tolist()) for draw in rows
    ]


def test_bootstrap_does_not_depend_on_threads_or_on_how_many():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 300))
    one = native.host().bootstrap_pairs(x, y, 40, 3, 1)
    for threads in (2, 7, 100):
        assert (native.host().bootstrap_pairs(x, y, 40, 3, threads) == one).all()
    assert (native.host().bootstrap_pairs(x, y, 9, 3, 2) == one[:9]).all()
    assert len(np.unique(one[:, 1])) > 30
    tau = [metrics.kendall_tau(x, y, bootstrap=40, seed=3, threads=threads) for threads in (1, 3)]
    assert tau[0] == tau[1]
    assert tau[0].resampled == "architectures"


@pytest.mark.parametrize("variant", ["a", "b", "c"])
def test_interval_is_the_percentiles_of_the_resamples(variant):
    rng = np.random.default_rng(4)
    x, y = rng.integers(9, size=(2, 50)).astype(float)
    result = metrics.kendall_tau(x, y, variant=variant, bootstrap=30, confidence=0.8, seed=5)
    draws = [np.array(rows) for rows in resampled_rows(50, 30, 5)]
    taus = [metrics.kendall_tau(x[rows], y[rows], variant=variant).value for rows in draws]
    assert result.interval == pytest.approx(tuple(np.quantile(taus, [0.1, 0.9])), abs=1e-12)


def test_partial_interval_draws_all_columns_alike():
    rng = np.random.default_rng(4)
    x, y, z = rng.normal(size=(3, 50))
    result = metrics.partial_kendall_tau(x, y, z, bootstrap=20, confidence=0.8, seed=5)
    draws = [np.array(rows) for rows in resampled_rows(50, 20, 5)]
    taus = [metrics.partial_kendall_tau(x[rows], y[rows], z[rows]).value for rows in draws]
    assert result.interval == pytest.approx(tuple(np.quantile(taus, [0.1, 0.9])), abs=1e-12)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros(3), np.zeros(4), "equal lengths"),
        (np.zeros((2, 2)), np.zeros(4), "x: wanted one dimension"),
        (np.array([0.0, math.nan]), np.zeros(2), "x: wanted numbers, got nan"),
        (np.zeros(2), np.array([0.0, -math.nan]), "y: wanted numbers, got nan"),
    ],
)
def test_compiled_counts_refuse_bad_columns(x, y, message):
    with pytest.raises(ValueError, match=message):
        native.host().count_pairs(x, y)
    with pytest.raises(ValueError, match=message):
        native.host().bootstrap_pairs(x, y, 3, 0, 1)


def test_compiled_counts_of_nothing():
    empty = np.zeros(0)
    assert native.host().count_pairs(empty, empty).tolist() == [0] * 10
    assert native.host().bootstrap_pairs(np.ones(1), np.ones(1), 0, 0, 1).shape == (0, 10)
    with pytest.raises(ValueError, match="at least one row"):
        native.host().bootstrap_pairs(empty, empty, 3, 0, 1)
    with pytest.raises(ValueError, match="resamples: wanted at least 0"):
        native.host().bootstrap_pairs(np.ones(1), np.ones(1), -1, 0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "d"}, "variant: wanted one of a, b, c, got 'd'"),
        ({"seed": -1}, "seed: wanted 0 to"),
        ({"threads": -1}, "threads: wanted at least 0"),
    ],
)
def test_option_errors(options, message):
    with pytest.raises(ValueError, match=message):
        metrics.kendall_tau([1, 2], [1, 2], **options)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="resamples"):
        metrics.kendall_tau([1, 2], [1, 2], resamples=3)


# The sparse tau.


def published_sparse_tau(scores, truth, threshold):
    """What the authors' code does, step by step (FACTS 4.1), in plain Python."""
    mean = sum(truth) / len(truth)
    if 1 < mean < 100:
        truth = [value * 1e-2 for value in truth]
    by_truth = sorted(range(len(truth)), key=lambda i: truth[i])
    rank, ranks, previous = 0, {}, None
    for i in by_truth:
        bin_ = truth[i] * (1 / threshold) // 1
        if previous is not None and bin_ > previous:
            rank += 1
        ranks[i], previous = rank, bin_
    by_score = sorted(range(len(scores)), key=lambda i: scores[i])
    x, y = [ranks[i] for i in by_truth], [ranks[i] for i in by_score]
    return float(stats.kendalltau(x, y).statistic)


@pytest.mark.parametrize(
    ("binning", "expected"),
    [
        # Bins of width 1: 0 0 1 2 by floor: of 6 pairs 5 are comparable, the first two not; with
        # scores 2 1 3 4 all 5 agree. 5 / sqrt(6 * 5).
        ("floor", 5 / math.sqrt(30)),
        # 0 1 2 2 to the nearest: (3, 4) not comparable, (1, 2) disagrees: (4 - 1) / sqrt(6 * 5).
        ("round", 3 / math.sqrt(30)),
        # Positions: 0 0 1 2 against the bins by score, 0 0 1 2: equal, so 1.
        ("published_code", 1.0),
    ],
)
def test_sparse_tau_by_hand(binning, expected):
    result = metrics.sparse_tau([2, 1, 3, 4], [0.2, 0.6, 1.5, 2.3], binning=binning, threshold=1.0)
    if binning == "published_code":  # its mean, 1.15, is taken for percent: all in bin 0
        assert math.isnan(result.value)
        result = metrics.sparse_tau(
            [2, 1, 3, 4], [0.002, 0.006, 0.015, 0.023], binning=binning, threshold=0.01
        )
    assert result.value == pytest.approx(expected, abs=1e-15)
    assert result.ties_truth == 2
    assert result.name.startswith(f"sparse_tau_b[{binning}, threshold=")


@pytest.mark.parametrize("threshold", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("percent", [False, True])
def test_sparse_tau_is_the_published_codes(threshold, percent):
    rng = np.random.default_rng(0)
    truth = np.round(0.9 + 0.02 * rng.normal(size=500), 4) * (100 if percent else 1)
    scores = truth / truth.std() + rng.normal(size=500)
    ours = metrics.sparse_tau(scores, truth, binning="published_code", threshold=threshold)
    theirs = published_sparse_tau(scores.tolist(), truth.tolist(), threshold)
    assert ours.value == pytest.approx(theirs, abs=1e-12)
    others = [
        metrics.sparse_tau(
            scores, truth, binning=binning, threshold=threshold * (100 if percent else 1)
        ).value
        for binning in ("floor", "round")
    ]
    assert ours.value not in others


@pytest.mark.parametrize("binning", ["floor", "round"])
def test_sparse_tau_is_scipys_on_bins(binning):
    rng = np.random.default_rng(0)
    truth = 0.9 + 0.02 * rng.normal(size=400)
    scores = truth + 0.02 * rng.normal(size=400)
    bins = {"floor": np.floor, "round": np.round}[binning](truth / 1e-3)
    ours = metrics.sparse_tau(scores, truth, binning=binning, threshold=1e-3, bootstrap=20)
    assert ours.value == pytest.approx(float(stats.kendalltau(scores, bins).statistic), abs=1e-12)
    assert ours == metrics.sparse_tau(scores, truth, binning=binning, threshold=1e-3, bootstrap=20)
    assert ours.interval[0] < ours.value < ours.interval[1]


def test_a_truth_on_the_edge_of_a_bin_lies_in_it():
    # 91.3 / 0.1 is 912.9999999999999 in floating point, and 0.3 / 0.1 is 2.9999999999999996.
    truth, scores = [0.3, 0.35, 91.3, 91.35], [1, 2, 3, 4]
    result = metrics.sparse_tau(scores, truth, binning="floor", threshold=0.1)
    assert result.ties_truth == 4
    single = np.array(truth, dtype=np.float32)  # the third, as float64, is 91.30000305
    assert metrics.sparse_tau(scores, single, binning="floor", threshold=0.1).ties_truth == 4
    low = np.array([90.9, 90.95], dtype=np.float32)  # 90.90000153 and 90.94999695
    assert metrics.sparse_tau([1, 2], low, binning="floor", threshold=0.1).ties_truth == 2
    assert metrics.sparse_tau([1, 2], low, binning="round", threshold=0.1).ties_truth == 0
    # Halves go up: 0.35 and 91.35 are nearest to 0.4 and 91.4.
    assert metrics.sparse_tau(scores, truth, binning="round", threshold=0.1).ties_truth == 0


def test_sparse_tau_drops_what_is_not_finite():
    scores, truth = [1, 2, 3, math.nan, 5], [0.1, 0.2, math.nan, 0.4, 0.5]
    for binning in ("floor", "round", "published_code"):
        result = metrics.sparse_tau(scores, truth, binning=binning, threshold=0.01)
        assert (result.n, result.dropped, result.value) == (3, 2, pytest.approx(1.0))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"binning": "ceil", "threshold": 0.1}, "binning: wanted one of floor, round"),
        ({"binning": "floor", "threshold": 0.0}, "threshold: wanted a positive width"),
        ({"binning": "floor", "threshold": math.nan}, "threshold: wanted a positive width"),
    ],
)
def test_sparse_tau_errors(choice, message):
    with pytest.raises(ValueError, match=message):
        metrics.sparse_tau([1, 2], [1, 2], **choice)
    with pytest.raises(TypeError, match="binning"):
        metrics.sparse_tau([1, 2], [1, 2], threshold=0.1)


def test_a_bare_checkout_says_what_it_lacks(monkeypatch):
    monkeypatch.setitem(sys.modules, "nasfast._host", None)
    with pytest.raises(ImportError, match=r"nasfast\._host cannot be imported.*make install"):
        metrics.kendall_tau([1, 2], [1, 2])
    assert metrics.spearman([1, 2], [1, 2], bootstrap=5).value == 1.0  # needs numpy alone
