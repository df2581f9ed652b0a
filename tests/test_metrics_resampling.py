# SPDX-License-Identifier: MIT
"""Intervals over images and over seeds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from nasfast import metrics
from nasfast.metrics import PerImage, PerSeed


@pytest.fixture
def bits():
    """Correctness of 30 architectures on 50 images, and their truth."""
    rng = np.random.default_rng(0)
    truth = np.linspace(0.3, 0.9, 30)
    return rng.random((30, 50)) < truth[:, None], truth


def image_draws(images, resamples, seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(images, size=images) for _ in range(resamples)]


@pytest.mark.parametrize("kind", ["bool", "packed", "float"])
def test_images_are_drawn_and_means_made_anew(bits, kind):
    correct, truth = bits
    scores = {
        "bool": PerImage(correct),
        "packed": PerImage(np.packbits(correct, axis=1), packed_images=50),
        "float": PerImage(correct.astype(np.float64)),
    }[kind]
    result = metrics.kendall_tau(scores, truth, bootstrap=30, confidence=0.8, seed=4)
    plain = metrics.kendall_tau(correct.mean(axis=1), truth)
    assert (result.value, result.n) == (plain.value, 30)
    assert (result.ties_scores, result.resampled) == (plain.ties_scores, "images")
    values = [
        metrics.kendall_tau(correct[:, draw].sum(axis=1), truth).value
        for draw in image_draws(50, 30, 4)
    ]
    assert result.interval == pytest.approx(tuple(np.quantile(values, [0.1, 0.9])), abs=1e-12)


def test_images_in_blocks_are_the_images_at_once(monkeypatch, bits):
    correct, truth = bits
    whole = metrics.spearman(PerImage(correct), truth, bootstrap=30)
    monkeypatch.setattr("nasfast.metrics.inputs._BLOCK", 120)  # 2 rows of images, 2 resamples
    assert metrics.spearman(PerImage(correct), truth, bootstrap=30) == whole
    losses = -np.random.default_rng(1).random((30, 50))
    in_blocks = PerImage(losses).means()
    assert in_blocks == pytest.approx(losses.mean(axis=1), rel=1e-14)


def test_two_scores_of_the_same_images_are_drawn_together(bits):
    correct, _ = bits
    same = metrics.ranking_agreement(
        PerImage(correct), PerImage(np.packbits(correct, axis=1), 50), k=5, bootstrap=20
    )
    assert same.kendall.interval == pytest.approx((1.0, 1.0))
    assert same.overlap.value <= 1.0 and same.overlap.resampled == "images"
    other = np.random.default_rng(3).random((30, 50))
    result = metrics.pearson(PerImage(correct), PerImage(other), bootstrap=30, seed=4)
    values = [
        metrics.pearson(correct[:, draw].mean(axis=1), other[:, draw].mean(axis=1)).value
        for draw in image_draws(50, 30, 4)
    ]
    assert result.interval == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), abs=1e-9)
    with pytest.raises(ValueError, match="truth: wanted 50 images, got 49"):
        metrics.kendall_tau(PerImage(correct), PerImage(other[:, 1:]))
    with pytest.raises(ValueError, match="truth: wanted numbers, got PerImage"):
        metrics.kendall_tau(correct.mean(axis=1), PerImage(other))


def test_an_architecture_with_a_loss_that_is_not_finite_is_dropped(bits):
    correct, truth = bits
    losses = -correct.astype(float)
    losses[3, 7], losses[5, 0], losses[6, :2] = math.nan, -math.inf, [math.inf, -math.inf]
    result = metrics.kendall_tau(PerImage(losses), truth, bootstrap=10)
    kept = np.delete(np.arange(30), [3, 5, 6])
    alone = metrics.kendall_tau(PerImage(losses[kept]), truth[kept], bootstrap=10)
    assert result == replace(alone, dropped=3)
    packed = PerImage(np.packbits(correct, axis=1), packed_images=50)
    truth[2] = math.nan
    assert metrics.top_k_mean(packed, truth, 3, bootstrap=10).dropped == 1


def test_per_image_curves_and_selection(bits):
    correct, truth = bits
    curve = metrics.top_identification_curve(PerImage(correct), truth, bootstrap=20)
    assert curve.resampled == "images"
    assert curve.band.shape == (2, 30)
    assert metrics.best_of_sample(PerImage(correct), truth, bootstrap=5).resampled == "images"
    partial = metrics.partial_kendall_tau(PerImage(correct), truth, truth[::-1] ** 2, bootstrap=5)
    assert math.isnan(partial.value)
    assert partial.interval is None


@pytest.mark.parametrize("function", [metrics.kendall_tau, metrics.spearman, metrics.pearson])
def test_seeds_average_metrics_or_scores(function):
    rng = np.random.default_rng(0)
    truth = rng.normal(size=40)
    seeds = truth + rng.normal(size=(5, 40))
    draws = [np.array(draw) for draw in image_draws(5, 30, 4)]  # the same generator
    each = np.array([function(scores, truth).value for scores in seeds])
    options = {"bootstrap": 30, "confidence": 0.8, "seed": 4}

    of_metric = function(PerSeed(seeds, average="metric"), truth, **options)
    assert of_metric.value == pytest.approx(each.mean())
    expected = np.quantile([each[draw].mean() for draw in draws], [0.1, 0.9])
    assert of_metric.interval == pytest.approx(tuple(expected), abs=1e-12)

    of_scores = function(PerSeed(seeds, average="scores"), truth, **options)
    assert of_scores.value == pytest.approx(function(seeds.mean(axis=0), truth).value)
    values = [function(seeds[draw].mean(axis=0), truth).value for draw in draws]
    assert of_scores.interval == pytest.approx(tuple(np.quantile(values, [0.1, 0.9])), abs=1e-12)
    assert (of_scores.resampled, of_metric.resampled) == ("seeds", "seeds")


def test_seeds_count_ties_and_dropped_rows():
    seeds = [[1, 1, 2, 3, math.nan], [1, 1, 1, 3, 4]]
    result = metrics.kendall_tau(PerSeed(seeds, average="metric"), [1, 2, 2, 4, 5])
    assert (result.n, result.dropped) == (4, 1)
    assert (result.ties_scores, result.ties_truth) == (3, 2)
    undefined = metrics.kendall_tau(
        PerSeed([[1, 1], [1, 2]], average="metric"), [1, 2], bootstrap=9
    )
    assert math.isnan(undefined.value)
    assert undefined.interval is None


def test_curves_average_over_seeds():
    seeds = [[4, 3, 2, 1], [1, 2, 3, 4]]
    curve = metrics.top_identification_curve(
        PerSeed(seeds, average="metric"), [4, 3, 2, 1], bootstrap=9
    )
    assert curve.values == pytest.approx([0.5, 0.5, (1 + 2 / 3) / 2, 1])
    assert curve.resampled == "seeds"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PerImage(np.zeros(3)), r"values: wanted \[archs, images\], got shape \(3,\)"),
        (lambda: PerImage(np.zeros((3, 0))), "values: wanted at least one image"),
        (lambda: PerImage(np.array([["a"]])), "values: wanted real numbers"),
        (lambda: PerImage(np.zeros((3, 2)), 9), "values: wanted uint8 bits of 9 images in 2"),
        (lambda: PerImage(np.zeros((3, 2), np.uint8), 17), "of 17 images in 3 bytes"),
        (lambda: PerImage(np.zeros((3, 0), np.uint8), 0), "of 0 images"),
        (lambda: PerSeed(np.zeros(3), average="metric"), r"values: wanted \[seeds, archs\]"),
        (lambda: PerSeed(np.zeros((0, 3)), average="metric"), r"values: wanted \[seeds, archs\]"),
        (lambda: PerSeed(np.zeros((2, 3)), average="mean"), "average: wanted one of metric"),
    ],
)
def test_input_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_one_image_or_seed_cannot_be_resampled():
    one_image, one_seed = PerImage([[0.1], [0.2]]), PerSeed([[0.1, 0.2]], average="scores")
    for scores, what in ((one_image, "images"), (one_seed, "seeds")):
        assert metrics.kendall_tau(scores, [1, 2]).value == 1.0
        with pytest.raises(ValueError, match=f"bootstrap: wanted at least 2 {what}.*got 1"):
            metrics.kendall_tau(scores, [1, 2], bootstrap=5)


def test_lengths_are_named():
    with pytest.raises(ValueError, match="truth: wanted 2 values, one for each of scores, got 3"):
        metrics.kendall_tau(PerImage(np.eye(2)), [1, 2, 3])
