# SPDX-License-Identifier: MIT
"""ImageNet16-120 from tiny batches in the official layout."""

import pickle

import numpy as np
import pytest
import torch

from nasfast.data import load
from nasfast.data.imagenet16 import read_imagenet16

COUNTS = {"train_count": 120, "test_count": 240}


def write_batches(folder, protocol=4):
    """Each training batch holds 12 of the 120 classes and 5 others; val holds each class twice."""
    generator = np.random.default_rng(0)
    for number in range(10):
        labels = [*range(12 * number + 1, 12 * number + 13), 121, 500, 999, 1000, 121]
        write_batch(folder, f"train_data_batch_{number + 1}", labels, generator, protocol)
    write_batch(folder, "val_data", [*range(1, 1001), *range(120, 0, -1)], generator, protocol)
    return folder


def write_batch(folder, file, labels, generator, protocol=4):
    pixels = generator.integers(0, 256, (len(labels), 768), dtype=np.uint8)
    # The second pixel byte tells the label, to see that images and labels stay together.
    pixels[:, 1] = np.array(labels) % 256
    batch = {"data": pixels, "labels": labels, "mean": pixels.mean(0)}
    (folder / file).write_bytes(pickle.dumps(batch, protocol=protocol))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_the_first_120_classes_are_kept_and_shifted(tmp_path, protocol):
    splits = read_imagenet16(write_batches(tmp_path, protocol), **COUNTS)
    assert splits.num_classes == 120
    assert splits.train.images.shape == (120, 3, 16, 16)
    assert splits.train.labels.tolist() == list(range(120))
    for part in (splits.valid, splits.test):
        assert sorted(part.labels.tolist()) == list(range(120))
        assert torch.equal(part.images[:, 0, 0, 1].long(), part.labels + 1)
    both = torch.cat([splits.valid.images, splits.test.images]).flatten(1)
    assert len(set(map(bytes, both.numpy()))) == 240
    assert splits.train.mean[0] * 255 == pytest.approx(122.68)
    assert splits.train.std[2] * 255 == pytest.approx(65.09)


def test_labels_may_be_an_array(tmp_path):
    write_batches(tmp_path)
    batch = pickle.loads((tmp_path / "val_data").read_bytes())
    batch["labels"] = np.array(batch["labels"])
    (tmp_path / "val_data").write_bytes(pickle.dumps(batch))
    assert len(read_imagenet16(tmp_path, **COUNTS).test) == 120


def test_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="path must be a folder with train_data_batch_1"):
        load("imagenet16-120", tmp_path / "nowhere")
    write_batches(tmp_path)
    with pytest.raises(ValueError, match=r"train batches.*151700 images with labels.*got 120"):
        load("imagenet16-120", tmp_path)
    with pytest.raises(ValueError, match=r"val batches of .* must hold 241 images"):
        read_imagenet16(tmp_path, train_count=120, test_count=241)
    with pytest.raises(ValueError, match="must be the folder"):
        load("imagenet16-120", tmp_path / "val_data")
    write_batch(tmp_path, "train_data_batch_4", [1, 2, 0], np.random.default_rng(0))
    message = r"train_data_batch_4: labels must lie in 1\.\.1000, got 0 at position 2"
    with pytest.raises(ValueError, match=message):
        read_imagenet16(tmp_path, **COUNTS)
    (tmp_path / "val_data").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing: \['val_data'\]"):
        read_imagenet16(tmp_path, **COUNTS)
