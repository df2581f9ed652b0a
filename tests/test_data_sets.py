# SPDX-License-Identifier: MIT
"""ImageSet, Splits, seeded sampling and evaluation minibatches."""

import logging
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasfast.data import ImageSet, Splits, batches
from nasfast.data.sampling import balanced_subset, mix_seeds, stratified_split
from nasfast.data.sets import channel_statistics


def make_set(count=20, channels=3, side=4, num_classes=5, **changes):
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(
        256, (count, channels, side, side), generator=generator, dtype=torch.uint8
    )
    mean, std = channel_statistics(images)
    fields = {
        "images": images,
        "labels": torch.arange(count) % max(1, num_classes),
        "name": "toy",
        "num_classes": num_classes,
        "mean": mean,
        "std": std,
    }
    return ImageSet(**{**fields, **changes})


def test_image_set_has_a_length_and_is_frozen():
    toy = make_set(7)
    assert len(toy) == 7
    with pytest.raises(AttributeError):
        toy.name = "other"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((20, 3, 4, 4), np.uint8)}, "images of toy must be uint8.*got ndarray"),
        ({"images": torch.full((20, 3, 4, 4), torch.nan)}, r"must be uint8.*got torch\.float32"),
        ({"images": torch.zeros(20, 4, 4, dtype=torch.uint8)}, r"must be uint8 \[n, channels"),
        ({"images": torch.zeros(0, 3, 4, 4, dtype=torch.uint8)}, r"not empty, got shape \[0, 3"),
        ({"labels": [0] * 20}, r"labels of toy must be int64 \[20\].*got list"),
        ({"labels": torch.zeros(20)}, r"must be int64 \[20\].*got torch\.float32"),
        ({"labels": torch.zeros(19, dtype=torch.int64)}, r"must be int64 \[20\].*got .*\[19\]"),
        ({"labels": torch.tensor([0] * 18 + [5, 9])}, r"in 0\.\.4, got 5 at position 18"),
        ({"labels": torch.tensor([0, -1] * 10)}, r"in 0\.\.4, got -1 at position 1"),
        ({"num_classes": 0}, "num_classes of toy must be at least 1"),
        ({"mean": (0.5,)}, "mean of toy must hold 3 finite numbers"),
        ({"mean": (0.5, 0.5, float("nan"))}, "mean of toy must hold 3 finite numbers"),
        ({"std": (0.5, 0.0, 0.5)}, "std of toy must hold 3 finite numbers above 0"),
    ],
)
def test_image_set_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        make_set(**changes)


def test_subset_keeps_the_order_given():
    toy = make_set()
    for indices in ([4, 0, 4], np.array([4, 0, 4]), torch.tensor([4, 0, 4])):
        part = toy.subset(indices)
        assert part.labels.tolist() == [4, 0, 4]
        assert torch.equal(part.images, toy.images[[4, 0, 4]])
        assert (part.mean, part.std, part.name) == (toy.mean, toy.std, toy.name)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([], "must not be empty"),
        ([[1]], "must be a flat list of integers"),
        ([0.5], "must be a flat list of integers"),
        ([True], "must be a flat list of integers"),
        ([0, 20], r"in 0\.\.19, got 20 at position 1"),
        ([-1], r"in 0\.\.19, got -1 at position 0"),
    ],
)
def test_subset_refuses(indices, message):
    with pytest.raises(ValueError, match=message):
        make_set().subset(indices)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (make_set(num_classes=4), "must have num_classes 5"),
        (make_set(side=6), "must have .image size, mean, std."),
        (make_set(mean=(0.1, 0.2, 0.3)), "must have .image size, mean, std."),
    ],
)
def test_splits_refuses_parts_that_differ(other, message):
    toy = make_set()
    with pytest.raises(ValueError, match=message):
        Splits("toy", 5, toy, toy, other)


def test_channel_statistics_agree_with_torch():
    images = make_set().images
    scaled = images.double() / 255
    mean, std = channel_statistics(images)
    torch.testing.assert_close(torch.tensor(mean).double(), scaled.mean((0, 2, 3)))
    torch.testing.assert_close(torch.tensor(std).double(), scaled.std((0, 2, 3), correction=0))


def test_balanced_subset_takes_classes_equally_until_they_are_used_up():
    labels = torch.tensor([0] * 50 + [1] * 50 + [2] * 3)
    chosen = balanced_subset(labels, 23, seed=1)
    assert Counter(labels[chosen].tolist()) == {0: 10, 1: 10, 2: 3}
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert np.array_equal(chosen, balanced_subset(labels, 23, seed=1))
    assert not np.array_equal(chosen, balanced_subset(labels, 23, seed=2))


def test_stratified_split_has_exact_sizes_and_proportional_classes():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    parts = stratified_split(labels, (60, 20, 20), seed=0)
    assert [Counter(labels[part].tolist()) for part in parts] == [
        {0: 36, 1: 18, 2: 6},
        {0: 12, 1: 6, 2: 2},
        {0: 12, 1: 6, 2: 2},
    ]


@settings(max_examples=50, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=2, max_size=60),
    seed=st.integers(0, 2**70),
    data=st.data(),
)
def test_stratified_split_covers_each_image_once(labels, seed, data):
    cut = data.draw(st.integers(0, len(labels)))
    parts = stratified_split(torch.tensor(labels), (cut, len(labels) - cut), seed)
    assert [len(part) for part in parts] == [cut, len(labels) - cut]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    for kind in set(labels):
        share = cut * labels.count(kind) / len(labels)
        # Up to half an image a class is rounded, for each of five classes.
        assert abs(sum(labels[index] == kind for index in parts[0]) - share) <= 2.5


def test_stratified_split_refuses_sizes_that_do_not_add_up():
    with pytest.raises(ValueError, match="sizes must add up to 4"):
        stratified_split(torch.zeros(4, dtype=torch.int64), (1, 2), 0)


def test_the_random_streams_are_the_ones_of_this_release():
    """A change here would silently move every split and every minibatch."""
    assert mix_seeds(0, 1) != mix_seeds(1, 0)
    assert mix_seeds(0) == 15793235383387715774
    labels = torch.arange(20) % 2
    assert balanced_subset(labels, 6, seed=0).tolist() == [1, 4, 9, 10, 11, 16]


def position_set(count):
    """A set whose image i holds the pixel value i, so that minibatches show their order."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)
    labels = torch.arange(count) // 10
    return ImageSet(images, labels, "positions", count // 10 + 1, (0.0,), (1 / 255,))


def test_batches_cover_each_image_once_in_a_seeded_order():
    positions = position_set(60)
    result = batches(positions, 20)
    pixels = torch.cat([batch.images.flatten() for batch in result]).round().long()
    assert sorted(pixels.tolist()) == list(range(60))
    assert pixels.tolist() != list(range(60))
    assert torch.equal(torch.cat([batch.labels for batch in result]), pixels // 10)
    # Sorted labels must not give minibatches of one or two classes.
    assert all(len(batch.labels.unique()) >= 4 for batch in result)
    again, other = batches(positions, 20), batches(positions, 20, seed=1)
    assert all(torch.equal(a.images, b.images) for a, b in zip(result, again, strict=True))
    assert not all(torch.equal(a.images, b.images) for a, b in zip(result, other, strict=True))


def test_batches_normalise():
    toy = make_set(40)
    images = torch.cat([batch.images for batch in batches(toy, 10)])
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        images.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0
    )
    half = batches(toy, 10, dtype=torch.bfloat16)[0].images
    assert torch.equal(half, batches(toy, 10)[0].images.bfloat16())
    assert batches(toy, 10, dtype=torch.float64)[0].images.dtype == torch.float64


def test_one_pixel_by_hand():
    image = torch.tensor([51, 102], dtype=torch.uint8).view(1, 2, 1, 1)
    single = ImageSet(image, torch.tensor([0]), "pixel", 1, (0.1, 0.5), (0.5, 0.25))
    batch = batches(single, 1, dtype=torch.float64)[0]
    torch.testing.assert_close(
        batch.images.flatten(), torch.tensor([0.2, -0.4], dtype=torch.float64)
    )


def test_a_partial_last_minibatch_is_never_silent(caplog):
    toy = make_set(20)
    with pytest.raises(ValueError, match=r"divide the 20 images of toy, got 8: .* have 4 images"):
        batches(toy, 8)
    with caplog.at_level(logging.INFO, logger="nasfast"):
        assert [len(batch.labels) for batch in batches(toy, 8, last="drop")] == [8, 8]
    assert "toy: 4 of 20 images are left out by minibatches of 8" in caplog.text
    assert [len(batch.labels) for batch in batches(toy, 8, last="keep")] == [8, 8, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": 2.0}, "batch_size must be an integer of at least 1, got 2.0"),
        ({"batch_size": True}, "batch_size must be an integer of at least 1, got True"),
        ({"batch_size": 21}, "batch_size must be at most the 20 images of toy, got 21"),
        ({"batch_size": 21, "last": "keep"}, "batch_size must be at most the 20 images"),
        ({"batch_size": 4, "last": "pad"}, "last must be .* got 'pad'"),
        ({"batch_size": 4, "seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"batch_size": 4, "dtype": torch.int64}, "dtype must be a floating-point"),
    ],
)
def test_batches_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        batches(make_set(20), **arguments)
