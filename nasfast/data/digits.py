# SPDX-License-Identifier: MIT
"""The 8x8 handwritten digits that come with scikit-learn: a real data set without a download."""

import importlib

import numpy as np
import torch

from nasfast.data.sampling import stratified_split
from nasfast.data.sets import ImageSet, Splits, channel_statistics

__all__ = ["read_digits"]

_SIZES = (1077, 360, 360)
_SPLIT_SEED = 8
_LARGEST_VALUE = 16


def read_digits() -> Splits:
    """The 1,797 digits in 1,077 / 360 / 360 images, one channel, always the same split.

    Pixel values 0..16 become ``round(value * 255 / 16)``. Mean and std are those of the
    training part.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise ImportError(
            "the digits data set comes with scikit-learn, which is not installed: "
            "pip install scikit-learn"
        ) from error
    bunch = datasets.load_digits()
    pixels = np.round(bunch.images * (255 / _LARGEST_VALUE)).astype(np.uint8)
    images = torch.from_numpy(pixels).unsqueeze(1)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    positions = stratified_split(labels, _SIZES, _SPLIT_SEED)
    mean, std = channel_statistics(images[positions[0]])
    whole = ImageSet(images, labels, "digits", 10, mean, std)
    return Splits("digits", 10, *(whole.subset(part) for part in positions))
