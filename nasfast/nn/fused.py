# SPDX-License-Identifier: MIT
"""The fused mixed operation: which calls it takes, and what goes in and comes out."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from nasfast import cuda_device, native, slow_paths
from nasfast.primitives import Unit
from nasfast.spaces import OpKind, OpSpec
from nasfast.units import MOMENTUM

_DEVICES = ("cpu", "cuda")
_DTYPES = (torch.float32, torch.bfloat16)
_MAX_KERNEL = 31
_why_no_kernels = ""  # of CUDA in this build; a plain text, as torch.compile reads it


def register() -> None:
    """Register the operator for torch.compile to find; where it is not built, a call says so."""
    global _why_no_kernels
    with suppress(ImportError):
        native.ops()
        _why_no_kernels = "" if cuda_device.has_kernels() else cuda_device.NO_KERNELS


def why_not(
    x: Tensor, ops: Sequence[OpSpec], units: Sequence[Unit | None], weights: Tensor
) -> str:  # fmt: skip
    """Return why the fused operator does not take these arguments; empty where it does.

    Args:
        x: ``[batch, channels, height, width]``.
        ops: Candidate operations.
        units: Tensors of each operation; None where it has none.
        weights: Mixing weights, ``[operations]``.
    """
    device = x.device.type
    if device not in _DEVICES:
        return f"x on device {x.device}"
    params = [p for unit in units if unit is not None for p in _params(unit)]
    for name, tensors in (("x", [x]), ("weights", [weights]), ("parameters", params)):
        for tensor in tensors:
            if tensor.device != x.device:
                return f"{name} on device {tensor.device}, x on {x.device}"
            if tensor.dtype not in _DTYPES and name != "weights":
                return f"{name} in {tensor.dtype}"
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) != torch.bfloat16:
        return f"autocast to {torch.get_autocast_dtype(device)}"
    if max(op.kernel for op in ops) > _MAX_KERNEL:
        return f"kernels wider than {_MAX_KERNEL}"
    return _why_no_card(x, ops) if device == "cuda" else ""


def _why_no_card(x: Tensor, ops: Sequence[OpSpec]) -> str:
    # Who compiles the call cannot ask more: the operator itself then refuses.
    if _why_no_kernels or torch.compiler.is_compiling():
        return _why_no_kernels
    _, channels, height, width = x.shape
    is_bfloat16 = x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cuda")
    kinds, kernels = tuple(int(op.kind) for op in ops), tuple(op.kernel for op in ops)
    with torch.cuda.device(x.device):
        return _refusal(x.device.index, channels, height, width, is_bfloat16, kinds, kernels)


@functools.cache
def _refusal(
    card: int, channels: int, height: int, width: int, is_bfloat16: bool, kinds: tuple[int, ...],
    kernels: tuple[int, ...],
) -> str:  # fmt: skip
    """Return why a card, the current one, does not take a mixed operation; empty where it does."""
    return cuda_device.why_not() or native.ops().mixed_op_refusal(
        channels, height, width, is_bfloat16, kinds=list(kinds), kernels=list(kernels)
    )


def fused_mixed_op(
    x: Tensor, ops: Sequence[OpSpec], units: Sequence[Unit | None], weights: Tensor,
    live: Sequence[int], *, update: bool,
) -> Tensor:  # fmt: skip
    """Compute the mixed operation by ``torch.ops.nasfast.mixed_op``.

    Args:
        x: ``[batch, channels, height, width]``, on a CPU or a CUDA device; float32 becomes bfloat16
            where autocast would make it so for a convolution.
        ops: Candidate operations.
        units: Tensors of each operation; None where it has none.
        weights: Mixing weights, ``[operations]``.
        live: Operations that do not rest, without zero; at least one.
        update: Whether to update running statistics.

    Raises:
        ValueError: If running statistics would be updated from one element a channel.
        ImportError: If the operator is not built.
    """
    if not torch.compiler.is_compiling():
        native.ops()
        if x.device.type == "cpu":
            slow_paths.warn_of_slow_paths()
    if len(live) < sum(op.kind != OpKind.ZERO for op in ops):
        weights, ops, units = weights[live], [ops[k] for k in live], [units[k] for k in live]
    convs = [unit for unit in units if unit is not None]
    count = x.shape[0] * x.shape[2] * x.shape[3]
    if update and convs and count == 1:
        raise ValueError(
            "batch norm: running statistics need more than one element a channel, "
            f"got {list(x.shape)}"
        )
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.bfloat16)
    parts = [p.flatten() for unit in convs for p in _params(unit)]
    flat = torch.cat(parts) if parts else x.new_empty(0)
    out, statistics, _ = torch.ops.nasfast.mixed_op.default(
        x, weights.to(torch.float32).contiguous(), flat.to(torch.float32),
        [int(op.kind) for op in ops], [op.kernel for op in ops], [_fields(unit) for unit in units],
        0,
    )  # fmt: skip
    if update:
        with torch.no_grad():
            for unit, (mean, variance) in zip(convs, statistics.unbind(), strict=True):
                _update(unit, mean, variance * (count / (count - 1)))
    return out


def say_slow(why: str) -> None:
    """Log once that a mixed operation is run by plain PyTorch; never while compiling."""
    if not torch.compiler.is_compiling():
        slow_paths.warn_of_reference("nn.MixedOp", why)


def _params(unit: Unit) -> list[Tensor]:
    """Return the parameters in the order of the operator."""
    return [p for p in (unit.weight, unit.bias, unit.gamma, unit.beta) if p is not None]


def _fields(unit: Unit | None) -> int:
    if unit is None:
        return 0
    return (unit.bias is not None) + 2 * (unit.gamma is not None)


def _update(unit: Unit, mean: Tensor, variance: Tensor) -> None:
    """Move running statistics as ``nn.BatchNorm2d`` does."""
    assert unit.mean is not None and unit.variance is not None
    if unit.bias is not None:  # which the operator leaves out
        mean = mean + unit.bias
    unit.mean.lerp_(mean.to(unit.mean.dtype), MOMENTUM)
    unit.variance.lerp_(variance.to(unit.variance.dtype), MOMENTUM)
