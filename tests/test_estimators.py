# SPDX-License-Identifier: MIT
"""Estimators on curves small enough to do by hand."""

import math

import numpy as np
import pytest

from nasfast import estimators

LOSS = np.array([[4.0, 3.0, 2.0, 1.0, 0.5], [1.0, 1.0, 1.0, 1.0, 1.0]])
DIVERGED = np.array([[2.0, math.inf, math.nan, math.nan], [2.0, 1.0, 1.0, 1.0]])


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [-10.5, -5.0]),
        ({"window": 2}, [-1.5, -2.0]),
        ({"window": 2, "at": 3}, [-5.0, -2.0]),
        ({"window": 100}, [-10.5, -5.0]),
        ({"at": 1}, [-4.0, -1.0]),
        ({"window": 3, "at": 2}, [-7.0, -2.0]),
    ],
)
def test_sotl(options, wanted):
    np.testing.assert_array_equal(estimators.sotl(LOSS, **options), wanted)


def test_tl_mini():
    np.testing.assert_array_equal(estimators.tl_mini(LOSS), [-4.0, -1.0])
    np.testing.assert_array_equal(estimators.tl_mini(LOSS, at=4), [-0.5, -1.0])


def test_val_acc_takes_the_last_point_that_is_not_later():
    accuracy, points = [[0.1, 0.5, 0.7]], [0, 10, 20]
    for at, wanted in ((0, 0.1), (9, 0.1), (10, 0.5), (19, 0.5), (20, 0.7), (99, 0.7)):
        assert estimators.val_acc(accuracy, points, at=at).tolist() == [wanted]


def test_sovl_sums_the_points_so_far():
    loss, points = [[3.0, 2.0, 0.5]], [0, 10, 20]
    assert estimators.sovl(loss, points).tolist() == [-5.5]
    assert estimators.sovl(loss, points, at=10).tolist() == [-5.0]
    assert estimators.sovl(loss, points, at=9).tolist() == [-3.0]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [-0.75, -1.0]),  # (1 + 0.5) / 2
        ({"epochs": 2}, [-3.25, -2.0]),  # (3 + 2 + 1 + 0.5) / 2
        ({"at": 4}, [-1.5, -1.0]),
        ({"at": 1}, [-2.0, -0.5]),
    ],
)
def test_tse_e(options, wanted):
    np.testing.assert_array_equal(estimators.tse_e(LOSS, 2, **options), wanted)


def test_tse_ema_of_the_paper_discounts_and_that_of_the_code_averages():
    epochs = [3.5, 1.5, 0.5]  # means of (4, 3), (2, 1), (0.5)
    paper = 0.81 * epochs[0] + 0.9 * epochs[1] + epochs[2]
    code = 0.1 * (0.1 * epochs[0] + 0.9 * epochs[1]) + 0.9 * epochs[2]
    np.testing.assert_allclose(estimators.tse_ema(LOSS, 2)[0], -paper)
    np.testing.assert_allclose(estimators.tse_ema(LOSS, 2, weighting="code")[0], -code)
    np.testing.assert_allclose(estimators.tse_ema(LOSS, 2, weighting="code")[1], -1.0)
    np.testing.assert_allclose(estimators.tse_ema(LOSS, 2, mu=0.5, at=4)[0], -(1.75 + 1.5))
    assert estimators.tse_ema(LOSS, 9, weighting="code").tolist() == [-2.1, -1.0]


def test_sog_and_sogn():
    """Two steps that undo each other leave SoG behind, not SoGN."""
    norms, sum_norms = [[3.0, 3.0, 1.0]], [[3.0, 0.0, 1.0]]
    assert estimators.sogn(norms).tolist() == [7.0]
    assert estimators.sogn(norms, at=2).tolist() == [6.0]
    assert estimators.sog(sum_norms).tolist() == [1.0]
    assert estimators.sog(sum_norms, at=2).tolist() == [0.0]


def test_parameter_count_is_itself():
    assert estimators.parameter_count([3, 1]).tolist() == [3.0, 1.0]


def test_a_diverged_lane_has_no_estimate_that_uses_the_divergence():
    for estimate in (
        estimators.sotl(DIVERGED),
        estimators.tse_e(DIVERGED, 2),
        estimators.tse_ema(DIVERGED, 2),
        estimators.tl_mini(DIVERGED, at=1),
        estimators.sogn(DIVERGED),
        estimators.sog(DIVERGED),
        estimators.sovl(DIVERGED, [0, 1, 2, 3]),
        estimators.val_acc(DIVERGED, [0, 1, 2, 3], at=2),
    ):
        assert np.isnan(estimate[0]) and np.isfinite(estimate[1])
    assert estimators.sotl(DIVERGED, at=1)[0] == -2.0


def test_leading_dimensions_are_kept():
    grid = np.arange(24.0).reshape(2, 3, 4)
    assert estimators.sotl(grid).shape == (2, 3)
    assert estimators.tse_ema(grid, 2).shape == (2, 3)
    assert estimators.sotl([1.0, 2.0]) == -3.0


@pytest.mark.parametrize(
    ("function", "arguments", "options", "message"),
    [
        ("sotl", (LOSS,), {"at": 6}, r"at: wanted 1\.\.5 steps, got 6"),
        ("sotl", (LOSS,), {"at": 0}, r"at: wanted 1\.\.5 steps, got 0"),
        ("sotl", (LOSS,), {"window": 0}, "window: wanted at least 1, got 0"),
        ("sotl", (np.ones((2, 0)),), {}, "at least 1 step"),
        ("tl_mini", (LOSS,), {"at": 5}, r"at: wanted 0\.\.4, got 5"),
        ("val_acc", (LOSS, [0, 1]), {}, "points: wanted 5 ascending steps"),
        ("val_acc", (LOSS, [3, 4, 5, 6, 6]), {}, "points: wanted 5 ascending steps"),
        ("val_acc", ([[1.0]], [3]), {"at": 2}, "at: wanted at least 3, .* got 2"),
        ("tse_e", (LOSS, 0), {}, "epoch_steps: wanted at least 1, got 0"),
        ("tse_e", (LOSS, 1), {"epochs": 0}, "epochs: wanted at least 1, got 0"),
        ("tse_ema", (LOSS, 1), {"mu": 1.0}, "mu: wanted a number between 0 and 1, got 1.0"),
        ("tse_ema", (LOSS, 1), {"weighting": "x"}, "weighting: wanted 'paper' or 'code', got 'x'"),
        ("sog", (LOSS,), {"at": 9}, r"at: wanted 1\.\.5 steps, got 9"),
    ],
)
def test_bad_arguments(function, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(estimators, function)(*arguments, **options)
