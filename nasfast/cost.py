# SPDX-License-Identifier: MIT
"""Parameters and FLOPs of stand-alone networks, as the benchmark counts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nasfast.layout import Layout, SupernetConfig, halved
from nasfast.spaces.block_spec import BlockSpec
from nasfast.spaces.nb101_network import Nb101Network
from nasfast.spaces.spec import Architecture, CellSpec, OpKind


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

    The networks are the benchmark's, whatever the flags of the config: batch norm is affine and
    convolutions have no bias. NAS-Bench-201: every edge counts, also one that carries nothing to
    the output. NAS-Bench-1Shot1: the network of NAS-Bench-101 around the cell without its loose
    ends, with the config's channels after the stem and its cells as the modules of a stack; the
    blocks that lead to the output share its channels, so it is smaller than the subnet of a
    supernet.

    Args:
        config: Gives space, channels, cells, classes and image channels.
        archs: Architectures.
        height: Height of an image.
        width: Width of an image.

    Source:
        Dong and Yang, NAS-Bench-201, ICLR 2020, section 2 (architectures) and their published
        FLOPs and parameter tables. Ying et al., NAS-Bench-101, ICML 2019, and the benchmark's code.
    """
    if isinstance(config.spec, BlockSpec):
        return _of_blocks(config, config.spec, archs, height, width)
    if isinstance(config.spec, Nb101Network):
        return _of_network(config, len(archs), height, width)
    return _of_edges(config, config.spec, archs, height, width)


def _of_edges(
    config: SupernetConfig, spec: CellSpec, archs: Sequence[Architecture], height: int, width: int
) -> Cost:  # fmt: skip
    layout = Layout(
        replace(
            config, affine=True, fixed_affine=True, last_affine=True, track=False,
            weights_on="edge",
        )
    )  # fmt: skip
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


def _of_network(config: SupernetConfig, count: int, height: int, width: int) -> Cost:
    """Count a network of NAS-Bench-101, so often as it is asked for."""
    layout = Layout(replace(config, affine=True, fixed_affine=True))
    pixels_of_unit = np.ones(len(layout.offsets), dtype=np.int64)  # the classifier sees one
    for position in layout.positions:
        pixels = 1 if position.kind == "linear_head" else (
            layout.pixels(height, width, position.halvings)
        )  # fmt: skip
        pixels_of_unit[position.unit :] = pixels
    trained = [param for param in layout.params if not param.is_buffer]
    weights = [param for param in trained if param.field == "weight"]
    params = sum(param.size for param in trained)
    macs = sum(param.size * int(pixels_of_unit[param.unit]) for param in weights)
    return Cost(np.full(count, params), np.full(count, macs))


def _of_blocks(
    config: SupernetConfig, spec: BlockSpec, archs: Sequence[Architecture], height: int, width: int
) -> Cost:  # fmt: skip
    rows = spec.op_array(archs)
    ranks, topology = np.unique(spec.topology_ranks(rows), return_inverse=True)
    used = spec.topologies.used[ranks]
    edges = spec.topologies.edges[ranks].copy()
    edges[:, :, 1:-1] &= used[:, None]  # nothing leads into a loose end
    kernels = np.array([op.kernel if op.kind == OpKind.CONV else 0 for op in spec.ops])
    areas = (kernels**2)[rows[:, : spec.num_blocks]] * used[topology]  # of each block
    before, pixels = config.channels * spec.stage_widths[0], height * width
    stem = 9 * config.in_channels * before
    params = np.full(len(rows), stem + 2 * before, dtype=np.int64)
    macs = np.full(len(rows), stem * pixels, dtype=np.int64)
    for stage, multiple in enumerate(spec.stage_widths):
        pixels = halved(height, stage) * halved(width, stage)
        width_out = config.channels * multiple
        for _ in range(config.cells_per_stage):
            channels = _vertex_channels(edges, width_out)
            projected = (channels * edges[:, 0, 1:]).sum(axis=1)[topology]
            inner = channels[topology, :-1]
            weights = before * projected + (areas * inner**2).sum(axis=1)
            params += weights + 2 * (projected + ((areas > 0) * inner).sum(axis=1))
            macs += weights * pixels
            before = width_out
    classifier = before * config.classes
    return Cost(params + classifier + config.classes, macs + classifier)


def _vertex_channels(edges: npt.NDArray[np.bool_], out_channels: int) -> npt.NDArray[np.int64]:
    """Return channels of the nodes after the input, the output last, ``[topologies, nodes - 1]``.

    :meth:`nasfast.spaces.nb101.Nb101Cell.vertex_channels` is the rule, for pruned cells one by one;
    here what is on no path has none, and neither has a node for which no channel is left.

    Args:
        edges: Whether an edge leads from one node to another, bool ``[topologies, nodes, nodes]``.
        out_channels: Of the output.
    """
    nodes = edges.shape[1]
    channels = np.zeros((len(edges), nodes), dtype=np.int64)
    sharing = edges[:, :, -1].copy()
    sharing[:, 0] = False  # the input comes through a projection
    count = np.maximum(sharing.sum(axis=1), 1)
    place = np.cumsum(sharing, axis=1) - 1
    each = (out_channels // count)[:, None] + (place < (out_channels % count)[:, None])
    channels[sharing] = each[sharing]
    for node in reversed(range(1, nodes - 1)):
        widest = (channels * edges[:, node]).max(axis=1)
        channels[:, node] = np.where(sharing[:, node], channels[:, node], widest)
    channels[:, -1] = out_channels
    return channels[:, 1:]
