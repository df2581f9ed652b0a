# SPDX-License-Identifier: MIT
"""Networks around the cells, and the units within: one walk for each kind of space.

Each walk adds the units of a network to a builder, in the order of the network, and yields its
positions. The names of tensors are those of the published supernets.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nasfast.spaces.block_spec import BlockSpec
from nasfast.spaces.nb101_network import Nb101Network
from nasfast.spaces.spec import CellSpec, OpKind
from nasfast.units import Builder, Position, UnitShape

if TYPE_CHECKING:
    from nasfast.layout import SupernetConfig


def walk(config: SupernetConfig, builder: Builder) -> Iterator[Position]:
    """Add the units of a network; yield its positions in order."""
    if isinstance(config.spec, BlockSpec):
        return _Blocks(config, config.spec, builder).walk()
    if isinstance(config.spec, Nb101Network):
        return _Vertices(config, config.spec, builder).walk()
    return _Edges(config, config.spec, builder).walk()


def padding_of(config: SupernetConfig) -> int:
    """Return what is padded before an image is halved: a side ``n`` becomes ``n // 2 + 1`` by 1."""
    return 1 if isinstance(config.spec, BlockSpec) else 0


def units_per_cell(config: SupernetConfig) -> int:
    """Return the units of a search cell: candidate operations of its owners, projections."""
    spec = config.spec
    if isinstance(spec, BlockSpec):
        return spec.num_blocks * spec.num_ops + spec.num_blocks + 1
    if isinstance(spec, Nb101Network):
        return 2 * len(spec.inner_ops) + 1
    owners = spec.num_edges if config.weights_on == "edge" else spec.num_nodes - 1
    return owners * spec.num_ops


class _Edges:
    """NAS-Bench-201: stem, stages of cells with residual reductions between them, head.

    Source: Dong and Yang, NAS-Bench-201, ICLR 2020, section 2.1.
    """

    def __init__(self, config: SupernetConfig, spec: CellSpec, builder: Builder) -> None:
        self.config, self.spec, self.builder = config, spec, builder

    def walk(self) -> Iterator[Position]:
        c, b = self.config, self.builder
        widths = [c.channels * multiple for multiple in self.spec.stage_widths]
        first = self._conv("stem.0", "stem.1", c.in_channels, widths[0])
        yield Position("stem", c.in_channels, widths[0], 0, first)
        layer = cell = 0
        for stage, width in enumerate(widths):
            if stage:
                yield self._reduction(layer, widths[stage - 1], width, stage - 1)
                layer += 1
            for _ in range(c.cells_per_stage):
                yield Position("cell", width, width, stage, self._cell(layer, width), layer, cell)
                layer, cell = layer + 1, cell + 1
        head = b.unit()
        b.batch_norm(head, "lastact.0", widths[-1], affine=c.last_affine, track=c.last_track)
        b.classifier(widths[-1], c.classes)
        yield Position("head", widths[-1], c.classes, len(widths) - 1, head)

    def _conv(self, conv: str, norm: str, cin: int, cout: int) -> int:
        c = self.config
        shape = UnitShape(3, cin, cout)
        return self.builder.conv(conv, norm, shape, affine=c.fixed_affine, track=c.fixed_track)

    def _reduction(self, layer: int, width_in: int, width: int, halvings: int) -> Position:
        name = f"cells.{layer}"
        first = self._conv(f"{name}.conv_a.op.1", f"{name}.conv_a.op.2", width_in, width)
        self._conv(f"{name}.conv_b.op.1", f"{name}.conv_b.op.2", width, width)
        self.builder.conv(f"{name}.downsample.1", None, UnitShape(1, width_in, width))
        return Position("reduction", width_in, width, halvings, first, layer)

    def _cell(self, layer: int, width: int) -> int:
        c, spec, b = self.config, self.spec, self.builder
        first = len(b.rows)
        if c.weights_on == "edge":
            owners = [f"edges.{target}<-{source}" for source, target in spec.edges]
        else:
            owners = [f"nodes.{node}" for node in range(1, spec.num_nodes)]
        for owner in owners:
            for k, op in enumerate(spec.ops):
                if op.kind != OpKind.CONV:
                    b.unit()  # keeps unit = first + owner * num_ops + operation
                    continue
                name = f"cells.{layer}.{owner}.{k}.op"
                b.conv(
                    f"{name}.1", f"{name}.2", UnitShape(op.kernel, width, width), affine=c.affine,
                    track=c.track, bias=not c.affine,
                )  # fmt: skip
        return first


class _Blocks:
    """NAS-Bench-1Shot1: stem with ReLU, cells of choice blocks, max-pooling, projected head.

    Units of a cell: the operations of each block, then the projections of the cell's input to each
    block, then the one to its output.

    Source: Zela et al., NAS-Bench-1Shot1, ICLR 2020, section 3, and the published code.
    """

    def __init__(self, config: SupernetConfig, spec: BlockSpec, builder: Builder) -> None:
        self.config, self.spec, self.builder = config, spec, builder

    def walk(self) -> Iterator[Position]:
        c, b, blocks = self.config, self.builder, self.spec.num_blocks
        widths = [c.channels * multiple for multiple in self.spec.stage_widths]
        stem = UnitShape(3, c.in_channels, widths[0], self.spec.momentum)
        first = b.conv(
            "stem.op.0", "stem.op.1", stem, affine=c.fixed_affine, track=c.fixed_track
        )  # fmt: skip
        yield Position("relu_stem", c.in_channels, widths[0], 0, first)
        channels, cell = widths[0], 0
        for stage, width in enumerate(widths):
            if stage:
                yield Position("max_pool", channels, channels, stage - 1, len(b.rows))
            for _ in range(c.cells_per_stage):
                first = self._cell(cell, channels, width)
                yield Position("cell", channels, width * blocks, stage, first, cell, cell)
                channels, cell = width * blocks, cell + 1
        project = UnitShape(1, channels, widths[-1], self.spec.last_momentum)
        head = b.conv(
            "postprocess.op.1", "postprocess.op.2", project, affine=c.last_affine,
            track=c.last_track,
        )  # fmt: skip
        b.classifier(widths[-1], c.classes)
        yield Position("projected_head", channels, c.classes, len(widths) - 1, head)

    def _cell(self, cell: int, channels: int, width: int) -> int:
        b, spec = self.builder, self.spec
        first, name = len(b.rows), f"cells.{cell}"
        for block in range(spec.num_blocks):
            for k, op in enumerate(spec.ops):
                if op.kind != OpKind.CONV:
                    b.unit()  # keeps unit = first + block * num_ops + operation
                    continue
                of_op = f"{name}._choice_blocks.{block}.mixed_op._ops.{k}.op.op"
                self._conv(of_op, op.kernel, width, width)
        for k in range(spec.num_blocks + 1):
            out = width if k < spec.num_blocks else width * spec.num_blocks
            self._conv(f"{name}._input_projections.{k}.op", 1, channels, out)
        return first

    def _conv(self, name: str, kernel: int, cin: int, cout: int) -> None:
        c = self.config
        shape = UnitShape(kernel, cin, cout, self.spec.momentum)
        self.builder.conv(f"{name}.0", f"{name}.1", shape, affine=c.affine, track=c.track)


class _Vertices:
    """A stand-alone network of NAS-Bench-101: stem with ReLU, cells, max-pooling, linear head.

    Units of a cell: the operation of each inner vertex, then the projections of the cell's input to
    each of them and to its output; those that are not there have only their channels.

    Source: Ying et al., NAS-Bench-101, ICML 2019, section 2.
    """

    def __init__(self, config: SupernetConfig, spec: Nb101Network, builder: Builder) -> None:
        self.config, self.spec, self.builder = config, spec, builder

    def walk(self) -> Iterator[Position]:
        c, b = self.config, self.builder
        widths = [c.channels * multiple for multiple in self.spec.stage_widths]
        stem = UnitShape(3, c.in_channels, widths[0], self.spec.momentum)
        first = b.conv(
            "layers.0.conv_bn_relu.0", "layers.0.conv_bn_relu.1", stem, affine=c.fixed_affine,
            track=c.fixed_track,
        )  # fmt: skip
        yield Position("relu_stem", c.in_channels, widths[0], 0, first)
        channels, layer, cell = widths[0], 1, 0
        for stage, width in enumerate(widths):
            if stage:
                yield Position("max_pool", channels, channels, stage - 1, len(b.rows))
                layer += 1  # the published code counts it
            for _ in range(c.cells_per_stage):
                first = self._cell(layer, channels, width)
                yield Position("cell", channels, width, stage, first, cell, cell)
                channels, layer, cell = width, layer + 1, cell + 1
        head = b.classifier(channels, c.classes)
        yield Position("linear_head", channels, c.classes, len(widths) - 1, head)

    def _cell(self, layer: int, channels: int, width: int) -> int:
        b, spec = self.builder, self.spec
        first, name = len(b.rows), f"layers.{layer}"
        of_vertex = spec.cell.vertex_channels(channels, width)
        for v, op in enumerate(spec.inner_ops, start=1):
            own = of_vertex[v]
            if op.kind == OpKind.CONV:
                kind = op.name.removesuffix("-bn-relu")
                self._conv(f"{name}.vertex_op.{v}.{kind}.conv_bn_relu", op.kernel, own, own)
            else:
                b.unit(UnitShape(0, own, own))
        for v in range(1, len(of_vertex)):
            if spec.cell.matrix[0][v]:
                self._conv(f"{name}.input_op.{v}.conv_bn_relu", 1, channels, of_vertex[v])
            else:
                b.unit()
        return first

    def _conv(self, name: str, kernel: int, cin: int, cout: int) -> None:
        c = self.config
        shape = UnitShape(kernel, cin, cout, self.spec.momentum)
        self.builder.conv(f"{name}.0", f"{name}.1", shape, affine=c.affine, track=c.track)
