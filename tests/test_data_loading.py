# SPDX-License-Identifier: MIT
"""load(): names, caps, and the digits."""

import subprocess
import sys
from collections import Counter

import pytest
import torch

from nasfast.data import load


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    return load("digits")


def parts(splits):
    return [splits.train, splits.valid, splits.test]


def test_digits(digits):
    assert [len(part) for part in parts(digits)] == [1077, 360, 360]
    assert [part.name for part in parts(digits)] == ["digits/train", "digits/valid", "digits/test"]
    assert digits.num_classes == 10
    train = digits.train
    assert train.images.shape == (1077, 1, 8, 8)
    # 0, 1, 2, ..., 16 on a scale to 255, rounded.
    assert train.images.unique().tolist() == [round(value * 255 / 16) for value in range(17)]
    scaled = train.images.double() / 255
    assert train.mean == pytest.approx((scaled.mean().item(),))
    assert train.std == pytest.approx((scaled.std(correction=0).item(),))
    for part in parts(digits):
        shares = [count / len(part) for count in Counter(part.labels.tolist()).values()]
        assert len(shares) == 10
        assert max(shares) - min(shares) < 0.015


def test_the_split_of_digits_does_not_depend_on_the_seed(digits):
    other = load("digits", seed=3)
    for mine, theirs in zip(parts(digits), parts(other), strict=True):
        assert torch.equal(mine.images, theirs.images)


def test_caps_take_balanced_seeded_subsets(digits):
    caps = {"train_images": 55, "valid_images": 20, "test_images": 30}
    small = load("digits", **caps)
    assert [len(part) for part in parts(small)] == [55, 20, 30]
    assert set(Counter(small.train.labels.tolist()).values()) == {5, 6}
    assert set(Counter(small.valid.labels.tolist()).values()) == {2}
    assert (small.train.mean, small.train.std) == (digits.train.mean, digits.train.std)
    assert torch.equal(small.train.images, load("digits", **caps).train.images)
    assert not torch.equal(small.train.images, load("digits", **caps, seed=1).train.images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cifar-10"}, "name must be one of .*got 'cifar-10'; did you mean 'cifar10'"),
        ({"name": "ImageNet16-120"}, "did you mean 'imagenet16-120'"),
        ({"name": "mnist"}, "did you mean '"),
        ({"name": None}, "name must be one of"),
        ({"name": "cifar10"}, "path must say where the files of cifar10 are, got None"),
        ({"name": "npz"}, "path must say where"),
        ({"name": "digits", "path": "x"}, "path must be None for digits, got 'x'"),
        ({"name": "digits", "seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"name": "digits", "train_images": 0}, "train_images must be an integer of at least 1"),
        ({"name": "digits", "valid_images": 2.5}, "valid_images must be an integer"),
        ({"name": "digits", "test_images": 361}, "test_images must be at most the 360 images"),
    ],
)
def test_refused(arguments, message):
    if arguments["name"] == "digits" and "path" not in arguments:
        pytest.importorskip("sklearn")
    with pytest.raises(ValueError, match=message):
        load(**arguments)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        load("digits")


def test_the_package_does_not_import_scikit_learn():
    code = "import sys, nasfast.data; sys.exit('sklearn' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
