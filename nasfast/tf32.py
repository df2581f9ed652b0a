# SPDX-License-Identifier: MIT
"""Precision tf32 in plain PyTorch: what a card's products of convolutions are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def rounded(numbers: Tensor) -> Tensor:
    """Return float32 numbers with 10 bits behind the point: to nearest, ties away from zero.

    As ``cvt.rna.tf32.f32`` of a card; what is infinite or no number stays so.
    """
    bits = numbers.contiguous().view(torch.int32)
    return torch.where(numbers.isfinite(), (bits + 0x1000) & ~0x1FFF, bits).view(torch.float32)


class Tf32Convolutions(TorchFunctionMode):
    """While it is entered, convolutions of float32 round both operands; sums stay float32.

    It knows no gradients.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        """Call a function of torch; of a convolution on rounded operands."""
        if func is torch.conv2d:
            images, weight, *rest = args
            args = (rounded(images), rounded(weight), *rest)
        return func(*args, **(kwargs or {}))
