# SPDX-License-Identifier: MIT
"""The torch operators: thin, documented doors to :mod:`torch.ops.nasfast`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

import nasfast._register  # noqa: F401  (registers the operators)


class Hyperparameters(Protocol):
    """What a step of SGD takes beside its learning rate; :class:`nasfast.lane_training.Sgd`."""

    @property
    def momentum(self) -> float: ...  # noqa: D102
    @property
    def nesterov(self) -> bool: ...  # noqa: D102
    @property
    def weight_decay(self) -> float: ...  # noqa: D102
    @property
    def clip(self) -> float: ...  # noqa: D102


def run_program(
    table: Tensor, arenas: Tensor, images: Tensor, labels: Tensor, *, sizes: list[int], chunk: int,
    lanes: int, calibration: Tensor | None = None, calibration_sizes: list[int] | None = None,
    precision: str = "fp32", fixed: str = "batch", last: str = "batch", threads: int = 1,
    memory: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Score every lane of one chunk of a program table.

    A lane's numbers are the same bits whatever else is in the table or the chunk, and for every
    number of threads and every memory budget. With arenas, images and labels on one CUDA device the
    chunk is scored there, as many lanes at a time as its memory holds; a CPU and a device round
    differently.

    Args:
        table: Packed program as from :meth:`nasfast.plan.Plan.table`, int32 ``[numbers]``, on the
            CPU.
        arenas: Weight sets, float32 ``[weight_sets, arena_size]``. Only the weights that the lanes
            use are read.
        images: float32 ``[images, channels, height, width]``, contiguous.
        labels: int64 ``[images]``.
        sizes: Images of each minibatch, in order.
        chunk: Which chunk.
        lanes: Lanes of that chunk.
        calibration: Images that parts in mode ``"recalibrate"`` are measured on, like ``images``;
            the evaluated images when left out. Not on a CUDA device, where no part can
            recalibrate.
        calibration_sizes: Sizes of their minibatches.
        precision: ``"fp32"``; ``"bf16"``: operands of convolutions and feature maps bfloat16, sums
            and statistics float32; or on a CUDA device ``"tf32"``: operands of convolutions
            rounded to 10 bits behind the point, all else float32.
        fixed: Batch-norm mode of stem and reductions.
        last: Batch-norm mode before the classifier. That of the cells is in the table.
        threads: Threads; they play no part on a CUDA device.
        memory: On a CUDA device, most bytes of working memory; 0: of what is free. On a CPU it
            plays no part: the table's chunks are made for a budget.

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
        precision, fixed, last, threads, memory,
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


def score_lanes(
    table: Tensor, weights: Tensor, images: Tensor, labels: Tensor, sizes: list[int], *,
    precision: str = "fp32", fixed: str = "batch", last: str = "batch", threads: int = 1,
    memory: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Score lanes that have their own weights each.

    With weights, images and labels on one CUDA device they are scored there, as many side by side
    as ``memory`` holds.

    Args:
        table: Packed program with one lane a chunk, int32 ``[numbers]``.
        weights: Row of each lane, float32 ``[lanes, arena_size]``.
        images: As in :func:`run_program`.
        labels: As in :func:`run_program`.
        sizes: Images of each minibatch, in order.
        precision: As in :func:`run_program`.
        fixed: As in :func:`run_program`; no part may recalibrate on images of its own.
        last: As in :func:`run_program`.
        threads: Threads; each takes a lane. They play no part on a CUDA device.
        memory: As in :func:`run_program`.

    Returns:
        Cross-entropy float32 and top-1 correctness bool, ``[lanes, images]`` each.

    Raises:
        RuntimeError: If an argument does not fit the table or the others.
    """
    return torch.ops.nasfast.score_lanes.default(
        table, weights, images, labels, sizes, precision, fixed, last, threads, memory
    )


def train_lanes(
    table: Tensor, weights: Tensor, momenta: Tensor | None, gradient_sums: Tensor | None,
    diverged_at: Tensor, images: Tensor, labels: Tensor, sizes: list[int], lr: Tensor, chunk: int,
    first_step: int, sgd: Hyperparameters, *, precision: str = "fp32", threads: int = 1,
    memory: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Take SGD steps with every lane of a chunk, each on its own weights.

    Training mode: statistics of the minibatch everywhere, running ones are updated. A lane whose
    loss or gradient is not finite stops before that step. A lane's bits do not depend on the
    others, the chunk or the number of threads.

    With all tensors but the table on one CUDA device they are trained there, as many lanes side by
    side as its memory holds, which changes no bit. After an error in the middle (as that it has no
    memory for one lane) some lanes may have been trained.

    Args:
        table: Packed program of single paths, int32 ``[numbers]``, on the CPU.
        weights: float32 ``[lanes, arena_size]``, changed in place.
        momenta: Momentum buffers, likewise; None without momentum.
        gradient_sums: Gradients are added to it, likewise; None: not wanted.
        diverged_at: int32 ``[lanes]``, -1 or the step at which a lane stopped, in place.
        images: float32 ``[images, channels, height, width]``, contiguous.
        labels: int64 ``[images]``.
        sizes: Images of each minibatch, one a step, in order.
        lr: Learning rates, float64 ``[lanes, steps]``.
        chunk: Which chunk.
        first_step: Number of the first step, for ``diverged_at``.
        sgd: Momentum, Nesterov, weight decay and clipping.
        precision: As in :func:`run_program`.
        threads: Threads; they play no part on a CUDA device.
        memory: As in :func:`run_program`; weights and what goes with them are not counted.

    Returns:
        Mean loss before each step float64, images classified correctly before it int64, sum of
        absolute gradients float64, and of absolute summed gradients float64 (``[0, steps]`` when
        not wanted), ``[lanes, steps]`` each.

    Raises:
        RuntimeError: If an argument does not fit the table or the others.

    Definition:
        :class:`nasfast.lane_training.ReferenceLanes`.
    """
    return torch.ops.nasfast.train_lanes.default(
        table, weights, momenta, gradient_sums, diverged_at, images, labels, sizes, lr, chunk,
        first_step, sgd.momentum, sgd.nesterov, sgd.weight_decay, sgd.clip, precision, threads,
        memory,
    )  # fmt: skip


def train_paths(
    table: Tensor, weights: Tensor, momenta: Tensor | None, images: Tensor, labels: Tensor,
    sizes: list[int], lanes: list[int], paths: int, lr: float, sgd: Hyperparameters, *,
    precision: str = "fp32", threads: int = 1,
) -> tuple[Tensor, Tensor, int]:  # fmt: skip
    """Take SGD steps on one weight set; at each the gradients of some lanes are added.

    Args:
        table: As in :func:`train_lanes`.
        weights: float32 ``[arena_size]``, changed in place.
        momenta: Momentum buffers, likewise; None without momentum.
        images: As in :func:`train_lanes`.
        labels: As in :func:`train_lanes`.
        sizes: Images of each minibatch, one a step, in order.
        lanes: Lanes of each step, ``[steps * paths]``.
        paths: Lanes of a step.
        lr: Learning rate.
        sgd: Momentum, Nesterov, weight decay and clipping.
        precision: As in :func:`run_program`.
        threads: Threads, which share the images of a lane. On a CUDA device the lanes of a step run
            side by side.

    Returns:
        Mean loss before the step float64 and images classified correctly int64, ``[steps *
        paths]`` each, and the steps taken: fewer than asked for when a loss or a gradient was not
        finite. Weights are then those before that step, whose losses are given.

    Raises:
        RuntimeError: If an argument does not fit the table or the others.

    Definition:
        :func:`nasfast.train.train` on the reference backend.
    """
    loss, correct, steps = torch.ops.nasfast.train_paths.default(
        table, weights, momenta, images, labels, sizes, lanes, paths, lr, sgd.momentum,
        sgd.nesterov, sgd.weight_decay, sgd.clip, precision, threads,
    )  # fmt: skip
    return loss, correct, int(steps)


def program_gradients(
    table: Tensor, arena: Tensor, images: Tensor, *, labels: Tensor | None = None,
    grad_logits: Tensor | None = None, mixing: Tensor | None = None, lane: int = 0, classes: int,
    precision: str = "fp32", threads: int = 1, running: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Run one lane in training mode and return its gradients.

    Args:
        table: Packed program, int32 ``[numbers]``.
        arena: Weights, float32 ``[arena_size]``.
        images: One minibatch, float32 ``[batch, channels, height, width]``, contiguous.
        labels: int64 ``[batch]``: gradients are of the mean cross-entropy.
        grad_logits: float32 ``[batch, classes]``, without labels: gradients are of the sum of
            logits times these.
        mixing: Mixing weights, float32 ``[cells, mixing_width]``, where the table has mixed
            operations.
        lane: Which lane.
        classes: Classes of the supernet.
        precision: As in :func:`run_program`.
        threads: Threads, which share the images.
        running: ``arena`` once more, to update its running statistics in place.

    Returns:
        Logits ``[batch, classes]``, gradient of the arena ``[arena_size]`` (0 where the lane uses
        nothing) and of the mixing weights ``[cells, mixing_width]``, float32; without labels and
        ``grad_logits`` the gradients have no elements.

    Raises:
        RuntimeError: If an argument does not fit the table or the others.

    Definition:
        Autograd through :class:`nasfast.reference.Executor`.
    """
    return torch.ops.nasfast.program_gradients.default(
        table, arena, images, labels, grad_logits, mixing, lane, classes, precision, threads,
        running,
    )  # fmt: skip


def mixed_op(
    x: Tensor, weights: Tensor, params: Tensor, *, kinds: list[int], kernels: list[int],
    fields: list[int], threads: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Weighted sum of the candidate operations of one edge, from one read of the input.

    Every candidate is computed, whatever its weight; convolutions are ReLU, convolution and batch
    norm with the statistics of the minibatch. Differentiable in ``x``, ``weights`` and ``params``.
    All tensors are on the CPU or on one CUDA device.

    Args:
        x: float32 or bfloat16 ``[batch, channels, height, width]``; channels-last is read
            fastest.
        weights: Mixing weights, float32 ``[operations]``.
        params: Parameters of the convolutions in turn, float32, flat: weight ``[channels,
            channels, k, k]``, then what ``fields`` says.
        kinds: :class:`nasfast.spaces.OpKind` of each operation.
        kernels: Kernel size of each, odd; any number where it has none.
        fields: Of each convolution the sum of 1 (it has a bias, which the statistics cancel: it
            is not read and its gradient is 0) and 2 (scale and shift of its batch norm), each
            ``[channels]``; 0 for other operations.
        threads: Threads, which change no bit; 0: PyTorch's number at the time of the call. They
            play no part on a CUDA device.

    Returns:
        ``[batch, channels, height, width]``, dtype of ``x``, channels-last; and the statistics of
        each convolution, float32 ``[convolutions, 2, channels]``: mean without bias, biased
        variance.

    Raises:
        RuntimeError: If an argument does not fit the others.

    Definition:
        :func:`nasfast.reference_mixed.mixed_op`.

    Source:
        Liu et al., DARTS, ICLR 2019, equation 2.
    """
    out, statistics, _ = torch.ops.nasfast.mixed_op.default(
        x, weights, params, kinds, kernels, fields, threads
    )
    return out, statistics


def mixed_op_refusal(
    channels: int, height: int, width: int, is_bfloat16: bool, *, kinds: list[int],
    kernels: list[int],
) -> str:  # fmt: skip
    """Why the current CUDA device does not take a mixed operation; empty where it does.

    A block of its threads has to hold all channels of some pixels, so that what has many channels,
    or windows that reach far, may not fit.

    Args:
        channels: Channels of the features.
        height: Their height.
        width: Their width.
        is_bfloat16: Whether they are bfloat16.
        kinds: As of :func:`mixed_op`.
        kernels: As of :func:`mixed_op`.

    Raises:
        RuntimeError: If an argument does not fit the others, or there is no device.
        NotImplementedError: If this build has no CUDA kernels.
    """
    return str(
        torch.ops.nasfast.mixed_op_refusal.default(
            channels, height, width, is_bfloat16, kinds, kernels
        )
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
        features: float32 or bfloat16 ``[batch, in_channels, height, width]``, any layout, on the
            CPU or a CUDA device; channels-last is read fastest.
        weight: ``[out_channels, in_channels, k, k]``, dtype and device of ``features``, ``k`` odd,
            padding ``k // 2``.
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


def cuda_archs() -> str | None:
    """Return what the CUDA kernels are compiled for, None where this build has none.

    Returns:
        A list as in ``TORCH_CUDA_ARCH_LIST``: ``"8.0;9.0+PTX"``.
    """
    try:
        return str(torch.ops.nasfast.cuda_archs.default())
    except NotImplementedError:  # the file that implements it is not compiled
        return None
