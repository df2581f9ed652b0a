# SPDX-License-Identifier: MIT
"""What the CPU engine allocates for a chunk beside shared values: the bound that plans keep to.

It follows ``csrc/engine/executor.cpp``; sizes below 2 MiB are exact, larger ones are rounded up to
that there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nasfast.layout import halved
from nasfast.lower import Opcode
from nasfast.program import Program

BLOCK_IMAGES = 16  # csrc/kernels/cpu/kernels.h
_LINE_BYTES = 64
_BAND_BYTES = 128 * 2**10  # rows that a pass makes before its consumers run
_PAIR_TILES = 4  # of Winograd's F(2x2, 3x3), and its 16 elements
_PAIR_ELEMENTS = 16


@dataclass(frozen=True)
class Footprint:
    """Bytes of the engine.

    Attributes:
        at_once: Lanes that are in work together.
        working: Everything but shared values, for all threads.
        per_shared: What a shared value takes beside its numbers: scale and shift of each channel.
    """

    at_once: int
    working: int
    per_shared: int


def blocks_of(batch: int, minibatches: int) -> int:
    """Return the most blocks of images that so many images in so many minibatches fill."""
    return -(-batch // BLOCK_IMAGES) + minibatches - 1


def footprint(
    program: Program, *, block_bytes: int, blocks: int, minibatches: int, height: int, width: int,
    threads: int,
) -> Footprint:  # fmt: skip
    """Bound the memory of an engine's run.

    Args:
        program: What is computed.
        block_bytes: Bytes of the largest value of one block of images.
        blocks: Blocks that are in work together.
        minibatches: Minibatches that they belong to.
        height: Height of an image.
        width: Width of an image.
        threads: Threads.
    """
    layout = program.layout
    widths = layout.widest
    channels = -(-max(*widths, layout.config.in_channels) // 16) * 16
    stored, summed, consumers = _expressions(program)
    line_bytes = channels * _LINE_BYTES
    columns = [halved(width, k, layout.padding) for k in range(len(widths))]
    operand_row = max(n * c * _LINE_BYTES for n, c in zip(columns, widths, strict=True))
    rings = 2 * max(_ring(height, width, k, c, program) for k, c in enumerate(widths))
    pairs = 2 * _PAIR_ELEMENTS * (_PAIR_TILES * channels + 1) * _LINE_BYTES
    scratch = rings + operand_row + (2 * consumers + 2) * line_bytes + pairs
    statistics = consumers * blocks * 5 * line_bytes  # 20 bytes for every 4 of a line
    norms = layout.num_cells * stored + 3 * len(widths)
    of_norm = minibatches * 2 * channels * 4
    affine = norms * of_norm
    # Alive are the results of a cell and its kept sums, its input, and the two of a reduction.
    buffers = (stored + summed + 3) * blocks * block_bytes
    at_once = threads if program.num_lanes >= threads else 1
    own = at_once * (buffers + statistics + affine) + threads * scratch
    shared = statistics + affine + threads * scratch
    # The executor of what is shared has scale and shift, and lanes read a copy.
    return Footprint(at_once, own + shared, 2 * of_norm)


def _expressions(program: Program) -> tuple[int, int, int]:
    """Count the most results and sums of a template, and the most readers of one value."""
    stores = program.is_conv | np.isin(program.opcode, (Opcode.AVG_POOL, Opcode.MAX_POOL))
    sums = program.opcode == Opcode.SUM
    begin = program.template_begin[:-1]  # no template is empty
    stored = int(np.add.reduceat(stores[program.steps].astype(np.int32), begin).max())
    summed = int(np.add.reduceat(sums[program.steps].astype(np.int32), begin).max())
    sources = program.operands[program.operand_begin[:-1][stores]]
    readers = int(np.bincount(sources).max(initial=0))
    return stored, summed, max(readers, 2)  # a reduction's first pass has two


def _ring(height: int, width: int, halvings: int, channels: int, program: Program) -> int:
    """Bytes of the rows that a thread keeps of a value; at most four for every number."""
    padding = program.layout.padding
    row = halved(width, halvings, padding) * channels * _LINE_BYTES
    rows = halved(height, halvings, padding)
    kernel = max(3, *(shape.kernel for shape in program.layout.shapes))
    # In bf16 a row of operands may be half as large, and a band then has twice the rows.
    return min(rows, max(1, 2 * _BAND_BYTES // row) + kernel) * row
