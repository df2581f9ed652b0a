# SPDX-License-Identifier: MIT
"""Random crop, flip and cutout on whole minibatches."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nasfast.data.checks import check_integer

__all__ = ["Augmentation", "augment", "cut_out", "flip_and_crop"]


@dataclass(frozen=True)
class Augmentation:
    """Which random changes training images get; the default is none.

    Attributes:
        crop_padding: Pixels of black added on each side before a random crop back to the
            original size. NAS-Bench-201 uses 4 on CIFAR and 2 on ImageNet16-120.
        flip: Whether to mirror each image left to right with probability one half.
        cutout: Side in pixels of the square that is set to 0.

    Raises:
        ValueError: If a size is negative or no integer, or `flip` is no bool.
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        check_integer("crop_padding", self.crop_padding, 0)
        check_integer("cutout", self.cutout, 0)
        if not isinstance(self.flip, bool):
            raise ValueError(f"flip must be True or False, got {self.flip!r}")

    def check_fits(self, height: int, width: int) -> None:
        """Raise ValueError if images of this size could come out with nothing left on them."""
        side = min(height, width)
        if self.crop_padding >= side:
            raise ValueError(
                f"crop_padding must be below the image side {side}, got {self.crop_padding}"
            )
        if self.cutout > side:
            raise ValueError(f"cutout must be at most the image side {side}, got {self.cutout}")


def augment(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Flip, then crop, then cut out, with separate random draws for each image.

    Everything happens in the values given: padding and cutout are 0 there, which is black for
    raw images and the mean for normalised ones. :class:`nasfast.data.TrainLoader` flips and
    crops raw images, normalises, and then cuts out.

    Args:
        images: ``[batch, channels, height, width]``, uint8 or floating point; left unchanged.
        augmentation: Which changes to make.
        generator: Source of every draw. A change that is off draws nothing.

    Returns:
        Tensor of the shape and dtype of `images`.

    Raises:
        ValueError: If `images` is not 4-dimensional, or too small for `augmentation`.
    """
    return cut_out(
        flip_and_crop(images, augmentation, generator),
        augmentation,
        generator,
    )


def flip_and_crop(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """The flip and the crop of :func:`augment`."""
    batch, _, height, width = _check_images(images, augmentation)
    if augmentation.flip:
        mirrored = torch.rand(batch, generator=generator) < 0.5
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    padding = augmentation.crop_padding
    if padding:
        top = torch.randint(2 * padding + 1, (batch,), generator=generator)
        left = torch.randint(2 * padding + 1, (batch,), generator=generator)
        padded = functional.pad(images, (padding, padding, padding, padding))
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        images = windows[torch.arange(batch), :, top, left]
    return images


def cut_out(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """The cutout of :func:`augment`.

    The centre is uniform over the pixels; the square begins ``cutout // 2`` pixels above and to
    the left of it, and what lies outside the image is clipped.
    """
    batch, _, height, width = _check_images(images, augmentation)
    side = augmentation.cutout
    if not side:
        return images
    inside = []
    for length in (height, width):
        start = torch.randint(length, (batch, 1), generator=generator) - side // 2
        pixel = torch.arange(length)
        inside.append((pixel >= start) & (pixel < start + side))
    square = inside[0].view(batch, 1, height, 1) & inside[1].view(batch, 1, 1, width)
    return images.masked_fill(square, 0)


def _check_images(images: Tensor, augmentation: Augmentation) -> tuple[int, int, int, int]:
    if images.ndim != 4:
        raise ValueError(
            f"images must be [batch, channels, height, width], got shape {list(images.shape)}"
        )
    batch, channels, height, width = images.shape
    augmentation.check_fits(height, width)
    return batch, channels, height, width
