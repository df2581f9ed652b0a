# SPDX-License-Identifier: MIT
"""Pearson, partial correlations, the average-accuracy tau, and correlation across supernets."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nasfast import metrics

numbers = st.floats(-1e6, 1e6).map(lambda value: round(value, 3))
pairs = st.lists(st.tuples(numbers, numbers), min_size=3, max_size=30)


def residual_correlation(x, y, z):
    """Pearson of what least squares on z leaves."""
    basis = np.stack([np.ones_like(z), z], axis=1)
    left = [column - basis @ np.linalg.lstsq(basis, column, rcond=None)[0] for column in (x, y)]
    return float(stats.pearsonr(*left).statistic)


def test_pearson_by_hand():
    # Deviations -1 0 1 and -2 1 1: 3 / sqrt(2 * 6).
    assert metrics.pearson([1, 2, 3], [0, 3, 3]).value == pytest.approx(3 / math.sqrt(12))
    assert metrics.pearson([1, 2, 3], [0, 3, 3]).name == "pearson"


@given(pairs)
def test_pearson_is_scipys(rows):
    x, y = np.array(rows).T
    ours = metrics.pearson(x, y).value
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert math.isnan(ours)
    elif min(np.ptp(x) / np.abs(x).max(), np.ptp(y) / np.abs(y).max()) > 1e-3:
        assert ours == pytest.approx(float(stats.pearsonr(x, y).statistic), abs=1e-12)


def test_pearson_of_extreme_and_constant_columns():
    # Synaptic flow reaches 1e61; squares of what is here overflow or vanish.
    for scale in (1e300, 1e-300):
        assert metrics.pearson(np.array([1, 2, 4]) * scale, [1, 2, 4]).value == pytest.approx(1.0)
    # The mean of three times 0.1 is not 0.1.
    assert math.isnan(metrics.pearson([0.1, 0.1, 0.1], [1, 2, 3], bootstrap=5).value)


@pytest.mark.parametrize("function", [metrics.pearson, metrics.spearman])
def test_interval_is_the_percentiles_of_numpys_draws(function):
    rng = np.random.default_rng(0)
    x, y = rng.integers(20, size=(2, 60))
    result = function(x, y, bootstrap=40, confidence=0.9, seed=3)
    draw = np.random.default_rng(3)
    rows = [draw.integers(60, size=60) for _ in range(40)]
    values = [function(x[chosen], y[chosen]).value for chosen in rows]
    assert result.interval == pytest.approx(tuple(np.quantile(values, [0.05, 0.95])), abs=1e-12)
    assert (result.confidence, result.resampled) == (0.9, "architectures")


def test_partial_correlation_by_hand():
    # Ranks of all three pairs as in Kendall's: rho 0.8, 0.8 and, two swaps apart, 0.6.
    x, y, z = [1, 2, 3, 4], [1, 2, 4, 3], [2, 1, 3, 4]
    expected = (0.8 - 0.8 * 0.6) / math.sqrt((1 - 0.64) * (1 - 0.36))
    for method in ("spearman", "pearson"):  # the values are ranks
        result = metrics.partial_correlation(x, y, z, method=method)
        assert result.value == pytest.approx(expected, abs=1e-14)
        assert result.name == f"partial_{method}"
    kendall = metrics.partial_correlation(x, y, z, method="kendall")
    assert kendall == metrics.partial_kendall_tau(x, y, z)


def test_partial_correlation_is_that_of_residuals():
    rng = np.random.default_rng(0)
    z = rng.integers(50, size=300).astype(float)
    x, y = z + 10 * rng.normal(size=(2, 300))
    ours = metrics.partial_correlation(x, y, z, method="pearson", bootstrap=20)
    assert ours.value == pytest.approx(residual_correlation(x, y, z), abs=1e-12)
    assert ours.interval[0] < ours.value < ours.interval[1]
    ranks = [stats.rankdata(column) for column in (x, y, z)]
    ours = metrics.partial_correlation(x, y, z, method="spearman", bootstrap=20)
    assert ours.value == pytest.approx(residual_correlation(*ranks), abs=1e-12)
    assert ours.interval[0] < ours.value < ours.interval[1]


@pytest.mark.parametrize("method", ["kendall", "spearman", "pearson"])
def test_partial_correlation_is_undefined_where_size_explains_all(method):
    x = np.arange(9.0)
    y = np.random.default_rng(0).random(9)
    assert math.isnan(metrics.partial_correlation(x, y, 3 * x + 1, method=method).value)
    assert math.isnan(metrics.partial_correlation(x, y, np.ones(9), method=method).value)


def test_partial_correlation_needs_a_method():
    with pytest.raises(ValueError, match="method: wanted one of kendall, spearman, pearson"):
        metrics.partial_correlation([1, 2], [1, 2], [1, 2], method="tau")


# The average-accuracy tau.


def test_average_accuracy_by_hand():
    truth, accuracy = [5, 4, 3, 2, 1], [0.9, 0.5, 0.7, 0.1, 0.3]
    averages = metrics.average_accuracy(accuracy, truth, [1, 2, 3, 6])
    assert averages == pytest.approx([0.9, 0.7, 0.7, math.nan], nan_ok=True)
    # Over N = 1, 2, 4: 0.9, 0.7, 0.55, always falling. Over 1, 2, 3: one pair tied, two fall.
    result = metrics.average_accuracy_tau(accuracy, truth, top_n=[4, 1, 2, 6])
    assert (result.value, result.n) == (-1.0, 5)
    assert result.name == "average_accuracy_tau_a[N=1,2,4]"
    tied = metrics.average_accuracy_tau(accuracy, truth, top_n=[1, 2, 3])
    assert tied.value == pytest.approx(-2 / 3)


def test_average_accuracy_tau_is_tau_a_of_the_series():
    rng = np.random.default_rng(0)
    truth, accuracy = rng.normal(size=(2, 1000))
    order = np.argsort(-truth)
    averages = [accuracy[order[:n]].mean() for n in metrics.AVERAGE_ACCURACY_TOP_N]
    assert metrics.average_accuracy(accuracy, truth) == pytest.approx(averages, rel=1e-12)
    # Without ties scipy's tau-b is tau-a.
    theirs = stats.kendalltau(metrics.AVERAGE_ACCURACY_TOP_N, averages).statistic
    ours = metrics.average_accuracy_tau(accuracy, truth, bootstrap=20)
    assert ours.value == pytest.approx(float(theirs), abs=1e-12)
    assert -1.0 <= ours.interval[0] <= ours.interval[1] <= 1.0


def test_average_accuracy_takes_equal_truth_in_part():
    # The second place is open between 0.2 and 0.6.
    averages = metrics.average_accuracy([0.8, 0.2, 0.6], [3, 1, 1], [2])
    assert averages == pytest.approx([(0.8 + 0.4) / 2])


def test_average_accuracy_tau_where_it_is_undefined_or_zero():
    accuracy, truth = np.full(700, 0.1), np.arange(700)
    assert metrics.average_accuracy_tau(accuracy, truth).value == 0.0  # rounding orders nothing
    assert metrics.average_accuracy_tau(np.zeros(700), truth).value == 0.0
    few = metrics.average_accuracy_tau(accuracy[:20], truth[:20], bootstrap=5)
    assert math.isnan(few.value)
    assert few.interval is None
    with pytest.raises(ValueError, match="top_n: wanted at least 1, got 0"):
        metrics.average_accuracy_tau(accuracy, truth, top_n=[0, 1])


def test_average_accuracy_averages_over_seeds_first():
    truth = [4, 3, 2, 1]
    seeds = np.array([[0.9, 0.1, 0.2, 0.1], [0.5, 0.7, 0.2, 0.9]])
    result = metrics.average_accuracy_tau(
        metrics.PerSeed(seeds, average="scores"), truth, top_n=[1, 2, 4], bootstrap=10
    )
    mean = metrics.average_accuracy_tau(seeds.mean(axis=0), truth, top_n=[1, 2, 4])
    assert result.value == mean.value
    assert result.resampled == "seeds"


# Across supernets.


def test_correlation_across_supernets_by_hand():
    measured = {
        "accuracy": [0.1, 0.2, 0.3, 0.4],
        "sparse_tau": [0.1, 0.2, 0.4, 0.3],
        "found": [93.0, math.nan, 92.0, 91.0],
    }
    found = metrics.correlation_across_supernets(measured, bootstrap=20)
    assert list(found) == [
        ("accuracy", "sparse_tau"), ("accuracy", "found"), ("sparse_tau", "found")
    ]  # fmt: skip
    first = found["accuracy", "sparse_tau"]
    assert first.value == pytest.approx(0.8)
    assert (first.n, first.dropped, first.resampled) == (4, 0, "supernets")
    second = found["accuracy", "found"]
    assert (second.value, second.n, second.dropped) == (pytest.approx(-1.0), 3, 1)
    assert second.name == "spearman[accuracy, found]"
    theirs = stats.spearmanr(measured["accuracy"], measured["sparse_tau"]).statistic
    assert first.value == pytest.approx(float(theirs))


def test_correlation_across_supernets_errors():
    with pytest.raises(ValueError, match="measured: wanted at least 2 metrics, got 1"):
        metrics.correlation_across_supernets({"a": [1, 2]})
    with pytest.raises(ValueError, match="b: wanted 2 values, one for each of a, got 3"):
        metrics.correlation_across_supernets({"a": [1, 2], "b": [1, 2, 3]})
