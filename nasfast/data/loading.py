# SPDX-License-Identifier: MIT
"""The one entry to all data sets."""

import difflib
import os
from dataclasses import replace
from pathlib import Path

from nasfast.data.checks import check_integer
from nasfast.data.cifar import read_cifar
from nasfast.data.digits import read_digits
from nasfast.data.imagenet16 import read_imagenet16
from nasfast.data.npz import read_npz
from nasfast.data.sampling import balanced_subset, mix_seeds
from nasfast.data.sets import ImageSet, Splits

__all__ = ["load"]

_NAMES = ("digits", "cifar10", "cifar100", "imagenet16-120", "npz")


def load(
    name: str,
    path: str | os.PathLike[str] | None = None,
    *,
    train_images: int | None = None,
    valid_images: int | None = None,
    test_images: int | None = None,
    seed: int = 0,
) -> Splits:
    """Load a data set in three parts.

    What each name reads from `path`, and how it is parted:

    * ``digits``: nothing; scikit-learn's 1,797 8x8 digits, 1,077 / 360 / 360.
    * ``cifar10``, ``cifar100``: an official archive or its folder
      (:func:`nasfast.data.cifar.read_cifar`).
    * ``imagenet16-120``: the folder of official batches
      (:func:`nasfast.data.imagenet16.read_imagenet16`).
    * ``npz``: a file or folder of one's own (:func:`nasfast.data.npz.read_npz`).

    The split of the named benchmarks never depends on `seed`; that of ``npz`` does.

    Args:
        name: One of the above.
        path: Where the files are; None for ``digits`` only.
        train_images: If given, keep only so many training images: a random subset with equal
            class sizes as far as the classes reach, in file order. Mean and std stay those of
            the whole training part.
        valid_images: The same for the validation part.
        test_images: The same for the test part.
        seed: Seed of the subsets and of the ``npz`` split, at least 0.

    Returns:
        The three parts.

    Raises:
        FileNotFoundError: If `path` or a file in it is missing.
        ValueError: If an argument is out of range, or a file is damaged or not as wanted; the
            message names the file, what was wanted and what was found.
        ImportError: If scikit-learn is missing for ``digits``.
    """
    if name not in _NAMES:
        nearest = difflib.get_close_matches(str(name).lower(), _NAMES, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"name must be one of {', '.join(_NAMES)}, got {name!r}; did you mean {nearest!r}?"
        )
    seed = check_integer("seed", seed, 0)
    splits = _read(name, path, seed)
    counts = {"train": train_images, "valid": valid_images, "test": test_images}
    parts = [
        _capped(getattr(splits, part), f"{name}/{part}", f"{part}_images", count, (seed, number))
        for number, (part, count) in enumerate(counts.items())
    ]
    return Splits(name, splits.num_classes, *parts)


def _read(name: str, path: str | os.PathLike[str] | None, seed: int) -> Splits:
    if name == "digits":
        if path is not None:
            raise ValueError(f"path must be None for digits, got {path!r}")
        return read_digits()
    if path is None:
        raise ValueError(f"path must say where the files of {name} are, got None")
    place = Path(path).expanduser()
    if name == "npz":
        return read_npz(place, seed)
    if name == "imagenet16-120":
        return read_imagenet16(place)
    return read_cifar(name, place)


def _capped(
    part: ImageSet, name: str, argument: str, count: int | None, seeds: tuple[int, int]
) -> ImageSet:
    if count is not None:
        count = check_integer(argument, count, 1)
        if count > len(part):
            raise ValueError(
                f"{argument} must be at most the {len(part)} images of {name}, got {count}"
            )
        part = part.subset(balanced_subset(part.labels, count, mix_seeds(*seeds)))
    return replace(part, name=name)
