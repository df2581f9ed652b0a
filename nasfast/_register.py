# SPDX-License-Identifier: MIT
"""Loads the operators of ``csrc/ops`` and gives them fake kernels (shapes without numbers)."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

import nasfast._ops  # noqa: F401  (importing it registers the operators)

_CONV = 2  # nasfast.spaces.OpKind.CONV; pools come after it
_PIECE = 256  # what pieces of device memory are aligned to, in bytes

_Fake = TypeVar("_Fake", bound=Callable[..., object])


def _fake(name: str) -> Callable[[_Fake], _Fake]:
    """``torch.library.register_fake`` for an operator of ours; its own type is lost in torch."""
    register: Callable[[_Fake], _Fake] = torch.library.register_fake(f"nasfast::{name}")
    return register


@_fake("run_program")
def _run_program(
    table: Tensor, arenas: Tensor, images: Tensor, labels: Tensor, sizes: list[int],
    calibration: Tensor | None, calibration_sizes: list[int], chunk: int, lanes: int,
    precision: str, fixed: str, last: str, threads: int, memory: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _check_dtype("run_program", "table", table, torch.int32)
    _check_dtype("run_program", "arenas", arenas, torch.float32)
    _check_dtype("run_program", "images", images, torch.float32)
    _check_dtype("run_program", "labels", labels, torch.int64)
    torch._check(
        images.dim() == 4 and labels.dim() == 1 and labels.shape[0] == images.shape[0],
        lambda: f"run_program: labels: got {list(labels.shape)} for {list(images.shape)}",
    )
    shape = (lanes, images.shape[0])
    return images.new_empty(shape), images.new_empty(shape, dtype=torch.bool)


@_fake("subnet_forward")
def _subnet_forward(
    table: Tensor, arenas: Tensor, images: Tensor, lanes: int, classes: int, precision: str,
    fixed: str, last: str, threads: int,
) -> Tensor:  # fmt: skip
    _check_dtype("subnet_forward", "table", table, torch.int32)
    _check_dtype("subnet_forward", "arenas", arenas, torch.float32)
    _check_dtype("subnet_forward", "images", images, torch.float32)
    return images.new_empty((lanes, images.shape[0], classes))


@_fake("score_lanes")
def _score_lanes(
    table: Tensor, weights: Tensor, images: Tensor, labels: Tensor, sizes: list[int],
    precision: str, fixed: str, last: str, threads: int, memory: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _check_training("score_lanes", table, weights, images, labels)
    shape = (weights.shape[0], images.shape[0])
    return images.new_empty(shape), images.new_empty(shape, dtype=torch.bool)


@_fake("train_lanes")
def _train_lanes(
    table: Tensor, weights: Tensor, momenta: Tensor | None, gradient_sums: Tensor | None,
    diverged_at: Tensor, images: Tensor, labels: Tensor, sizes: list[int], lr: Tensor, chunk: int,
    first_step: int, momentum: float, nesterov: bool, weight_decay: float, clip: float,
    precision: str, threads: int, memory: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    _check_training("train_lanes", table, weights, images, labels)
    _check_dtype("train_lanes", "diverged_at", diverged_at, torch.int32)
    _check_dtype("train_lanes", "lr", lr, torch.float64)
    shape = (weights.shape[0], len(sizes))
    sums = (0 if gradient_sums is None else shape[0], shape[1])
    correct = lr.new_empty(shape, dtype=torch.int64)
    return lr.new_empty(shape), correct, lr.new_empty(shape), lr.new_empty(sums)


@_fake("train_paths")
def _train_paths(
    table: Tensor, weights: Tensor, momenta: Tensor | None, images: Tensor, labels: Tensor,
    sizes: list[int], lanes: list[int], paths: int, lr: float, momentum: float, nesterov: bool,
    weight_decay: float, clip: float, precision: str, threads: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    _check_training("train_paths", table, weights, images, labels)
    count = len(lanes)
    new = images.new_empty
    return (
        new(count, dtype=torch.float64), new(count, dtype=torch.int64), new(1, dtype=torch.int64)
    )  # fmt: skip


@_fake("program_gradients")
def _program_gradients(
    table: Tensor, arena: Tensor, images: Tensor, labels: Tensor | None,
    grad_logits: Tensor | None, mixing: Tensor | None, lane: int, classes: int, precision: str,
    threads: int, running: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    _check_dtype("program_gradients", "table", table, torch.int32)
    _check_dtype("program_gradients", "arena", arena, torch.float32)
    _check_dtype("program_gradients", "images", images, torch.float32)
    has_gradient = labels is not None or grad_logits is not None
    cells, width = (0, 0) if mixing is None else mixing.shape
    return (
        images.new_empty((images.shape[0], classes)),
        arena.new_empty(arena.shape[0] if has_gradient else 0),
        arena.new_empty((cells if has_gradient else 0, width)),
    )


def _check_training(
    op: str, table: Tensor, weights: Tensor, images: Tensor, labels: Tensor
) -> None:
    _check_dtype(op, "table", table, torch.int32)
    _check_dtype(op, "weights", weights, torch.float32)
    _check_dtype(op, "images", images, torch.float32)
    _check_dtype(op, "labels", labels, torch.int64)


@_fake("mixed_op")
def _mixed_op(
    x: Tensor, weights: Tensor, params: Tensor, kinds: list[int], kernels: list[int],
    fields: list[int], threads: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    torch._check(
        x.dtype in (torch.float32, torch.bfloat16),
        lambda: f"mixed_op: x: wanted float32 or bfloat16, got {x.dtype}",
    )
    _check_dtype("mixed_op", "weights", weights, torch.float32)
    _check_dtype("mixed_op", "params", params, torch.float32)
    torch._check(x.dim() == 4, lambda: f"mixed_op: x: wanted 4 dimensions, got {list(x.shape)}")
    batch, channels, height, width = x.shape
    convs = kinds.count(_CONV)
    # x itself and the raw result of each candidate but zero and identity.
    kept = 1 + sum(kind >= _CONV for kind in kinds)
    if x.device.type == "cuda":  # in the layout of the kernels, and what batch norms measured
        value = batch * height * width * _rounded(channels, 8) * x.element_size()
        depth = _rounded(channels, 16)
        measured = _rounded(2 * depth * 4, _PIECE) + _rounded(3 * depth * 8, _PIECE)
        saved = kept * _rounded(value, _PIECE) + convs * measured
    else:  # in whole blocks of images
        lines = (channels + 1) // 2 if x.dtype == torch.bfloat16 else channels
        saved = kept * ((batch + 15) // 16) * height * width * lines * 64
    return (
        x.new_empty((batch, height, width, channels)).permute(0, 3, 1, 2),
        params.new_empty((convs, 2, channels)),
        params.new_empty(saved, dtype=torch.uint8),
    )


def _rounded(count: int, unit: int) -> int:
    return (count + unit - 1) // unit * unit


@_fake("mixed_op_backward")
def _mixed_op_backward(
    grad: Tensor, weights: Tensor, params: Tensor, statistics: Tensor, saved: Tensor,
    kinds: list[int], kernels: list[int], fields: list[int], needs_x: bool, threads: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    batch, channels, height, width = grad.shape
    grad_x = grad.new_empty((batch, height, width, channels)).permute(0, 3, 1, 2)
    return (
        grad_x if needs_x else grad.new_empty(0),
        weights.new_empty(weights.shape),
        params.new_empty(params.shape),
    )


def _save_for_mixed_op_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    _x, weights, params, *ctx.candidates, ctx.threads = inputs
    _, statistics, saved = output
    ctx.save_for_backward(weights, params, statistics, saved)
    ctx.mark_non_differentiable(statistics, saved)
    ctx.set_materialize_grads(False)


def _differentiate_mixed_op(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 7
    needs_x = bool(ctx.needs_input_grad[0])
    grad_x, grad_weights, grad_params = torch.ops.nasfast.mixed_op_backward.default(
        grad, *ctx.saved_tensors, *ctx.candidates, needs_x, ctx.threads
    )
    return grad_x if needs_x else None, grad_weights, grad_params, None, None, None, None


def _refuse_second_derivatives(ctx: Any, *_: Any) -> tuple[Any, ...]:
    raise RuntimeError(
        "mixed_op: second derivatives are not supported; nasfast.nn.MixedOp has them with "
        "backend='reference'"
    )


torch.library.register_autograd(
    "nasfast::mixed_op", _differentiate_mixed_op, setup_context=_save_for_mixed_op_backward
)
torch.library.register_autograd("nasfast::mixed_op_backward", _refuse_second_derivatives)


@_fake("relu_conv_bn")
def _relu_conv_bn(features: Tensor, weight: Tensor, stride: int, eps: float) -> Tensor:
    torch._check(
        features.dtype in (torch.float32, torch.bfloat16),
        lambda: f"relu_conv_bn: features: wanted float32 or bfloat16, got {features.dtype}",
    )
    _check_dtype("relu_conv_bn", "weight", weight, features.dtype)
    torch._check(
        features.dim() == 4 and weight.dim() == 4 and features.shape[1] == weight.shape[1],
        lambda: f"relu_conv_bn: weight: got {list(weight.shape)} for {list(features.shape)}",
    )
    kernel = weight.shape[3]
    torch._check(
        kernel % 2 == 1 and weight.shape[2] == kernel,
        lambda: f"relu_conv_bn: weight: wanted an odd square kernel, got {list(weight.shape)}",
    )
    torch._check(stride in (1, 2), lambda: f"relu_conv_bn: stride: wanted 1 or 2, got {stride}")
    torch._check(eps >= 0, lambda: f"relu_conv_bn: eps: wanted at least 0, got {eps}")
    batch, _, height, width = features.shape
    size = (batch, -(-height // stride), -(-width // stride), weight.shape[0])
    return features.new_empty(size).permute(0, 3, 1, 2)


def _check_dtype(op: str, name: str, tensor: Tensor, wanted: torch.dtype) -> None:
    torch._check(
        tensor.dtype == wanted, lambda: f"{op}: {name}: wanted dtype {wanted}, got {tensor.dtype}"
    )
