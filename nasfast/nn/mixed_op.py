# SPDX-License-Identifier: MIT
"""The mixed operation as a module, for search code in the manner of DARTS."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from nasfast import spaces
from nasfast.nn.fused import fused_mixed_op, register, say_slow, why_not
from nasfast.primitives import Unit, mix, normalise, normalise_batch
from nasfast.reference_mixed import live_ops, mixed_op
from nasfast.spaces import CellSpec, OpKind, OpSpec

MixedOpBackend = Literal["auto", "cpu", "cuda", "reference"]

_SIMPLE = {"none": OpKind.ZERO, "skip_connect": OpKind.IDENTITY}
_SIZED = {
    "nor_conv": OpKind.CONV, "avg_pool": OpKind.AVG_POOL, "max_pool": OpKind.MAX_POOL,
}  # fmt: skip


class MixedOp(nn.Module):
    """Weighted sum of the candidate operations of one edge, from one read of the input.

    Takes the place of the ``MixedOp`` of DARTS-style code: ``forward(x, weights)``. It computes
    :func:`nasfast.reference_mixed.mixed_op`: operations as in NAS-Bench-201, convolutions as ReLU,
    convolution, batch norm, pools without batch norm after them. An operation whose weight is 0
    rests if the weights need no gradient: its parameters get no gradient and its statistics stay.

    Names, shapes and initial values of the parameters are those of xautodl 1.0.0, whose ``MixedOp``
    (and, as ``edges.<edge>`` for ``_ops``, ``NAS201SearchCell``) exchanges state dicts with this
    one: ``_ops.<k>.op.1.weight`` and ``.bias`` (convolution), ``_ops.<k>.op.2.*`` (batch norm), at
    stride 2 ``_ops.<k>.convs.<0 or 1>.*`` and ``_ops.<k>.bn.*`` of a skip connection. So does the
    convolution ``ReLUConvBN`` of DARTS itself with ``bias=False``. ``num_batches_tracked`` is there
    for the names' sake; it plays no part in any result and is not counted at stride 1.

    The fused operator takes tensors in float32 or bfloat16 on a CPU, or all on one CUDA device of
    compute capability 8.0 or later, at stride 1, where batch norm uses the minibatch (in training,
    or without running statistics). Parameters may be float32 beside an ``x`` in bfloat16. Under
    ``torch.autocast`` to bfloat16 it computes and returns that, also where plain PyTorch would
    widen the sum to float32 because some operation kept it. Its result is channels-last, a bias has
    a gradient of 0 (the definition leaves rounding), and its bits do not depend on the number of
    threads, which is PyTorch's; on a device they are the same each time, but not the CPU's. Second
    derivatives and the transforms of ``torch.func`` need backend ``"reference"``.
    ``torch.compile(fullgraph=True)`` takes it where the weights need a gradient; else which
    operations rest depends on numbers, and the graph breaks there.

    Args:
        channels: Channels of input and output.
        ops: Candidate operations: a space or its name, or their names in order: ``none``,
            ``skip_connect``, ``nor_conv_<k>x<k>``, ``avg_pool_<k>x<k>``, ``max_pool_<k>x<k>``.
        stride: 1, or 2 as on the edges of a reduction cell, which is never fused: plain PyTorch
            computes each operation, a skip connection being ReLU, two 1x1 convolutions of stride 2
            and batch norm, as xautodl's.
        affine: Whether batch norm has a trainable scale and shift.
        track_running_stats: Whether batch norm keeps running statistics, which then serve in
            evaluation; otherwise those of the minibatch always do.
        bias: Whether convolutions have a bias; when left out, where batch norm has no shift.
        backend: ``"reference"``: plain PyTorch, the definition; ``"cpu"`` or ``"cuda"``: the fused
            operator, on that device; ``"auto"``: that where it takes the call, otherwise the
            reference, with a line in the log, once for each reason.

    Raises:
        ValueError: If an argument does not fit.

    Source:
        Liu et al., DARTS, ICLR 2019, equation 2.
    """

    def __init__(
        self, channels: int, ops: str | CellSpec | Sequence[str | OpSpec] = "nb201", *,
        stride: int = 1, affine: bool = False, track_running_stats: bool = False,
        bias: bool | None = None, backend: MixedOpBackend = "auto",
    ) -> None:  # fmt: skip
        super().__init__()
        register()
        if channels < 1:
            raise ValueError(f"channels: wanted at least 1, got {channels}")
        if stride not in (1, 2):
            raise ValueError(f"stride: wanted 1 or 2, got {stride}")
        if backend not in get_args(MixedOpBackend):
            wanted = ", ".join(get_args(MixedOpBackend))
            raise ValueError(f"backend: wanted {wanted}, got {backend!r}")
        self.channels, self.stride, self.backend = channels, stride, backend
        self.ops, self.track_running_stats = op_specs(ops), track_running_stats
        flags = (affine, track_running_stats, not affine if bias is None else bias)
        self._ops = nn.ModuleList(_module(op, channels, stride, *flags) for op in self.ops)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a copy, or of one that another process pickled."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        register()

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum of the operations of ``x``.

        Args:
            x: ``[batch, channels, height, width]``.
            weights: Mixing weights, already normalised, ``[operations]``.

        Returns:
            ``[batch, channels, ceil(height / stride), ceil(width / stride)]``.

        Raises:
            ValueError: If a shape differs from this, running statistics would be updated from one
                element a channel, or backend ``"cpu"`` or ``"cuda"`` does not take the call.
            ImportError: If the fused operator is wanted and not built.
        """
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ValueError(
                f"x: wanted [batch, {self.channels}, height, width], got {list(x.shape)}"
            )
        if tuple(weights.shape) != (len(self.ops),):
            raise ValueError(f"weights: wanted [{len(self.ops)}], got {list(weights.shape)}")
        live = live_ops(self.ops, weights)
        if not live:
            return torch.zeros_like(x[:, :, :: self.stride, :: self.stride]) + weights[:0].sum()
        units = [m.unit if isinstance(m, _ReluConvBn) else None for m in self._ops]
        if x.numel() > 0 and self._fuses(x, units, weights):
            update = self.track_running_stats
            return fused_mixed_op(x, self.ops, units, weights, live, update=update)
        if self.stride == 2:
            return mix([self._ops[k](x) for k in live], weights[live])
        return mixed_op(x, self.ops, units, weights, self._normalise)

    def _fuses(self, x: Tensor, units: Sequence[Unit | None], weights: Tensor) -> bool:
        """Return whether the fused operator takes the call."""
        if self.backend == "reference":
            return False
        why = f"stride {self.stride}" if self.stride > 1 else why_not(x, self.ops, units, weights)
        if not why and self.track_running_stats and not self.training:
            why = "evaluation with running statistics"
        if self.backend not in ("auto", x.device.type):
            why = f"x on device {x.device}"
        if why and self.backend != "auto":
            raise ValueError(
                f"backend: {self.backend!r} has no kernel for this call ({why}); use 'auto'"
            )
        if why:
            say_slow(why)
        return not why

    def _normalise(self, x: Tensor, unit: Unit) -> Tensor:
        """Apply batch norm as ``nn.BatchNorm2d`` does in training or evaluation."""
        if self.training or not self.track_running_stats:
            return normalise_batch(x, unit, update=self.track_running_stats)
        assert unit.mean is not None and unit.variance is not None
        return normalise(x, unit.mean, unit.variance, unit)

    def extra_repr(self) -> str:
        """Return the settings."""
        names = ", ".join(op.name for op in self.ops)
        return f"channels={self.channels}, ops=({names}), stride={self.stride}"


def op_specs(ops: str | CellSpec | Sequence[str | OpSpec]) -> tuple[OpSpec, ...]:
    """Return candidate operations from a space, its name, or their names.

    Raises:
        ValueError: If there are none, or one is unknown.
    """
    if isinstance(ops, str):
        ops = spaces.get(ops, CellSpec)
    specs = tuple(op if isinstance(op, OpSpec) else _op_spec(op)
                  for op in (ops.ops if isinstance(ops, CellSpec) else ops))  # fmt: skip
    if not specs:
        raise ValueError("ops: wanted at least one operation, got none")
    return specs


def _op_spec(name: str) -> OpSpec:
    if name in _SIMPLE:
        return OpSpec(name, _SIMPLE[name])
    found = re.fullmatch(r"(\w+)_(\d+)x(\d+)", name)
    if found is None or found[1] not in _SIZED or found[2] != found[3] or int(found[2]) % 2 == 0:
        sized = ", ".join(f"{kind}_<k>x<k>" for kind in _SIZED)
        raise ValueError(f"ops: wanted {', '.join(_SIMPLE)}, {sized} with odd k, got {name!r}")
    return OpSpec(name, _SIZED[found[1]], int(found[2]))


# What holds the parameters, and computes an operation at stride 2.


def _module(
    op: OpSpec, channels: int, stride: int, affine: bool, track: bool, bias: bool
) -> nn.Module:  # fmt: skip
    padding = op.kernel // 2
    if op.kind == OpKind.CONV:
        return _ReluConvBn(channels, op.kernel, stride, affine, track, bias)
    if op.kind == OpKind.AVG_POOL:
        return nn.AvgPool2d(op.kernel, stride, padding, count_include_pad=False)
    if op.kind == OpKind.MAX_POOL:
        return nn.MaxPool2d(op.kernel, stride, padding)
    if op.kind == OpKind.IDENTITY and stride == 2:
        return _FactorizedReduce(channels, affine, track, bias)
    return nn.Identity()  # and zero, which has neither parameters nor a value


class _ReluConvBn(nn.Module):
    def __init__(
        self, channels: int, kernel: int, stride: int, affine: bool, track: bool, bias: bool
    ) -> None:  # fmt: skip
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel, stride, kernel // 2, bias=bias),
            nn.BatchNorm2d(channels, affine=affine, track_running_stats=track),
        )

    @property
    def unit(self) -> Unit:
        conv, norm = self.op[1], self.op[2]
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        return Unit(
            conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var
        )

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.op(x)
        return value


class _FactorizedReduce(nn.Module):
    """Halves the image: one half of the channels from even pixels, the other from odd ones."""

    def __init__(self, channels: int, affine: bool, track: bool, bias: bool) -> None:
        super().__init__()
        halves = (channels // 2, channels - channels // 2)
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, half, 1, stride=2, bias=bias) for half in halves
        )
        self.bn = nn.BatchNorm2d(channels, affine=affine, track_running_stats=track)

    def forward(self, x: Tensor) -> Tensor:
        even = torch.relu(x)
        odd = nn.functional.pad(even, (0, 1, 0, 1))[:, :, 1:, 1:]
        value: Tensor = self.bn(torch.cat([self.convs[0](even), self.convs[1](odd)], dim=1))
        return value
