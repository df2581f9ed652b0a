# SPDX-License-Identifier: MIT
"""What trains lanes, and how many of them fit into memory together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from nasfast.backends import (
    DTYPES,
    PRECISIONS,
    Backend,
    Precision,
    ScoreBackend,
    check_score_backend,
    choose_backend,
    choose_score_backend,
    wants_card,
)
from nasfast.engine_memory import BLOCK_IMAGES
from nasfast.lane_engine import EngineLanes
from nasfast.lane_training import LaneTrainer, ReferenceLanes, Sgd
from nasfast.lower import Opcode
from nasfast.plan import MAX_CHUNK_LANES, UNBOUNDED, Plan, plan
from nasfast.program import Program
from nasfast.reference import BatchNorm
from nasfast.supernet import Supernet

LaneBackend = Literal["cpu", "cuda", "reference"]

# Precisions in which each backend trains lanes.
TRAIN_PRECISIONS: dict[str, tuple[str, ...]] = {
    "cpu": ("fp32", "bf16"),
    "reference": ("fp32", "fp64"),
}

# Training images of all lanes of a chunk: what a killed run has not finished is computed again.
_CHUNK_IMAGES = {"reference": 2**14, "cpu": 2**17, "cuda": 2**22}
_CHUNK_LANES = {"cuda": 1024}  # most of them
# What is kept of a convolution: by autograd ReLU, its output and the normalised one; by the engine
# its output, and perhaps the sum that it goes into. On a card this bounds what lanes were seen to
# take, gradients included, by a factor of 1.4 to 2.
_CONV_VALUES = {"reference": 3, "cpu": 2, "cuda": 1}
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


def check_finetune_backend(
    backend: ScoreBackend, precision: Precision, modes: BatchNorm, weights_on: str = "edge"
) -> None:
    """Check that a backend fine-tunes in a precision, wherever that is.

    Raises:
        ValueError: If backend or precision is unknown, or the one does not have the other, the
            weights, or what the modes of evaluations ask for.
    """
    finds_card = backend == "auto" and wants_card(precision)
    if (backend == "cuda" or finds_card) and weights_on == "node":
        raise ValueError(
            "backend: weights on nodes are trained by 'reference' alone, in fp32 or fp64, "
            f"got {backend!r} in {precision!r}"
        )
    if backend == "cuda" or finds_card or backend not in get_args(ScoreBackend):
        check_score_backend(backend, precision, modes)
    else:
        choose_lane_backend(backend, precision, weights_on)


def choose_finetune_backend(
    backend: ScoreBackend, precision: Precision, modes: BatchNorm, weights_on: str = "edge"
) -> LaneBackend:
    """Return the backend that fine-tunes.

    Whether there is a card is asked for ``"auto"`` alone, as for scores.

    Args:
        backend: ``"auto"``: a card if there is one that has the precision, the weights and the
            modes, otherwise as :func:`choose_lane_backend`.
        precision: Precision.
        modes: Batch-norm modes of evaluations.
        weights_on: As of :class:`nasfast.SupernetConfig`.

    Raises:
        ValueError: As :func:`check_finetune_backend`, and as :func:`choose_score_backend`.
    """
    check_finetune_backend(backend, precision, modes, weights_on)
    if backend == "cuda":
        return backend
    if backend == "auto" and weights_on == "edge" and precision in PRECISIONS["cuda"]:
        return choose_score_backend(backend, precision, modes)
    return choose_lane_backend(backend, precision, weights_on)


def check_train_backend(
    backend: ScoreBackend, precision: Precision, weights_on: str = "edge"
) -> None:  # fmt: skip
    """Check that a backend trains a supernet in a precision, wherever that is.

    Raises:
        ValueError: As :func:`check_finetune_backend`.
    """
    check_finetune_backend(backend, precision, BatchNorm(), weights_on)


def choose_train_backend(
    backend: ScoreBackend, precision: Precision, weights_on: str = "edge"
) -> LaneBackend:
    """Return the backend that trains a supernet, chosen as for lanes that are fine-tuned.

    Args:
        backend: As in :func:`choose_finetune_backend`.
        precision: Precision.
        weights_on: As of :class:`nasfast.SupernetConfig`.

    Raises:
        ValueError: As :func:`check_finetune_backend`.
    """
    return choose_finetune_backend(backend, precision, BatchNorm(), weights_on)


def lane_trainer(
    backend: LaneBackend, cut: Plan, supernets: Sequence[Supernet], sgd: Sgd, *,
    precision: Precision, threads: int, gradient_sums: bool, memory: int = 0,
) -> LaneTrainer:  # fmt: skip
    """Return what trains the lanes of a program.

    Args:
        backend: As :func:`choose_finetune_backend` returns it.
        cut: Program and chunks.
        supernets: Weight sets that the lanes name.
        sgd: What all lanes share.
        precision: Precision.
        threads: Threads of the engine; the reference uses one.
        gradient_sums: Whether to sum the gradients of each lane.
        memory: Budget in bytes on a card, 0: what is free.
    """
    if backend != "reference":
        return EngineLanes(
            cut, supernets, sgd, precision=precision, threads=threads, gradient_sums=gradient_sums,
            device=backend, memory=memory,
        )  # fmt: skip
    return ReferenceLanes(cut, supernets, sgd, dtype=DTYPES[precision], gradient_sums=gradient_sums)


def plan_lanes(
    program: Program,
    backend: LaneBackend,
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
        backend: As :func:`choose_finetune_backend` returns it.
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
        ValueError: If the budget is too small for one lane; the message names the least. On a card
            that is known when a chunk begins; its lanes are grouped there for what is left.
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
    if backend == "cuda":  # lanes side by side, if what one takes is guessed well
        room = max(memory // (working + lane), int(memory > lane))
    if room < at_once:
        lanes_text = "one lane" if at_once == 1 else f"{at_once} lanes (one for each thread)"
        raise ValueError(
            f"memory: training {lanes_text} needs {-(-(working + at_once * lane) // 2**20)} MiB "
            f"for minibatches of {max(batch, evaluated)} images of {height}x{width}, "
            f"got {memory / 2**20:.1f} MiB"
        )
    most = _CHUNK_LANES.get(backend, MAX_CHUNK_LANES)
    lanes = min(room, most, max(at_once, _CHUNK_IMAGES[backend] // images))
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
