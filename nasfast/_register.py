# SPDX-License-Identifier: MIT
"""Loads the operators of ``csrc/ops`` and gives them fake kernels (shapes without numbers)."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

import nasfast._ops  # noqa: F401  (importing it registers the operators)

_Fake = TypeVar("_Fake", bound=Callable[..., object])


def _fake(name: str) -> Callable[[_Fake], _Fake]:
    """``torch.library.register_fake`` for an operator of ours; its own type is lost in torch."""
    register: Callable[[_Fake], _Fake] = torch.library.register_fake(f"nasfast::{name}")
    return register


@_fake("run_program")
def _run_program(
    table: Tensor, arenas: Tensor, images: Tensor, labels: Tensor, sizes: list[int],
    calibration: Tensor | None, calibration_sizes: list[int], chunk: int, lanes: int,
    precision: str, fixed: str, last: str, threads: int,
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
