# SPDX-License-Identifier: MIT
"""Primitive operations in plain PyTorch: the definition that every kernel is proved against.

Values are ``[batch, channels, height, width]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nasfast.units import MOMENTUM

EPS = 1e-5  # added to the variance in every batch norm


@dataclass(frozen=True, slots=True)
class Unit:
    """The tensors of one normalised convolution; None where it has no such tensor."""

    weight: Tensor | None
    bias: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    mean: Tensor | None
    variance: Tensor | None
    momentum: float = MOMENTUM
    channels: int = 0  # of the value it names, where it has no convolution


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance over batch, height and width, each ``[channels]``."""
    variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
    return mean, variance


def normalise(x: Tensor, mean: Tensor, variance: Tensor, unit: Unit) -> Tensor:
    """Return ``(x - mean) / sqrt(variance + eps) * gamma + beta``."""
    return F.batch_norm(x, mean, variance, unit.gamma, unit.beta, training=False, eps=EPS)


def normalise_batch(x: Tensor, unit: Unit, *, update: bool = False) -> Tensor:
    """Normalise with the statistics of ``x`` itself.

    With one element a channel the variance is 0 and the result is the shift (0 without one).

    Args:
        x: ``[batch, channels, height, width]``.
        unit: Gives scale and shift; its running statistics are updated in place on request, with
            the unbiased variance, as a training step does.
        update: Whether to update the running statistics.
    """
    if x.numel() == x.shape[1]:  # PyTorch refuses this case; it is defined here
        if update and unit.mean is not None:
            raise ValueError(
                "batch norm: running statistics need more than one element a channel, "
                f"got {list(x.shape)}"
            )
        y = x - x  # a value less its mean, which it is itself: 0, and no gradient passes
        y = y if unit.gamma is None else y * unit.gamma.view(-1, 1, 1)
        return y if unit.beta is None else y + unit.beta.view(-1, 1, 1)
    running = (unit.mean, unit.variance) if update else (None, None)
    return F.batch_norm(x, *running, unit.gamma, unit.beta, True, unit.momentum, EPS)


def convolve(x: Tensor, unit: Unit, *, stride: int = 1) -> Tensor:
    """Convolve with padding ``kernel // 2``."""
    assert unit.weight is not None
    padding = unit.weight.shape[-1] // 2
    return F.conv2d(x, unit.weight, unit.bias, stride=stride, padding=padding)


def avg_pool(x: Tensor, kernel: int) -> Tensor:
    """Average over a window at stride 1; padded positions are not counted."""
    return F.avg_pool2d(x, kernel, stride=1, padding=kernel // 2, count_include_pad=False)


def max_pool(x: Tensor, kernel: int) -> Tensor:
    """Maximum over a window at stride 1."""
    return F.max_pool2d(x, kernel, stride=1, padding=kernel // 2)


def add(terms: Sequence[Tensor]) -> Tensor:
    """Add left to right; the order is part of the definition."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def mix(terms: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Add ``weights[k] * terms[k]`` left to right; weights ``[terms]``."""
    return add([weight * term for weight, term in zip(weights.unbind(), terms, strict=True)])


def concat(parts: Sequence[Tensor], slots: int, channels: int) -> Tensor:
    """Lay values side by side; slots that none of them takes are zero.

    Args:
        parts: Values, ``[batch, *, height, width]``.
        slots: Bit ``k`` is set where slot ``k`` is taken, by the parts in their order. A free slot
            is as wide as the first part.
        channels: Channels of the result; zeros fill it up.
    """
    rest, values, free = list(parts), [], torch.zeros_like(parts[0])
    while rest:
        values.append(rest.pop(0) if slots & 1 else free)
        slots >>= 1
    missing = channels - sum(value.shape[1] for value in values)
    return F.pad(torch.cat(values, dim=1), (0, 0, 0, 0, 0, missing))


def max_halve(x: Tensor, padding: int) -> Tensor:
    """Maximum over 2x2 windows of stride 2; padded positions play no part.

    Without padding, the last window of an odd side has one row; with a padding of 1 the first has,
    and the last of an even side.
    """
    return F.max_pool2d(x, 2, stride=2, padding=padding, ceil_mode=padding == 0)


def shortcut(x: Tensor, unit: Unit) -> Tensor:
    """Return the residual branch of a reduction: 2x2 mean, then a 1x1 convolution.

    An odd border row or column is averaged over what is there.
    """
    pooled = F.avg_pool2d(x, 2, stride=2, ceil_mode=True, count_include_pad=False)
    return convolve(pooled, unit)


def classify(x: Tensor, unit: Unit) -> Tensor:
    """Global average, linear: ``[batch, classes]``."""
    assert unit.weight is not None
    return F.linear(x.mean(dim=(2, 3)), unit.weight, unit.bias)


def loss_and_correct(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return cross-entropy and top-1 correctness of each image, ``[batch]`` each.

    Logits that are not finite count as wrong.
    """
    loss = F.cross_entropy(logits, labels, reduction="none")
    correct = (logits.argmax(dim=1) == labels) & torch.isfinite(loss)
    return loss, correct
