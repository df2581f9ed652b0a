# SPDX-License-Identifier: MIT
"""The mixed operation of one edge in plain PyTorch. It is the definition, as in reference.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nasfast.primitives import Unit, avg_pool, convolve, max_pool, mix, normalise_batch
from nasfast.spaces import OpKind, OpSpec

Normalise = Callable[[Tensor, Unit], Tensor]


def resting(weights: Tensor) -> Tensor:
    """Return which operations rest: those whose weight is 0 and needs no gradient.

    Args:
        weights: Mixing weights, any shape.

    Returns:
        bool, the shape of ``weights``.
    """
    if weights.requires_grad and torch.is_grad_enabled():
        return torch.zeros_like(weights, dtype=torch.bool)
    return weights == 0


def live_ops(ops: Sequence[OpSpec], weights: Tensor) -> list[int]:
    """Return which operations take part: those that do not rest, without zero.

    Args:
        ops: Candidate operations.
        weights: Mixing weights, ``[operations]``.
    """
    present = [k for k, op in enumerate(ops) if op.kind != OpKind.ZERO]
    if weights.requires_grad and torch.is_grad_enabled():  # whatever the numbers are
        return present
    rests = resting(weights).tolist()
    return [k for k in present if not rests[k]]


def candidate(
    x: Tensor, op: OpSpec, unit: Unit | None, normalise: Normalise = normalise_batch
) -> Tensor:
    """Return one candidate operation of ``x`` at stride 1; not for zero, which has no value.

    Args:
        x: ``[batch, channels, height, width]``.
        op: The operation.
        unit: Its tensors, of a convolution.
        normalise: Batch norm.
    """
    if op.kind == OpKind.CONV:
        assert unit is not None
        return normalise(convolve(F.relu(x), unit), unit)
    if op.kind == OpKind.AVG_POOL:
        return avg_pool(x, op.kernel)
    if op.kind == OpKind.MAX_POOL:
        return max_pool(x, op.kernel)
    assert op.kind == OpKind.IDENTITY
    return x


def mixed_op(
    x: Tensor,
    ops: Sequence[OpSpec],
    units: Sequence[Unit | None],
    weights: Tensor,
    normalise: Normalise = normalise_batch,
) -> Tensor:
    """Weighted sum of the candidate operations of one edge: the sum of ``weights[k] * op_k(x)``.

    Terms are added left to right in the order of the operations. Zero contributes nothing, also
    where ``x`` is not finite, and the gradient of its weight is exactly 0. An operation is skipped
    when its weight is 0 and needs no gradient; then its own tensors rest: their gradient is None
    and running statistics stay. With a weight of 0 that needs a gradient it is computed.

    Args:
        x: ``[batch, channels, height, width]``.
        ops: Candidate operations.
        units: Tensors of each operation; None where it has none.
        weights: Mixing weights, already normalised, ``[operations]``.
        normalise: Batch norm of the convolutions; with the statistics of the minibatch when left
            out.

    Returns:
        The shape of ``x``. Zeros that do not depend on ``x`` where nothing is left.

    Source:
        Liu et al., DARTS, ICLR 2019, equation 2; operations: Dong and Yang, NAS-Bench-201, ICLR
        2020, section 2.1.
    """
    live = live_ops(ops, weights)
    if not live:
        return torch.zeros_like(x) + weights[:0].sum()  # the weights get a gradient of 0
    return mix([candidate(x, ops[k], units[k], normalise) for k in live], weights[live])
