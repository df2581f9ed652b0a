# SPDX-License-Identifier: MIT
"""Columns of numbers, and scores that know the images or the seeds behind them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

# Numbers that one block of per-image values may hold while it is unpacked: 32 MiB of float64.
_BLOCK = 1 << 22


@dataclass(frozen=True, eq=False)
class PerImage:
    """Scores as values of each image: an architecture's score is their mean.

    A resample has the noise of the images at hand and that of the draw, so with few images a
    correlation's percentile interval over images lies nearer to 0 than the value does.

    Attributes:
        values: Higher is better, ``[archs, images]``: negated losses, or whether an image was
            classified correctly (bool). With ``packed_images``, correctness as bits,
            ``[archs, ceil(images / 8)]`` uint8, as ``numpy.packbits(correct, axis=1)`` makes them.
        packed_images: Number of images of packed bits; None where ``values`` is not packed.

    Raises:
        ValueError: If a shape or a dtype differs from the above.
    """

    values: npt.NDArray[Any]
    packed_images: int | None = None

    def __post_init__(self) -> None:
        values = numeric("values", self.values, dtype=None)
        object.__setattr__(self, "values", values)
        if values.ndim != 2:
            raise ValueError(f"values: wanted [archs, images], got shape {values.shape}")
        images = self.packed_images
        if images is not None and (
            images < 1 or values.dtype != np.uint8 or values.shape[1] != -(-images // 8)
        ):
            raise ValueError(
                f"values: wanted uint8 bits of {images} images in {-(-images // 8)} bytes, "
                f"got {values.dtype} of shape {values.shape}"
            )
        if self.images < 1:
            raise ValueError("values: wanted at least one image, got none")

    @property
    def images(self) -> int:
        """Number of images."""
        return self.packed_images or self.values.shape[1]

    def means(self) -> Floats:
        """Score of each architecture, ``[archs]``."""
        return self.weighted_means(np.ones((1, self.images)))[0]

    def resampled_means(self, resamples: int, seed: int) -> Iterator[Floats]:
        """Scores over images drawn with replacement, ``[archs]`` at a time."""
        rng = np.random.default_rng(seed)
        images = self.images
        # Many at a time, as each pass reads all values; so many that weights stay small too.
        at_once = max(1, min(256, _BLOCK // images, _BLOCK // max(1, len(self.values))))
        for start in range(0, resamples, at_once):
            count = min(at_once, resamples - start)
            drawn = [rng.integers(images, size=images) for _ in range(count)]
            weights = np.stack([np.bincount(draw, minlength=images) for draw in drawn])
            yield from self.weighted_means(weights)

    def rows(self, keep: npt.NDArray[np.bool_]) -> PerImage:
        """The same for some of the architectures."""
        return self if keep.all() else PerImage(self.values[keep], self.packed_images)

    def weighted_means(self, weights: npt.NDArray[Any]) -> Floats:
        """Means with each image as often as its weight says.

        Args:
            weights: Whole numbers that sum to the number of images, ``[resamples, images]``.

        Returns:
            ``[resamples, archs]``; of correctness exact, whatever the order of summation.
        """
        # Counts below 2^24 are exact in float32, which is twice as fast.
        exact = self.values.dtype == np.bool_ or self.packed_images is not None
        dtype = np.float32 if exact and self.images < 1 << 24 else np.float64
        factors: npt.NDArray[Any] = weights.astype(dtype).T
        out = np.empty((weights.shape[0], len(self.values)))
        step = max(1, _BLOCK // self.images)
        for start in range(0, len(self.values), step):
            block = self.values[start : start + step]
            if self.packed_images is not None:
                block = np.unpackbits(block, axis=1, count=self.packed_images)
            # A value that is not finite makes its architecture's mean so, which is then dropped.
            with np.errstate(invalid="ignore", over="ignore"):
                out[:, start : start + step] = (block.astype(dtype) @ factors).T
        return out / self.images


@dataclass(frozen=True, eq=False)
class PerSeed:
    """Scores from supernets that differ in their seed alone.

    Attributes:
        values: Higher is better, ``[seeds, archs]``.
        average: What is averaged over the seeds: ``"metric"``, the metric of each seed, as papers
            report it, or ``"scores"``, the scores, before one metric is taken of them.

    Raises:
        ValueError: If ``values`` is not 2-d with at least one seed, or ``average`` unknown.
    """

    values: npt.NDArray[Any]
    average: Literal["metric", "scores"]

    def __post_init__(self) -> None:
        values = numeric("values", self.values)
        if values.ndim != 2 or not len(values):
            raise ValueError(f"values: wanted [seeds, archs], got shape {values.shape}")
        one_of("average", self.average, ("metric", "scores"))
        object.__setattr__(self, "values", values)


Scores = npt.ArrayLike | PerImage | PerSeed
"""Scores of architectures: ``[archs]``, or with the images or the seeds behind them."""


def count_ties(values: npt.ArrayLike) -> int:
    """Number of entries that equal at least one other entry; a nan equals nothing.

    Args:
        values: ``[n]``.

    Raises:
        ValueError: If ``values`` is not 1-d or not numeric.
    """
    values = column("values", values)
    counts = np.unique(values[~np.isnan(values)], return_counts=True)[1]
    return int(counts[counts > 1].sum())


def column(name: str, values: object) -> Floats:
    """``values`` as float64, ``[n]``.

    Raises:
        ValueError: If they are not 1-d or not numeric.
    """
    array = numeric(name, values)
    if array.ndim != 1:
        raise ValueError(f"{name}: wanted 1 dimension, got shape {array.shape}")
    return array


def numeric(name: str, values: Any, dtype: Any = np.float64) -> npt.NDArray[Any]:
    """``values`` as an array of numbers; ``dtype=None`` leaves real ones as they are.

    Raises:
        ValueError: If they are not numbers.
    """
    try:
        array = np.asarray(values, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: wanted numbers, got {type(values).__name__}: {error}") from None
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name}: wanted real numbers, got {array.dtype}")
    return array


def one_of(name: str, got: str, wanted: tuple[str, ...]) -> None:
    """Check a choice.

    Raises:
        ValueError: If ``got`` is none of ``wanted``.
    """
    if got not in wanted:
        raise ValueError(f"{name}: wanted one of {', '.join(wanted)}, got {got!r}")


def at_least(name: str, got: int, least: int) -> None:
    """Check a number.

    Raises:
        ValueError: If ``got`` is below ``least``.
    """
    if got < least:
        raise ValueError(f"{name}: wanted at least {least}, got {got}")
