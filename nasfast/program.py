# SPDX-License-Identifier: MIT
"""A program: distinct cell templates x macro skeleton x lanes, as plain integer arrays.

A **lane** is the unit of batched work: one network under one weight set with one order of the
data. Many requested architectures may be one lane, because lowering found them to be the same
function. The network of a lane is not unrolled: it names one template for each search cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, pairwise

import numpy as np

from nasfast.distinct import distinct_rows
from nasfast.layout import Layout
from nasfast.lower import Expressions, Lowering, Merge, Mode, Opcode
from nasfast.lower_blocks import BlockLowering
from nasfast.lower_nb101 import Nb101Lowering
from nasfast.spaces.block_spec import BlockSpec
from nasfast.spaces.nb101_network import Nb101Network
from nasfast.spaces.spec import Architecture, BoolArray, CellSpec, IntArray
from nasfast.units import KINDS

AnyLowering = Lowering | BlockLowering | Nb101Lowering
# One architecture for all cells, or a sequence with one for each search cell.
Network = Architecture | Sequence[Architecture]


@dataclass(frozen=True, eq=False)
class Program:
    """What is to be computed, after merging.

    Attributes:
        layout: Skeleton and weights.
        mode: Batch-norm mode of the cells.
        merge: Level of merging.
        opcode: Operation of each cell expression, int32 ``[expressions]``; see
            :class:`nasfast.lower.Opcode`. Expression 0 is the cell's input, operands come before
            the expressions that use them.
        param: Parameter of each expression as in :class:`nasfast.lower.Expressions`, int32
            ``[expressions]``.
        operand_begin: Start of each expression's operands, int32 ``[expressions + 1]``.
        operands: Expressions, int32.
        template_begin: Start of each template's steps, int32 ``[templates + 1]``.
        steps: Expressions in the order of execution, the root last; the input is no step, except
            where it is the root itself, int32.
        networks: Template of each search cell, int32 ``[networks, cells]``.
        lanes: Columns network, weight set, data order, int32 ``[lanes, 3]``.
        lane_of_request: The lane that computes each requested item, int32 ``[requests]``.
    """

    layout: Layout
    mode: Mode
    merge: Merge
    opcode: IntArray
    param: IntArray
    operand_begin: IntArray
    operands: IntArray
    template_begin: IntArray
    steps: IntArray
    networks: IntArray
    lanes: IntArray
    lane_of_request: IntArray

    @property
    def num_lanes(self) -> int:
        """Lanes to run."""
        return len(self.lanes)

    @property
    def num_templates(self) -> int:
        """Distinct cell templates."""
        return len(self.template_begin) - 1

    def template(self, index: int) -> list[int]:
        """Return the steps of a template as expression ids."""
        return self._steps[index]

    def operands_of(self, expression: int) -> tuple[int, ...]:
        """Return the operands of an expression."""
        return self._operands[expression]

    @cached_property
    def is_conv(self) -> list[bool]:
        """Whether each expression is a convolution, ``[expressions]``."""
        return [bool(flag) for flag in np.isin(self.opcode, (Opcode.CONV, Opcode.CONV_RELU))]

    @cached_property
    def is_joint(self) -> bool:
        """Whether it mixes candidate operations, so that a run needs mixing weights."""
        return self.mixing_width > 0

    @cached_property
    def mixing_width(self) -> int:
        """Mixing weights that a cell reads, up to the last: at most ``num_edges * num_ops``."""
        ends = self.param + np.diff(self.operand_begin)
        return int(ends[self.opcode == Opcode.MIX].max(initial=0))

    @cached_property
    def _steps(self) -> list[list[int]]:
        begin, steps = self.template_begin.tolist(), self.steps.tolist()
        return [steps[a:b] for a, b in pairwise(begin)]

    @cached_property
    def _operands(self) -> list[tuple[int, ...]]:
        begin, operands = self.operand_begin.tolist(), self.operands.tolist()
        return [tuple(operands[a:b]) for a, b in pairwise(begin)]


def alone(program: Program, lanes: IntArray) -> Program:
    """Return a program of some lanes, with their networks and templates and no others.

    Args:
        program: Holds the networks.
        lanes: Lanes, their columns as in :attr:`Program.lanes`; weight sets and data orders may be
            others, int32 ``[lanes, 3]``. Each is requested once.
    """
    networks, network_of = np.unique(lanes[:, 0], return_inverse=True)
    templates, template_of = np.unique(program.networks[networks], return_inverse=True)
    steps = [program.template(t) for t in templates.tolist()]
    own = lanes.copy()
    own[:, 0] = network_of.reshape(-1)
    return replace(
        program,
        template_begin=begins([len(s) for s in steps]),
        steps=np.array([e for s in steps for e in s], dtype=np.int32),
        networks=template_of.reshape(len(networks), -1).astype(np.int32),
        lanes=own,
        lane_of_request=np.arange(len(lanes), dtype=np.int32),
    )


def request_array(layout: Layout, archs: Sequence[Network]) -> IntArray:
    """Stack requested networks as operation indices.

    Args:
        layout: Gives the space and the number of search cells.
        archs: Architectures, or for each network a sequence of one architecture a cell.

    Returns:
        int32 ``[networks, 1, num_edges]`` when every network uses one architecture, otherwise
        ``[networks, cells, num_edges]``.

    Raises:
        ValueError: If there are no networks, one is no architecture or has the wrong number of
            cells, or an architecture is of another space.
    """
    spec, cells = layout.config.spec, layout.num_cells
    if not isinstance(archs, Sequence) or isinstance(archs, str):
        raise ValueError(f"archs: wanted a sequence of architectures, got {type(archs).__name__}")
    if len(archs) == 0:
        raise ValueError("archs: wanted at least one architecture, got none")
    if all(isinstance(arch, Architecture) for arch in archs):
        return spec.op_array([a for a in archs if isinstance(a, Architecture)])[:, None, :]
    rows = []
    for position, network in enumerate(archs):
        if not isinstance(network, Sequence | Architecture) or isinstance(network, str):
            raise ValueError(
                f"archs[{position}]: wanted an Architecture (spaces have from_string and "
                f"from_index), or one for each cell, got {network!r}"
            )
        per_cell = [network] * cells if isinstance(network, Architecture) else list(network)
        if len(per_cell) != cells:
            raise ValueError(
                f"archs[{position}]: wanted one architecture for each of {cells} cells, "
                f"got {len(per_cell)}"
            )
        rows.append(spec.op_array(per_cell))
    return np.stack(rows)


def build(
    layout: Layout,
    requests: IntArray,
    *,
    mode: Mode,
    merge: Merge = Merge.LINEAR,
    weight_set: IntArray | int = 0,
    data_order: IntArray | int = 0,
) -> Program:
    """Lower requested networks into a program.

    Args:
        layout: Skeleton and weights.
        requests: Operation indices as from :func:`request_array`.
        mode: Batch-norm mode of the cells.
        merge: Level of merging.
        weight_set: Weight set of each request, int32 ``[requests]``, or one for all.
        data_order: Data order of each request, int32 ``[requests]``, or one for all.
    """
    lowering = _lowering(layout, mode, merge)
    count, per_network, edges = requests.shape
    cells, cell_of = distinct_rows(requests.reshape(-1, edges))
    roots = lowering.cells(cells)
    used, template_of_cell = np.unique(roots, return_inverse=True)
    templates = template_of_cell[cell_of].astype(np.int32).reshape(count, per_network)
    networks, network_of = distinct_rows(templates)
    if per_network == 1:
        networks = np.repeat(networks, layout.num_cells, axis=1)
    keys = np.empty((count, 3), dtype=np.int32)
    keys[:, 0], keys[:, 1], keys[:, 2] = network_of.reshape(-1), weight_set, data_order
    lanes, lane_of = np.unique(keys, axis=0, return_inverse=True)
    return Program(
        layout=layout,
        mode=mode,
        merge=merge,
        networks=networks.astype(np.int32),
        lanes=lanes,
        lane_of_request=lane_of.reshape(-1).astype(np.int32),
        **_flatten(lowering, used.tolist()),
    )


def _lowering(layout: Layout, mode: Mode, merge: Merge) -> AnyLowering:
    spec = layout.config.spec
    if isinstance(spec, Nb101Network):
        cells = [p for p in layout.positions if p.kind == "cell"]
        channels = [spec.cell.vertex_channels(p.in_channels, p.out_channels) for p in cells]
        return Nb101Lowering(spec, mode, merge, channels)
    if isinstance(spec, BlockSpec):
        return BlockLowering(spec, mode, merge)
    assert isinstance(spec, CellSpec)
    return Lowering(spec, mode, merge, layout.owner_of_edge)


def build_training(
    layout: Layout,
    archs: Sequence[Network],
    *,
    weight_set: IntArray | int = 0,
    data_order: IntArray | int = 0,
) -> Program:
    """Lower networks that are trained: batch statistics everywhere, merged as far as that allows.

    Args:
        layout: Skeleton and weights.
        archs: Networks, as in :func:`request_array`.
        weight_set: As in :func:`build`.
        data_order: As in :func:`build`.

    Raises:
        ValueError: As :func:`request_array`.
    """
    config = layout.config
    # Two edges may share weights that count how often they are used: each use stays one then.
    shares = config.weights_on == "node" and config.track
    return build(
        layout, request_array(layout, archs), mode=Mode("batch", config.affine),
        merge=Merge.DEAD if shares else Merge.LINEAR, weight_set=weight_set, data_order=data_order,
    )  # fmt: skip


def mixed_space(layout: Layout) -> CellSpec:
    """Return the space of a supernet whose candidate operations can be mixed.

    Raises:
        ValueError: If its operations are not on edges.
    """
    spec = layout.config.spec
    if not isinstance(spec, CellSpec):
        raise ValueError(
            f"supernet: wanted a space of operations on edges, which can be mixed, got {spec.name}"
        )
    return spec


def joint_mask(layout: Layout, mask: BoolArray | None = None) -> BoolArray:
    """Return which operations each edge of each search cell may carry.

    Args:
        layout: Gives the space and the number of search cells.
        mask: bool ``[num_edges, num_ops]`` or ``[cells, num_edges, num_ops]``; all when left out.

    Returns:
        bool ``[cells, num_edges, num_ops]``.

    Raises:
        ValueError: If the mask is not of such a shape.
    """
    spec = mixed_space(layout)
    shape = (layout.num_cells, spec.num_edges, spec.num_ops)
    allowed = np.ones(shape, dtype=np.bool_) if mask is None else np.asarray(mask)
    if allowed.dtype != np.bool_ or allowed.shape not in (shape, shape[1:]):
        raise ValueError(
            f"mask: wanted bool {list(shape[1:])} or {list(shape)}, "
            f"got {allowed.dtype} {list(allowed.shape)}"
        )
    return np.broadcast_to(allowed, shape)


def build_joint(layout: Layout, *, mode: Mode, mask: BoolArray | None = None) -> Program:
    """Lower the joint supernet, in which every edge mixes all its candidate operations.

    A run needs mixing weights, ``[cells, num_edges * num_ops]``: in each search cell, edge ``e``
    is the sum over ``k`` of weight ``e * num_ops + k`` times operation ``k``, in that order.

    Args:
        layout: Skeleton and weights.
        mode: Batch-norm mode of the cells.
        mask: Which operations each edge may carry, as in :func:`joint_mask`. The others contribute
            nothing and are not computed, as if ``none`` stood there, and neither is what only they
            feed.

    Returns:
        One lane.

    Raises:
        ValueError: If the mask is not of this shape.
    """
    allowed = joint_mask(layout, mask)
    lowering = _lowering(layout, mode, Merge.VALUE)
    assert isinstance(lowering, Lowering)
    roots = [lowering.joint_cell(cell) for cell in allowed.tolist()]
    used, template_of_cell = np.unique(roots, return_inverse=True)
    return Program(
        layout=layout,
        mode=mode,
        merge=lowering.merge,
        networks=template_of_cell.astype(np.int32)[None],
        lanes=np.zeros((1, 3), dtype=np.int32),
        lane_of_request=np.zeros(1, dtype=np.int32),
        **_flatten(lowering, used.tolist()),
    )


def trained_units(program: Program, network: int) -> set[int]:
    """Return the units whose tensors have a gradient when a network is trained.

    All that is run, but for what lies before a cell whose output does not depend on its input.
    """
    units: set[int] = set()
    for position in program.layout.positions:
        if position.kind != "cell":
            units.update(range(position.unit, position.unit + len(KINDS[position.kind])))
            continue
        steps = program.template(int(program.networks[network, position.cell]))
        reaches = {0}  # expressions that depend on the cell's input
        for step in steps:
            if program.opcode[step] == Opcode.ZERO:
                continue
            if any(operand in reaches for operand in program.operands_of(step)):
                reaches.add(step)
        if steps[-1] not in reaches:
            units.clear()
        convolutions = [step for step in steps if program.is_conv[step]]
        units.update(position.unit + int(program.param[step]) for step in convolutions)
    return units


def _schedules(pool: Expressions, roots: Sequence[int]) -> list[tuple[int, ...]]:
    """List what each root needs, operands first, in an order that only the root determines."""
    needs: list[tuple[int, ...]] = []
    for expression, operands in enumerate(pool.operands):
        if expression == pool.input:
            needs.append(())
        elif len(operands) == 1:
            needs.append((*needs[operands[0]], expression))
        else:
            # What an earlier operand needs is there already when a later one needs it too.
            before = dict.fromkeys(chain.from_iterable(needs[operand] for operand in operands))
            needs.append((*before, expression))
    return [needs[root] or (root,) for root in roots]


def _flatten(lowering: AnyLowering, roots: Sequence[int]) -> dict[str, IntArray]:
    """Keep the expressions that some template uses, renumbered, as arrays."""
    pool = lowering.pool
    templates = _schedules(pool, roots)
    steps = np.fromiter(chain.from_iterable(templates), dtype=np.int32)
    used = np.union1d([pool.input], steps)
    new_id = np.zeros(len(pool.opcode), dtype=np.int32)
    new_id[used] = np.arange(len(used))
    kept = used.tolist()
    operands = chain.from_iterable(pool.operands[e] for e in kept)
    return {
        "opcode": np.array(pool.opcode, dtype=np.int32)[used],
        "param": np.array(pool.param, dtype=np.int32)[used],
        "operand_begin": begins([len(pool.operands[e]) for e in kept]),
        "operands": new_id[np.fromiter(operands, dtype=np.int32)],
        "template_begin": begins([len(t) for t in templates]),
        "steps": new_id[steps],
    }


def begins(lengths: Sequence[int]) -> IntArray:
    """Return where each of several consecutive runs begins, and the end, int32 ``[runs + 1]``."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
