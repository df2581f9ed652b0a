# SPDX-License-Identifier: MIT
"""Parameters and FLOPs of stand-alone networks, as the benchmark counts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nasfast.layout import Layout, SupernetConfig, halved
from nasfast.spaces.spec import Architecture


@dataclass(frozen=True, eq=False)
class Cost:
    """Costs of architectures.

    Attributes:
        params: Trainable parameters, int64 ``[archs]``.
        flops: Multiply-accumulates of convolutions and classifier for one image (one
            multiply-accumulate is one FLOP here, as in the benchmark), int64 ``[archs]``.
    """

    params: npt.NDArray[np.int64]
    flops: npt.NDArray[np.int64]


def stand_alone_cost(
    config: SupernetConfig, archs: Sequence[Architecture], *, height: int, width: int
) -> Cost:
    """Count parameters and FLOPs of architectures trained on their own.

    Every edge counts, also one that carries nothing to the output; batch norm is affine and
    convolutions have no bias, as in the benchmark, whatever the flags of the config.

    Args:
        config: Gives space, channels, cells, classes and image channels.
        archs: Architectures.
        height: Height of an image.
        width: Width of an image.

    Source:
        Dong and Yang, NAS-Bench-201, ICLR 2020, section 2 (architectures) and their published
        FLOPs and parameter tables.
    """
    layout = Layout(
        replace(
            config, affine=True, fixed_affine=True, last_affine=True, track=False,
            weights_on="edge",
        )
    )  # fmt: skip
    spec = config.spec
    params_of_unit = np.zeros(len(layout.offsets), dtype=np.int64)
    macs_of_unit = np.zeros(len(layout.offsets), dtype=np.int64)  # at one output position
    for param in layout.params:
        if not param.is_buffer:
            params_of_unit[param.unit] += param.size
        if param.field == "weight":
            macs_of_unit[param.unit] += param.size
    op_params = np.zeros((spec.num_edges, spec.num_ops), dtype=np.int64)
    op_macs = np.zeros_like(op_params)
    params = macs = 0
    for position in layout.positions:
        halvings = position.halvings + (position.kind == "reduction")
        pixels = halved(height, halvings) * halved(width, halvings)
        units = slice(position.unit, position.unit + _units(position.kind, op_params.size))
        if position.kind == "cell":
            op_params += params_of_unit[units].reshape(op_params.shape)
            op_macs += macs_of_unit[units].reshape(op_params.shape) * pixels
            continue
        params += int(params_of_unit[units].sum())
        macs += int(macs_of_unit[units].sum()) * (1 if position.kind == "head" else pixels)
    macs += config.classes  # the benchmark counts the classifier's bias
    ops = spec.op_array(archs)
    edges = np.arange(spec.num_edges)
    return Cost(params + op_params[edges, ops].sum(axis=1), macs + op_macs[edges, ops].sum(axis=1))


def _units(kind: str, per_cell: int) -> int:
    return {"stem": 1, "cell": per_cell, "reduction": 3, "head": 2}[kind]
