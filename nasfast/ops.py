# SPDX-License-Identifier: MIT
"""The torch operators: thin, documented doors to :mod:`torch.ops.nasfast`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import nasfast._register  # noqa: F401  (registers the operators)


def run_program(
    table: Tensor, arenas: Tensor, images: Tensor, labels: Tensor, *, sizes: list[int], chunk: int,
    lanes: int, calibration: Tensor | None = None, calibration_sizes: list[int] | None = None,
    precision: str = "fp32", fixed: str = "batch", last: str = "batch", threads: int = 1,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Score every lane of one chunk of a program table.

    A lane's numbers are the same bits whatever else is in the table or the chunk, and for every
    number of threads.

    Args:
        table: Packed program as from :meth:`nasfast.plan.Plan.table`, int32 ``[numbers]``.
        arenas: Weight sets, float32 ``[weight_sets, arena_size]``. Only the weights that the lanes
            use are read.
        images: float32 ``[images, channels, height, width]``, contiguous.
        labels: int64 ``[images]``.
        sizes: Images of each minibatch, in order.
        chunk: Which chunk.
        lanes: Lanes of that chunk.
        calibration: Images that parts in mode ``"recalibrate"`` are measured on, like ``images``;
            the evaluated images when left out.
        calibration_sizes: Sizes of their minibatches.
        precision: ``"fp32"``, or ``"bf16"``: operands of convolutions and feature maps bfloat16,
            sums and statistics float32.
        fixed: Batch-norm mode of stem and reductions.
        last: Batch-norm mode before the classifier. That of the cells is in the table.
        threads: Threads.

    Returns:
        Cross-entropy float32 and top-1 correctness bool, ``[lanes, images]`` each, rows in the
        order of the chunk.

    Raises:
        RuntimeError: If an argument does not fit the table or the others.

    Definition:
        :mod:`nasfast.reference`. Logits in fp32 are at most 4 times as far from float64 as
        PyTorch's own float32, or 1e-5 of the largest logit.
    """
    return torch.ops.nasfast.run_program.default(
        table, arenas, images, labels, sizes, calibration, calibration_sizes or [], chunk, lanes,
        precision, fixed, last, threads,
    )  # fmt: skip


def subnet_forward(
    table: Tensor, arenas: Tensor, images: Tensor, *, lanes: int, classes: int,
    precision: str = "fp32", fixed: str = "batch", last: str = "batch", threads: int = 1,
) -> Tensor:  # fmt: skip
    """Return the logits of every lane of a program table on one minibatch.

    Args:
        table: As in :func:`run_program`.
        arenas: As in :func:`run_program`.
        images: float32 ``[batch, channels, height, width]``, contiguous.
        lanes: Lanes of the table.
        classes: Classes of the supernet.
        precision: As in :func:`run_program`.
        fixed: As in :func:`run_program`.
        last: As in :func:`run_program`.
        threads: Threads.

    Returns:
        float32 ``[lanes, batch, classes]``.

    Raises:
        RuntimeError: If an argument does not fit the table or the others.
    """
    return torch.ops.nasfast.subnet_forward.default(
        table, arenas, images, lanes, classes, precision, fixed, last, threads
    )


def relu_conv_bn(
    features: Tensor, weight: Tensor, *, stride: int = 1, eps: float = 1e-5
) -> Tensor:  # fmt: skip
    """ReLU, convolution and batch-statistics normalisation in one operator, forward only.

    The candidate operation ``nor_conv_kxk`` of NAS-Bench-201 without affine parameters:
    ``(y - mean) / sqrt(variance + eps)`` with ``y = conv2d(relu(features), weight)`` and the mean
    and biased variance of ``y`` over batch, height and width. With one element a channel the
    variance is 0 and the result is 0.

    Args:
        features: float32 or bfloat16 ``[batch, in_channels, height, width]``, any layout;
            channels-last is read fastest.
        weight: ``[out_channels, in_channels, k, k]``, dtype of ``features``, ``k`` odd, padding
            ``k // 2``.
        stride: 1 or 2.
        eps: Added to the variance.

    Returns:
        ``[batch, out_channels, ceil(height / stride), ceil(width / stride)]``, dtype of
        ``features``, channels-last.

    Raises:
        RuntimeError: If a shape, dtype or device differs from the above.

    Source:
        Dong and Yang, NAS-Bench-201, ICLR 2020, section 2.1.
    """
    return torch.ops.nasfast.relu_conv_bn.default(features, weight, stride, eps)


@dataclass(frozen=True)
class CpuInfo:
    """Instruction sets of the CPU engine.

    Attributes:
        chosen: The one in use: the widest supported, or what ``NASFAST_ISA`` names.
        missing: Why each of the others cannot be used; empty text for those that can, by name,
            from the narrowest to the widest.
    """

    chosen: str
    missing: dict[str, str]


def cpu_info() -> CpuInfo:
    """Return the instruction sets that the CPU engine has, and the one in use.

    Raises:
        RuntimeError: If ``NASFAST_ISA`` names one that is unknown or not supported here.
    """
    text = str(torch.ops.nasfast.cpu_info.default())
    rows = dict(line.split("\t") for line in text.splitlines())
    return CpuInfo(chosen=rows.pop("chosen"), missing=rows)
