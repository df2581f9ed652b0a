# SPDX-License-Identifier: MIT
"""The two containers of the package: a set of labelled images, and its three parts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

__all__ = ["ImageSet", "Splits", "channel_statistics", "check_range"]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images of one size, with the numbers that normalise them.

    Attributes:
        images: ``[n, channels, height, width]``, uint8, ``n`` at least 1.
        labels: ``[n]``, int64, each in ``0..num_classes - 1``.
        name: What messages call the set, for example ``"cifar10/train"``.
        num_classes: Number of classes, at least 1; a class may have no image.
        mean: Mean of each channel on the 0..1 scale.
        std: Standard deviation of each channel on the 0..1 scale, above 0.

    Raises:
        ValueError: If a field differs from the above. A bad label is named by its position.
    """

    images: Tensor
    labels: Tensor
    name: str
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check every field."""
        self._check_images()
        self._check_labels()
        self._check_statistics()

    def __len__(self) -> int:
        """Number of images."""
        return int(self.images.shape[0])

    def subset(self, indices: Sequence[int] | np.ndarray | Tensor) -> "ImageSet":
        """The images at `indices`, in that order, with the same mean and std.

        Args:
            indices: Positions ``[m]``, integers in ``0..n - 1``, ``m`` at least 1. A position
                may come twice.

        Returns:
            A set of ``m`` images that shares no memory with this one.

        Raises:
            ValueError: If `indices` is empty, not a flat list of integers, or out of range.
        """
        positions = torch.as_tensor(indices)
        if positions.numel() == 0:
            raise ValueError(f"indices of {self.name} must not be empty")
        kind = positions.dtype
        if positions.ndim != 1 or kind.is_floating_point or kind.is_complex or kind == torch.bool:
            raise ValueError(
                f"indices of {self.name} must be a flat list of integers, "
                f"got shape {list(positions.shape)}, {kind}"
            )
        positions = positions.to(torch.int64)
        check_range(f"indices of {self.name}", positions, 0, len(self) - 1)
        return replace(self, images=self.images[positions], labels=self.labels[positions])

    def _check_images(self) -> None:
        images = self.images
        wanted = f"images of {self.name} must be uint8 [n, channels, height, width]"
        if not isinstance(images, Tensor):
            raise ValueError(f"{wanted}, got {type(images).__name__}")
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"{wanted}, got {images.dtype} {list(images.shape)}")
        if images.numel() == 0:
            raise ValueError(f"{wanted} and not empty, got shape {list(images.shape)}")

    def _check_labels(self) -> None:
        labels = self.labels
        wanted = f"labels of {self.name} must be int64 [{len(self)}], one for each image"
        if not isinstance(labels, Tensor):
            raise ValueError(f"{wanted}, got {type(labels).__name__}")
        if labels.dtype != torch.int64 or list(labels.shape) != [len(self)]:
            raise ValueError(f"{wanted}, got {labels.dtype} {list(labels.shape)}")
        if self.num_classes < 1:
            raise ValueError(f"num_classes of {self.name} must be at least 1")
        check_range(f"labels of {self.name}", labels, 0, self.num_classes - 1)

    def _check_statistics(self) -> None:
        channels = int(self.images.shape[1])
        for field, values, positive in (("mean", self.mean, False), ("std", self.std, True)):
            wanted = f"{field} of {self.name} must hold {channels} finite numbers"
            if len(values) != channels or not all(math.isfinite(value) for value in values):
                raise ValueError(f"{wanted}, got {values}")
            if positive and min(values) <= 0:
                raise ValueError(
                    f"{wanted} above 0, got {values}: a channel with the same value in every "
                    "image cannot be normalised"
                )


@dataclass(frozen=True, eq=False)
class Splits:
    """The three parts of a data set.

    Supernet weights are trained on `train`, architectures are scored on `valid`, and `test` is
    kept for the final accuracy.

    Attributes:
        name: Name that :func:`nasfast.data.load` was called with.
        num_classes: Number of classes, the same in each part.
        train: Training part.
        valid: Validation part, same image size, mean and std as `train`.
        test: Test part, same image size, mean and std as `train`.

    Raises:
        ValueError: If the parts differ in classes, image size, mean or std.
    """

    name: str
    num_classes: int
    train: ImageSet
    valid: ImageSet
    test: ImageSet

    def __post_init__(self) -> None:
        """Check every field."""
        wanted = _signature(self.train)
        for part in (self.train, self.valid, self.test):
            if part.num_classes != self.num_classes:
                raise ValueError(
                    f"{part.name} must have num_classes {self.num_classes} as {self.name} has, "
                    f"got {part.num_classes}"
                )
            if _signature(part) != wanted:
                raise ValueError(
                    f"{part.name} must have (image size, mean, std) {wanted} as "
                    f"{self.train.name} has, got {_signature(part)}"
                )


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel on the 0..1 scale.

    Args:
        images: ``[n, channels, height, width]``, uint8.

    Returns:
        ``(mean, std)``, one number a channel each; the biased standard deviation over images
        and pixels. Counted from the histogram of pixel values, so the sums are exact.
    """
    values = np.arange(256) / 255.0
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).numpy()
        weights = counts / counts.sum()
        mean = float(weights @ values)
        means.append(mean)
        deviations.append(math.sqrt(float(weights @ (values - mean) ** 2)))
    return tuple(means), tuple(deviations)


def _signature(part: ImageSet) -> tuple[list[int], tuple[float, ...], tuple[float, ...]]:
    return list(part.images.shape[1:]), part.mean, part.std


def check_range(what: str, values: Tensor, first: int, last: int) -> None:
    """Raise ValueError for the first of `values`, ``[n]``, that is not in ``first..last``."""
    bad = torch.nonzero((values < first) | (values > last)).flatten()
    if bad.numel():
        position = int(bad[0])
        raise ValueError(
            f"{what} must lie in {first}..{last}, "
            f"got {int(values[position])} at position {position}"
        )
