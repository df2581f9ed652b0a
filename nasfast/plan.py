# SPDX-License-Identifier: MIT
"""Planning: where values live, which lanes run together, and the packed instruction table.

Results never depend on a plan: lanes are independent, and what several lanes share (the stem and
the convolutions of the first cell) is computed by the same instruction whoever asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import get_args

import numpy as np

from nasfast.engine_memory import BLOCK_IMAGES, blocks_of, footprint
from nasfast.layout import Layout
from nasfast.lower import BatchNormMode, Opcode
from nasfast.program import Program, begins
from nasfast.registers import TemplateSteps
from nasfast.spaces.spec import IntArray
from nasfast.units import KINDS

TABLE_MAGIC = 0x4E465354  # "NFST"
TABLE_VERSION = 2
POSITION_KINDS = tuple(KINDS)

DEFAULT_MEMORY = 2 * 2**30
UNBOUNDED = 2**62  # a budget that cuts nothing: memory is counted elsewhere, or nothing is run
MAX_CHUNK_LANES = 256  # bounds what a killed run computes twice
MAX_BATCH, MAX_SIDE = 2**24, 2**16  # images of a minibatch; height or width of one
_SPARE_VALUES = 3  # a convolution's raw output, its normalised copy, the next cell's input


@dataclass(frozen=True, eq=False)
class Plan:
    """A program with its registers and chunks.

    Attributes:
        program: What is computed.
        batch: Images of the largest minibatch that fits the chunks.
        height: Height of an image, likewise.
        width: Width of an image, likewise.
        registers: Register that each step writes, aligned with ``program.steps``, int32. Register
            0 holds the cell's input and is never written; no step writes what it reads.
        step_operand_begin: Start of each step's registers in ``operand_registers``, int32
            ``[steps + 1]``.
        operand_registers: Registers that each step reads, one for each operand, int32.
        num_registers: Registers of each template, int32 ``[templates]``.
        lane_order: Lanes in the order of execution, int32 ``[lanes]``.
        chunk_begin: Start of each chunk in ``lane_order``, int32 ``[chunks + 1]``. The lanes of a
            chunk have one weight set and one data order.
        shared_begin: Start of each chunk's shared expressions, int32 ``[chunks + 1]``.
        shared: Expressions of the first cell computed once for a chunk: the convolutions that its
            lanes use and what those need, ascending (operands before users), int32.
    """

    program: Program
    batch: int
    height: int
    width: int
    registers: IntArray
    step_operand_begin: IntArray
    operand_registers: IntArray
    num_registers: IntArray
    lane_order: IntArray
    chunk_begin: IntArray
    shared_begin: IntArray
    shared: IntArray

    @property
    def num_chunks(self) -> int:
        """Chunks of lanes."""
        return len(self.chunk_begin) - 1

    def lanes_of(self, chunk: int) -> IntArray:
        """Return the lanes of a chunk in the order of execution."""
        return self.lane_order[self.chunk_begin[chunk] : self.chunk_begin[chunk + 1]]

    def shared_of(self, chunk: int) -> list[int]:
        """Return the shared expressions of a chunk."""
        begin, end = self.shared_begin[chunk], self.shared_begin[chunk + 1]
        return [int(e) for e in self.shared[begin:end]]

    def table(self) -> IntArray:
        """Pack program and plan into one int32 array that a backend runs without Python.

        The layout is documented in ``csrc/program/program_table.h``.
        """
        sections = list(self.sections().values())
        header = [TABLE_MAGIC, TABLE_VERSION, len(sections)]
        offset = len(header) + 2 * len(sections)
        for section in sections:
            header += [offset, section.size]
            offset += section.size
        if offset >= 2**31:
            raise ValueError(f"program: a table of {offset} numbers exceeds 2^31; use fewer lanes")
        flat = [np.array(header, dtype=np.int32), *(s.reshape(-1) for s in sections)]
        return np.concatenate(flat).astype(np.int32, copy=False)

    def sections(self) -> dict[str, IntArray]:
        """Return the sections of the table by name, in order, int32."""
        program = self.program
        return {
            "settings": self._settings(),
            "positions": position_array(program.layout),
            "units": unit_array(program.layout),
            "opcode": program.opcode,
            "param": program.param,
            "operand_begin": program.operand_begin,
            "operands": program.operands,
            "template_begin": program.template_begin,
            "steps": program.steps,
            "registers": self.registers,
            "step_operand_begin": self.step_operand_begin,
            "operand_registers": self.operand_registers,
            "num_registers": self.num_registers,
            "networks": program.networks,
            "lanes": program.lanes,
            "lane_order": self.lane_order,
            "chunk_begin": self.chunk_begin,
            "shared_begin": self.shared_begin,
            "shared": self.shared,
        }

    def _settings(self) -> IntArray:
        program, layout = self.program, self.program.layout
        mode = program.mode
        _, weight_set, data_order = program.lanes.max(axis=0).tolist()
        values = (
            get_args(BatchNormMode).index(mode.cells), mode.affine, program.merge,
            layout.arena_size, layout.units_per_cell, weight_set + 1, data_order + 1, self.batch,
            self.height, self.width, layout.padding,
        )  # fmt: skip
        return np.array(values, dtype=np.int32)


def position_array(layout: Layout) -> IntArray:
    """Return the skeleton, int32 ``[positions, 7]``.

    Columns: kind, in_channels, out_channels, halvings, unit, layer, cell.
    """
    return np.array(
        [
            (POSITION_KINDS.index(p.kind), p.in_channels, p.out_channels, p.halvings, p.unit,
             p.layer, p.cell)
            for p in layout.positions
        ],
        dtype=np.int32,
    )  # fmt: skip


def unit_array(layout: Layout) -> IntArray:
    """Return the units, int32 ``[units, 10]``.

    Columns: six arena offsets, kernel size (0: none), input and output channels of the convolution,
    weight of a new minibatch in its running statistics in millionths.
    """
    shapes = [
        (s.kernel, s.in_channels, s.out_channels, round(s.momentum * 1e6)) for s in layout.shapes
    ]
    return np.concatenate([layout.offsets, np.array(shapes, dtype=np.int32)], axis=1)


def plan(
    program: Program,
    *,
    batch: int,
    height: int,
    width: int,
    itemsize: int = 4,
    memory: int = DEFAULT_MEMORY,
    workers: int = 0,
    minibatches: int = 1,
    max_chunk_lanes: int = MAX_CHUNK_LANES,
) -> Plan:
    """Assign registers and cut the lanes into chunks that fit a memory budget.

    Args:
        program: What is to be computed.
        batch: Images of the largest minibatch.
        height: Height of an image.
        width: Width of an image.
        itemsize: Bytes of one number.
        memory: Budget in bytes for the values of a chunk; weights and images are not counted.
        workers: Threads of the engine, which work on a lane each; 0 for the reference backend.
        minibatches: Minibatches that ``batch`` is made of; the engine fills up each to blocks.
        max_chunk_lanes: Most lanes of a chunk.

    Raises:
        ValueError: If a size is out of range, or a single lane does not fit; the message names the
            least that works.
    """
    limits = (("batch", batch, MAX_BATCH), ("height", height, MAX_SIDE), ("width", width, MAX_SIDE))
    for name, size, most in limits:
        if not 1 <= size <= most:
            raise ValueError(f"{name}: wanted 1..{most}, got {size}")
    steps = TemplateSteps(program)
    registers, operand_registers, num_registers = steps.allocate()
    # A joint lane shares nothing: what is shared serves many lanes, and it is the only one.
    shareable: list[tuple[int, ...]] = [()] * program.num_templates
    if not program.is_joint:
        begin, expressions = (array.tolist() for array in steps.shared())
        shareable = [tuple(expressions[a:b]) for a, b in pairwise(begin)]
    needs_of = [shareable[t] for t in program.networks[program.lanes[:, 0], 0].tolist()]
    streams = [tuple(row) for row in program.lanes[:, 1:].tolist()]  # (weight set, data order)
    order = sorted(range(program.num_lanes), key=lambda k: (streams[k], needs_of[k], k))
    if workers:
        blocks = blocks_of(batch, minibatches)
        images = blocks * BLOCK_IMAGES
        narrow, wide = _value_bytes(program.layout, images, height, width, itemsize)
        engine = footprint(
            program, block_bytes=narrow // blocks, wide_bytes=wide // blocks, blocks=blocks,
            minibatches=minibatches, height=height, width=width, threads=workers,
        )  # fmt: skip
        at_once, working, per_shared = engine.at_once, engine.working, engine.per_shared
    else:
        images, at_once, per_shared = batch, 1, 0
        narrow, wide = _value_bytes(program.layout, images, height, width, itemsize)
        working = (int(num_registers.max()) + _SPARE_VALUES) * max(narrow, wide)
    sizes = [
        per_shared + channels * images * height * width * itemsize
        for channels in _first_cell_channels(program, itemsize)
    ]
    working += sizes[0]  # the stem is shared too
    least = working + max(sum(sizes[e] for e in needs) for needs in set(shareable))
    if memory < least:
        lanes = "one lane" if at_once == 1 else f"{at_once} lanes (one for each thread)"
        raise ValueError(
            f"memory: the values of {lanes} need {-(-least // 2**20)} MiB "
            f"for minibatches of {batch} images of {height}x{width}, got {memory / 2**20:.1f} MiB"
        )
    chunks, shared = _cut(order, streams, needs_of, sizes, memory - working, max_chunk_lanes)
    return Plan(
        program=program,
        batch=batch,
        height=height,
        width=width,
        registers=registers,
        step_operand_begin=steps.begin.astype(np.int32),
        operand_registers=operand_registers,
        num_registers=num_registers,
        lane_order=np.array(order, dtype=np.int32),
        chunk_begin=begins([len(c) for c in chunks]),
        shared_begin=begins([len(s) for s in shared]),
        shared=np.array([e for s in shared for e in sorted(s)], dtype=np.int32),
    )


def _cut(
    order: list[int], streams: list[tuple[int, ...]], needs_of: list[tuple[int, ...]],
    sizes: list[int], room: int, max_lanes: int,
) -> tuple[list[list[int]], list[set[int]]]:  # fmt: skip
    """Cut ordered lanes into chunks of one stream that share values of at most ``room`` bytes.

    Returns:
        The lanes of each chunk, and the expressions that it shares.
    """
    chunks: list[list[int]] = []
    shared: list[set[int]] = []
    taken = 0  # bytes of the last chunk's
    for lane in order:
        needs = needs_of[lane]
        more = sum(sizes[e] for e in needs if not shared or e not in shared[-1])
        fits = (
            bool(chunks)
            and streams[chunks[-1][0]] == streams[lane]
            and len(chunks[-1]) < max_lanes
            and taken + more <= room
        )
        if not fits:
            chunks.append([])
            shared.append(set())
            taken, more = 0, sum(sizes[e] for e in needs)
        taken += more
        chunks[-1].append(lane)
        shared[-1].update(needs)
    return chunks, shared


def _value_bytes(
    layout: Layout, images: int, height: int, width: int, itemsize: int
) -> tuple[int, int]:  # fmt: skip
    """Bytes of the largest value that is as wide as its stage, and of the largest that is wider."""
    narrow = wide = 0
    for halvings, widest in enumerate(layout.widest):
        of_stage = layout.positions[0].out_channels << halvings
        numbers = images * layout.pixels(height, width, halvings) * itemsize
        narrow = max(narrow, numbers * _paired(min(widest, of_stage), itemsize))
        if widest > of_stage:
            wide = max(wide, numbers * _paired(widest, itemsize))
    return narrow, wide


def _paired(channels: int, itemsize: int) -> int:
    """Round up to what fills 4 bytes."""
    return channels + (channels % (4 // itemsize) if itemsize < 4 else 0)


def _first_cell_channels(program: Program, itemsize: int) -> list[int]:
    """Channels of every expression in the first cell, as stored."""
    layout, opcode = program.layout, program.opcode
    position = next(p for p in layout.positions if p.kind == "cell")
    of_unit = np.array([s.out_channels for s in layout.shapes[position.unit :]], dtype=np.int64)
    named = np.array(program.is_conv) | (opcode == Opcode.CUT)
    own = np.full(len(opcode), position.in_channels, dtype=np.int64)
    own[named] = of_unit[program.param[named]]
    own[opcode == Opcode.CONCAT] = position.out_channels
    # All else has the channels of its first operand.
    lacks = np.diff(program.operand_begin) == 0
    source = np.append(program.operands, 0)[program.operand_begin[:-1]]
    source = np.where(named | (opcode == Opcode.CONCAT) | lacks, np.arange(len(opcode)), source)
    while not np.array_equal(source, further := source[source]):
        source = further
    channels = own[source]
    return [_paired(count, itemsize) for count in channels.tolist()]
