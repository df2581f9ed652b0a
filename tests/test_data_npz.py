# SPDX-License-Identifier: MIT
"""npz files: layouts, splits, and what is refused."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nasfast.data import batches, load
from nasfast.data.sets import channel_statistics

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(50, dtype=np.uint8) % 5


def write(path, **arrays):
    np.savez_compressed(path, **arrays)
    return path


def sizes(splits):
    return [len(part) for part in (splits.train, splits.valid, splits.test)]


def test_one_set_is_split_60_20_20_by_class(tmp_path):
    path = write(tmp_path / "toy.npz", images=IMAGES, labels=LABELS, file_id=np.arange(50))
    splits = load("npz", path)
    assert sizes(splits) == [30, 10, 10]
    assert splits.num_classes == 5
    assert splits.train.images.shape[1:] == (3, 6, 5)
    assert Counter(splits.train.labels.tolist()) == dict.fromkeys(range(5), 6)
    assert Counter(splits.test.labels.tolist()) == dict.fromkeys(range(5), 2)
    everything = torch.cat([splits.train.images, splits.valid.images, splits.test.images])
    original = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
    assert {bytes(image.numpy()) for image in everything.flatten(1)} == {
        bytes(image.numpy()) for image in original.flatten(1)
    }
    assert (splits.train.mean, splits.train.std) == channel_statistics(splits.train.images)
    again, other = load("npz", path), load("npz", path, seed=1)
    assert torch.equal(again.train.images, splits.train.images)
    assert not torch.equal(other.train.images, splits.train.images)


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((9, 4, 6, 3), (3, 4, 6)),
        ((9, 4, 6, 1), (1, 4, 6)),
        ((9, 3, 4, 6), (3, 4, 6)),
        ((9, 1, 4, 6), (1, 4, 6)),
        # Either reading fits: the last size wins.
        ((9, 3, 4, 3), (3, 3, 4)),
    ],
)
def test_channels_last_or_first(tmp_path, shape, wanted):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    path = write(tmp_path / "toy.npz", images=images, labels=np.arange(9) % 3)
    assert tuple(load("npz", path).train.images.shape[1:]) == wanted


def test_named_parts(tmp_path):
    arrays = {
        "train_images": IMAGES[:20],
        "train_labels": LABELS[:20],
        "test_images": IMAGES[30:],
        "test_labels": LABELS[30:],
    }
    halves = load("npz", write(tmp_path / "two.npz", **arrays))
    assert sizes(halves) == [10, 10, 20]
    assert Counter(halves.valid.labels.tolist()) == dict.fromkeys(range(5), 2)
    arrays |= {"valid_images": IMAGES[20:30], "valid_labels": LABELS[20:30]}
    splits = load("npz", write(tmp_path / "three.npz", **arrays))
    assert sizes(splits) == [20, 10, 20]
    assert torch.equal(splits.valid.images, torch.from_numpy(IMAGES[20:30]).permute(0, 3, 1, 2))


def test_a_folder_of_two_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must hold one \*_train.npz, got none"):
        load("npz", tmp_path)
    names = np.array(["a", "b", "c", "d", "e", "f"])
    write(tmp_path / "toy_train.npz", images=IMAGES[:30], labels=LABELS[:30], class_names=names)
    with pytest.raises(FileNotFoundError, match=r"must hold one \*_test.npz, got none"):
        load("npz", tmp_path)
    write(tmp_path / "toy_test.npz", images=IMAGES[30:], labels=LABELS[30:])
    splits = load("npz", tmp_path)
    assert sizes(splits) == [15, 15, 20]
    assert splits.num_classes == 6
    write(tmp_path / "toy_test.npz", images=IMAGES[30:])
    with pytest.raises(ValueError, match=r"toy_test.npz must have the array 'labels'"):
        load("npz", tmp_path)
    write(tmp_path / "other_test.npz", images=IMAGES[30:], labels=LABELS[30:])
    with pytest.raises(ValueError, match=r"one \*_test.npz, got \['other_test.npz', 'toy_test"):
        load("npz", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.full((50, 4, 4, 3), np.nan, np.float32)}, "uint8.*float32 with 2400 NaN"),
        ({"images": IMAGES / 255}, "images must be uint8.*got float64"),
        ({"images": IMAGES[0]}, r"images must be \[n, height, width, channels\].*\[6, 5, 3\]"),
        ({"images": IMAGES[..., :2]}, r"1 or 3 channels, got shape \[50, 6, 5, 2\]"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "images must not be empty"),
        ({"labels": LABELS[:49]}, r"labels must be integers \[50\].*got uint8 \[49\]"),
        ({"labels": LABELS.astype(float)}, "labels must be integers .*got float64"),
        ({"labels": LABELS.astype(int) - 1}, r"must lie in 0\.\.3, got -1 at position 0"),
        ({"class_names": np.array(["a", "b"])}, r"must lie in 0\.\.1, got 2 at position 2"),
        ({"class_names": np.array("a")}, "class_names must be a flat list"),
        ({"images": IMAGES[:2], "labels": LABELS[:2]}, "at least 3 images to split, got 2"),
        ({"images": np.zeros_like(IMAGES)}, "std .* same value in every image"),
        ({"train_images": IMAGES}, "must have the array 'train_labels'"),
        ({"test_images": IMAGES, "test_labels": LABELS}, r"got \['images', 'test_images'\]"),
        ({"labels": np.array([None] * 50)}, "without pickled objects"),
    ],
)
def test_refused(tmp_path, changes, message):
    path = write(tmp_path / "toy.npz", **{"images": IMAGES, "labels": LABELS, **changes})
    with pytest.raises(ValueError, match=message):
        load("npz", path)


def test_no_known_array(tmp_path):
    with pytest.raises(ValueError, match=r"must have images and labels, or .* got none of these"):
        load("npz", write(tmp_path / "toy.npz", pictures=IMAGES))


def test_parts_of_unequal_image_size(tmp_path):
    arrays = {"train_images": IMAGES, "test_images": IMAGES[:, :4]}
    path = write(tmp_path / "toy.npz", **arrays, train_labels=LABELS, test_labels=LABELS)
    with pytest.raises(ValueError, match=r"test.* must have .image size"):
        load("npz", path)


def test_missing_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path must be an npz file, .* does not exist"):
        load("npz", tmp_path / "nowhere.npz")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_cut_or_damaged_file_is_one_clear_error(tmp_path, data):
    path = write(tmp_path / "toy.npz", images=IMAGES[:9, :2, :2], labels=LABELS[:9])
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(content[:position])
        with pytest.raises(ValueError, match=r"toy\.npz must be a whole npz file"):
            load("npz", path)
        return
    content[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        # Bytes that no one checks, such as dates, may change.
        assert sizes(load("npz", path)) == [5, 2, 2]
    except ValueError as error:
        assert "toy.npz" in str(error)


def test_real_images():
    root = Path(os.environ.get("NASFAST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (root / "cifar10_train.npz").is_file() or not (root / "cifar10_test.npz").is_file():
        pytest.skip(f"no cifar10_train.npz and cifar10_test.npz in {root}: set NASFAST_DATA")
    splits = load("npz", root, train_images=1000, test_images=500)
    assert splits.num_classes == 10
    assert sizes(splits) == [1000, 10_000, 500]
    assert Counter(splits.train.labels.tolist()) == dict.fromkeys(range(10), 100)
    assert Counter(splits.valid.labels.tolist()) == dict.fromkeys(range(10), 1000)
    # CIFAR-10 as published, within what a sample and recompression change.
    assert splits.train.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.004)
    assert splits.train.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=0.004)
    images = torch.cat([batch.images for batch in batches(splits.train, 250)])
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), atol=0.1, rtol=0)
    torch.testing.assert_close(images.std((0, 2, 3)), torch.ones(3), atol=0.1, rtol=0)
