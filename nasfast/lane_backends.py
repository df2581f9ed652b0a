# SPDX-License-Identifier: MIT
"""What trains lanes, and how many of them fit into memory together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from nasfast.backends import DTYPES, Backend, Precision, choose_backend
from nasfast.engine_memory import BLOCK_IMAGES
from nasfast.lane_engine import EngineLanes
from nasfast.lane_training import LaneTrainer, ReferenceLanes, Sgd
from nasfast.lower import Opcode
from nasfast.plan import MAX_CHUNK_LANES, UNBOUNDED, Plan, plan
from nasfast.program import Program
from nasfast.supernet import Supernet

# Precisions in which each backend trains lanes.
TRAIN_PRECISIONS: dict[str, tuple[str, ...]] = {
    "cpu": ("fp32", "bf16"),
    "reference": ("fp32", "fp64"),
}

# Training images of all lanes of a chunk: what a killed run has not finished is computed again.
_CHUNK_IMAGES = {"reference": 2**14, "cpu": 2**17}
# What is kept of a convolution: by autograd ReLU, its output and the normalised one; by the engine
# its output, and perhaps the sum that it goes into.
_CONV_VALUES = {"reference": 3, "cpu": 2}
_GRADIENTS = 8  # of the largest value that the engine keeps on its way back
# Of the channels after a position, for a head of those before it; "cell": its input.
_POSITION_VALUES = {
    "stem": 2, "relu_stem": 3, "cell": 1, "reduction": 8, "max_pool": 1, "head": 3,
    "projected_head": 3, "linear_head": 1,
}  # fmt: skip


def choose_lane_backend(
    backend: Backend, precision: Precision, weights_on: str = "edge"
) -> Literal["cpu", "reference"]:  # fmt: skip
    """Return the backend that trains: lanes, or a supernet.

    The engine does not train weights that several edges of a cell share.

    Args:
        backend: ``"auto"``: the CPU engine where it trains in the precision, otherwise the
            reference.
        precision: Precision.
        weights_on: As of :class:`nasfast.SupernetConfig`.

    Raises:
        ValueError: If backend or precision is unknown, or they do not go together.
    """
    if backend not in get_args(Backend) or precision not in get_args(Precision):
        choose_backend(backend, precision)  # says what there is
    if weights_on == "node" and (backend == "cpu" or precision == "bf16"):
        raise ValueError(
            "backend: weights on nodes are trained by 'reference' alone, in fp32 or fp64, "
            f"got {backend!r} in {precision!r}"
        )
    chosen: tuple[Literal["cpu", "reference"], ...]
    chosen = ("cpu", "reference") if backend == "auto" else (backend,)
    if weights_on == "node":
        chosen = ("reference",)
    for name in chosen:
        if precision in TRAIN_PRECISIONS.get(name, ()):
            return name
    known = "; ".join(f"{name}: {', '.join(some)}" for name, some in TRAIN_PRECISIONS.items())
    raise ValueError(
        f"precision: no training in {precision!r} with backend {backend!r}; there is {known}"
    )


def lane_trainer(
    backend: Literal["cpu", "reference"], cut: Plan, supernets: Sequence[Supernet], sgd: Sgd, *,
    precision: Precision, threads: int, gradient_sums: bool,
) -> LaneTrainer:  # fmt: skip
    """Return what trains the lanes of a program.

    Args:
        backend: As :func:`choose_lane_backend` returns it.
        cut: Program and chunks.
        supernets: Weight sets that the lanes name.
        sgd: What all lanes share.
        precision: Precision.
        threads: Threads of the engine; the reference uses one.
        gradient_sums: Whether to sum the gradients of each lane.
    """
    if backend == "cpu":
        return EngineLanes(
            cut, supernets, sgd, precision=precision, threads=threads, gradient_sums=gradient_sums
        )
    return ReferenceLanes(cut, supernets, sgd, dtype=DTYPES[precision], gradient_sums=gradient_sums)


def plan_lanes(
    program: Program,
    backend: Literal["cpu", "reference"],
    *,
    batch: int,
    images: int,
    evaluated: int,
    height: int,
    width: int,
    precision: Precision,
    copies: int,
    memory: int,
    threads: int = 1,
) -> Plan:
    """Cut lanes with private weights into chunks that fit a memory budget.

    Args:
        program: What is to be trained.
        backend: As :func:`choose_lane_backend` returns it.
        batch: Images of the largest training minibatch.
        images: Training images that a lane sees in all its steps.
        evaluated: Images that are evaluated at once, 0: none.
        height: Height of an image.
        width: Width of an image.
        precision: Precision.
        copies: Arenas that a lane keeps: weights, momentum, sums of gradients.
        memory: Budget in bytes for these, and for the values and gradients of a step. Images come
            on top.
        threads: Threads of the engine, each of which takes a lane.

    Raises:
        ValueError: If the budget is too small for one lane; the message names the least.
    """
    itemsize = 2 if precision == "bf16" else DTYPES[precision].itemsize
    arena = program.layout.arena_size * DTYPES[precision].itemsize
    kept, passing, largest = _values(program, backend)
    at_once = 1
    if backend == "cpu":
        kept += _GRADIENTS * largest
        batch, evaluated = (-(-n // BLOCK_IMAGES) * BLOCK_IMAGES for n in (batch, evaluated))
        at_once = threads
    values = max(kept * batch, passing * evaluated) * height * width * itemsize
    working, lane = at_once * (int(values) + arena), copies * arena
    room = (memory - working) // lane
    if room < at_once:
        lanes_text = "one lane" if at_once == 1 else f"{at_once} lanes (one for each thread)"
        raise ValueError(
            f"memory: training {lanes_text} needs {-(-(working + at_once * lane) // 2**20)} MiB "
            f"for minibatches of {max(batch, evaluated)} images of {height}x{width}, "
            f"got {memory / 2**20:.1f} MiB"
        )
    lanes = min(room, MAX_CHUNK_LANES, max(at_once, _CHUNK_IMAGES[backend] // images))
    lanes -= lanes % at_once  # no thread waits for the others
    return plan(
        program, batch=max(batch, evaluated), height=height, width=width, memory=UNBOUNDED,
        max_chunk_lanes=lanes,
    )  # fmt: skip


def _values(program: Program, backend: str) -> tuple[float, float, float]:
    """Estimate the values of one image, in numbers for each of its pixels.

    Returns:
        What a backward pass keeps of the largest network, what passes through a cell, and the
        largest value.
    """
    positions = program.layout.positions
    conv = _CONV_VALUES[backend]
    widths = _widths(program)
    weight = [
        sum(widths[step] * (conv if program.is_conv[step] else 1) for step in steps)
        for steps in map(program.template, range(program.num_templates))
    ]
    numbers = [p.out_channels / 4**p.halvings for p in positions if not p.kind.endswith("head")]
    fixed = sum(
        _POSITION_VALUES[p.kind]
        * (p.in_channels if p.kind.endswith("head") else p.out_channels)
        / 4**p.halvings
        for p in positions
    )  # fmt: skip
    cells = [p.out_channels / 4**p.halvings for p in positions if p.kind == "cell"]
    kept = max(
        sum(n * weight[t] for n, t in zip(cells, network, strict=True))
        for network in program.networks[program.lanes[:, 0]].tolist()
    )
    return fixed + kept, max(numbers) * (max(weight) + 4), max(numbers)


def _widths(program: Program) -> list[float]:
    """Return the channels of each cell expression as a share of the cell's output."""
    layout = program.layout
    cell = next(p for p in layout.positions if p.kind == "cell")
    widths: list[float] = []
    for expression, (opcode, unit) in enumerate(
        zip(program.opcode.tolist(), program.param.tolist(), strict=True)
    ):
        operands = program.operands_of(expression)
        if opcode == Opcode.CONV_RELU:
            widths.append(layout.shapes[cell.unit + unit].out_channels / cell.out_channels)
        elif opcode in (Opcode.CONV, Opcode.CONCAT) or not operands:
            widths.append(1.0)
        else:
            widths.append(max(widths[operand] for operand in operands))
    return widths
