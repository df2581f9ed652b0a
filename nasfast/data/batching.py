# SPDX-License-Identifier: MIT
"""Minibatches: a fixed list for evaluation, a fresh augmented order each epoch for training."""

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from nasfast.data.augmentation import Augmentation, cut_out, flip_and_crop
from nasfast.data.checks import check_integer
from nasfast.data.sampling import mix_seeds
from nasfast.data.sets import ImageSet

__all__ = ["Batch", "TrainLoader", "batches"]

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Batch:
    """One minibatch.

    Attributes:
        images: ``[batch, channels, height, width]``, floating point, contiguous, normalised:
            ``(x / 255 - mean) / std`` by channel.
        labels: ``[batch]``, int64.
    """

    images: Tensor
    labels: Tensor


def batches(
    image_set: ImageSet,
    batch_size: int,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    last: Literal["error", "drop", "keep"] = "error",
) -> list[Batch]:
    """Evaluation minibatches, shuffled once.

    Files often hold images sorted by class. Under batch statistics a minibatch of one class would
    leak its label, so the set is always shuffled, by `seed` alone.

    Args:
        image_set: Images to score on.
        batch_size: Images in a minibatch, at most ``len(image_set)``.
        seed: Seed of the order, at least 0.
        dtype: Floating-point type of the images. Normalisation is computed in float32, or in
            float64 where that is asked for, and rounded once.
        last: What to do with a last minibatch of fewer images, whose batch statistics would
            differ from those of the others: ``"error"``, leave it out (``"drop"``, logged at
            INFO), or use it (``"keep"``).

    Returns:
        The minibatches; each image is in at most one, and in exactly one unless dropped.

    Raises:
        ValueError: If an argument is out of range, or if the last minibatch would be partial
            and `last` is ``"error"``.
    """
    count = len(image_set)
    batch_size = _check_batch_size(batch_size, image_set)
    _check_dtype(dtype)
    check_integer("seed", seed, 0)
    if last not in ("error", "drop", "keep"):
        raise ValueError(f'last must be "error", "drop" or "keep", got {last!r}')
    left_over = count % batch_size
    if left_over and last == "error":
        raise ValueError(
            f"batch_size must divide the {count} images of {image_set.name}, got {batch_size}: "
            f'the last minibatch would have {left_over} images (choose last="drop" or "keep")'
        )
    if left_over and last == "drop":
        _LOGGER.info(
            "%s: %d of %d images are left out by minibatches of %d",
            *(image_set.name, left_over, count, batch_size),
        )
    generator = torch.Generator().manual_seed(mix_seeds(seed))
    order = torch.randperm(count, generator=generator)
    stop = count if last == "keep" else count - left_over
    result = []
    for start in range(0, stop, batch_size):
        chosen = order[start : start + batch_size]
        images = _normalise(image_set.images[chosen], image_set, dtype)
        result.append(Batch(images.to(dtype), image_set.labels[chosen]))
    return result


@dataclass(frozen=True, eq=False)
class TrainLoader:
    """Shuffled and augmented minibatches for training.

    Each image is flipped and cropped as raw pixels (the padding is black), then normalised, then
    cut out (to 0, the mean), in this order as NAS-Bench-201 does.

    Attributes:
        image_set: Images to train on.
        batch_size: Images in a minibatch, at most ``len(image_set)``.
        augmentation: Random changes; none by default.
        seed: Seed of every draw, at least 0.
        dtype: Floating-point type of the images.

    Raises:
        ValueError: If an argument is out of range, or the images are too small for
            `augmentation`.
    """

    image_set: ImageSet
    batch_size: int
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        """Check every field."""
        _check_batch_size(self.batch_size, self.image_set)
        _check_dtype(self.dtype)
        check_integer("seed", self.seed, 0)
        self.augmentation.check_fits(*self.image_set.images.shape[2:])

    @property
    def steps_per_epoch(self) -> int:
        """Minibatches in an epoch; a partial last one is not counted."""
        return len(self.image_set) // self.batch_size

    def epoch(self, index: int) -> Iterator[Batch]:
        """The minibatches of epoch `index`.

        Order and augmentation depend on the seed and on `index` only, not on which epochs were
        read before, so a training resumed at an epoch sees the same minibatches. The images of
        a partial last minibatch are left out; they differ from epoch to epoch.

        Args:
            index: Number of the epoch, at least 0.

        Returns:
            Iterator over :attr:`steps_per_epoch` minibatches.

        Raises:
            ValueError: If `index` is negative or no integer.
        """
        index = check_integer("index", index, 0)
        # Inner function: a body with `yield` would report a bad index only at the first step.
        return self._batches(torch.Generator().manual_seed(mix_seeds(self.seed, index)))

    def groups(self, index: int, images: int) -> Iterator[list[Batch]]:
        """The minibatches of epoch `index`, several at once as far as memory should hold them.

        Args:
            index: Number of the epoch, at least 0.
            images: Most images of a group, which has one minibatch at least.

        Raises:
            ValueError: If `index` is negative or no integer.
        """
        stream, most = self.epoch(index), max(1, images // self.batch_size)
        return iter(lambda: list(itertools.islice(stream, most)), [])

    def _batches(self, generator: torch.Generator) -> Iterator[Batch]:
        order = torch.randperm(len(self.image_set), generator=generator)
        for step in range(self.steps_per_epoch):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
            raw = flip_and_crop(self.image_set.images[chosen], self.augmentation, generator)
            images = _normalise(raw, self.image_set, self.dtype)
            images = cut_out(images, self.augmentation, generator)
            yield Batch(images.to(self.dtype), self.image_set.labels[chosen])


def _normalise(images: Tensor, image_set: ImageSet, dtype: torch.dtype) -> Tensor:
    """Normalised images in float64 if `dtype` is that, else in float32."""
    working = torch.float64 if dtype == torch.float64 else torch.float32
    mean = torch.tensor(image_set.mean, dtype=working).view(-1, 1, 1)
    std = torch.tensor(image_set.std, dtype=working).view(-1, 1, 1)
    scaled: Tensor = images.to(working, memory_format=torch.contiguous_format)
    return scaled.div_(255).sub_(mean).div_(std)


def _check_batch_size(batch_size: int, image_set: ImageSet) -> int:
    batch_size = check_integer("batch_size", batch_size, 1)
    if batch_size > len(image_set):
        raise ValueError(
            f"batch_size must be at most the {len(image_set)} images of {image_set.name}, "
            f"got {batch_size}"
        )
    return batch_size


def _check_dtype(dtype: torch.dtype) -> None:
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point torch.dtype, got {dtype}")
