# SPDX-License-Identifier: MIT
"""Fine-tune architectures, each on private copies of a supernet's weights, and record curves."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from nasfast import cuda_device
from nasfast.backends import DTYPES, Precision, ScoreBackend
from nasfast.curves import Curves, FineTuning, Trainings
from nasfast.data import Batch
from nasfast.evaluate import ChunkScores, check_threads
from nasfast.inputs import check_batch_norm, check_batches, check_sizes, check_supernets
from nasfast.lane_backends import LaneBackend, choose_finetune_backend, lane_trainer, plan_lanes
from nasfast.lane_training import LaneState, LaneTrainer, Sgd
from nasfast.layout import SupernetConfig
from nasfast.plan import DEFAULT_MEMORY, Plan
from nasfast.program import Network, Program, build_training
from nasfast.reference import BatchNorm
from nasfast.spaces.spec import IntArray
from nasfast.supernet import Supernet

_LOG = logging.getLogger(__name__)
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Schedule:
    """What every training does, whatever its lane.

    Attributes:
        steps: Steps of SGD at a constant rate.
        sgd: Momentum, weight decay, clipping.
        validate_at: Steps taken before each evaluation of the whole validation set, and of its
            first minibatch.
        mini_at: Steps taken before further evaluations of the first minibatch alone.
        bn: Where batch norm takes its statistics from in evaluations.
        gradient_sums: Whether to sum gradients, for SoG: one more copy of the weights.
    """

    steps: int
    sgd: Sgd = Sgd()  # noqa: RUF009  # frozen
    validate_at: tuple[int, ...] = ()
    mini_at: tuple[int, ...] = ()
    bn: str = "batch"
    gradient_sums: bool = True

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ValueError: If a value is out of its range.
        """
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps: wanted a positive integer, got {self.steps!r}")
        for name in ("validate_at", "mini_at"):
            for step in getattr(self, name):
                if not 0 <= step <= self.steps:
                    raise ValueError(f"{name}: wanted 0..{self.steps} (steps taken), got {step}")
        BatchNorm.parse(self.bn)

    @property
    def valid_steps(self) -> tuple[int, ...]:
        """Steps taken before each evaluation of the whole validation set, ascending."""
        return tuple(sorted(set(self.validate_at)))

    @property
    def mini_steps(self) -> tuple[int, ...]:
        """Steps taken before each evaluation of the first validation minibatch, ascending."""
        return tuple(sorted({*self.validate_at, *self.mini_at}))


@dataclass(frozen=True, eq=False)
class ChunkCurves:
    """Curves of the trainings of one chunk.

    Attributes:
        trainings: Their rows in what was asked for, int32 ``[rows]``.
        curves: What was recorded, ``[rows, ...]``.
        lane_of_training: Those with one number were computed once, int32 ``[rows]``.
        elapsed_s: Time that the chunk took.
    """

    trainings: IntArray
    curves: Curves
    lane_of_training: IntArray
    elapsed_s: float


def finetune(
    supernets: Supernet | Sequence[Supernet],
    archs: Sequence[Network] | Trainings,
    batches: Sequence[Batch] | Sequence[Sequence[Batch]],
    *,
    steps: int,
    lr: float | Sequence[float] | None = None,
    sgd: Sgd = Sgd(),  # noqa: B008  # frozen
    validation: Sequence[Batch] | None = None,
    validate_at: Sequence[int] | None = None,
    mini_at: Sequence[int] = (),
    bn: BatchNorm | str = "batch",
    from_scratch: int | None = None,
    gradient_sums: bool = True,
    precision: Precision = "fp32",
    memory: int = DEFAULT_MEMORY,
    backend: ScoreBackend = "auto",
    threads: int | None = None,
) -> FineTuning:
    """Train each architecture for a few steps from a supernet's weights, and record its curves.

    Every training has private copies of the weights that it uses and fresh SGD at a constant rate;
    all see the same minibatches in the same order, but for their data order. Minibatches are used
    again from the first where there are more steps. Batch norm uses the statistics of the
    minibatch. Trainings that are the same function of the same weights are computed once. A
    training's curves are the same bit for bit whatever else is in the call.

    Args:
        supernets: Weights to start from, or several weight sets of one shape. They stay as they
            are.
        archs: Architectures, or for each network a sequence of one architecture a search cell:
            each is trained in every combination of weight set, rate and data order. Or
            :class:`nasfast.Trainings`, which says what is combined.
        batches: Training minibatches, or several data orders; each has its own batch size.
        steps: Steps of each training.
        lr: Learning rate, or several; None only with :class:`nasfast.Trainings`.
        sgd: Momentum, weight decay and clipping.
        validation: Minibatches to evaluate on.
        validate_at: Steps taken before each evaluation; before the first step and after the last
            when left out.
        mini_at: Steps taken before further evaluations, of the first validation minibatch alone.
        bn: Where batch norm takes its statistics from in evaluations, as in
            :func:`nasfast.evaluate`.
        from_scratch: Seed: weight set ``k`` starts from ``Supernet.create(config, from_scratch +
            k)``, not from the weights given.
        gradient_sums: Sum gradients, for SoG: one more copy of the weights.
        precision: ``"fp32"``, ``"bf16"``, ``"fp64"``, or on a card ``"tf32"``.
        memory: Budget in bytes for private weights, momentum, gradients and feature maps; on a
            card, of its memory.
        backend: ``"cpu"``: the engine; ``"cuda"``: the same on torch's current CUDA device, where
            no evaluation recalibrates; ``"reference"``: plain PyTorch, the definition; ``"auto"``:
            a card of compute capability 8.0 or later that can serve the call, otherwise the engine
            where it trains in the precision, otherwise the reference. Each rounds in its own way.
        threads: Threads of the CPU engine; PyTorch's number when left out. The reference uses one.

    Returns:
        Curves and estimators in the order of the trainings.

    Raises:
        ValueError: If an argument does not fit; nothing is computed then.

    Definition:
        :class:`nasfast.lane_training.ReferenceLanes`.

    Source:
        Fil, thesis, section 3.4.1.
    """
    nets = [supernets] if isinstance(supernets, Supernet) else list(supernets)
    check_supernets(nets)
    orders: list[Sequence[Batch]] = (
        [batches] if all(isinstance(b, Batch) for b in batches) else list(batches)  # type: ignore[arg-type, list-item]
    )
    if isinstance(archs, Trainings):
        if lr is not None:
            raise ValueError("lr: the trainings have learning rates of their own, so give none")
        trainings = archs
    elif lr is None:
        raise ValueError("lr: wanted a learning rate, got none")
    else:
        trainings = Trainings.grid(archs, lr=lr, weight_sets=len(nets), data_orders=len(orders))
    if validate_at is None:
        validate_at = () if validation is None else (0, steps)
    schedule = Schedule(
        steps, sgd, tuple(validate_at), tuple(mini_at), str(bn), gradient_sums=gradient_sums
    )
    curves = Curves.empty(
        len(trainings.archs), steps, len(schedule.mini_steps), len(schedule.valid_steps)
    )
    lane_of = np.empty(len(trainings.archs), dtype=np.int32)
    for chunk in run(
        trainings, nets, orders, schedule, validation=validation, from_scratch=from_scratch,
        precision=precision, memory=memory, backend=backend, threads=threads,
    ):  # fmt: skip
        curves.put(chunk.trainings, chunk.curves)
        lane_of[chunk.trainings] = chunk.lane_of_training
    return FineTuning(
        trainings, curves, schedule.mini_steps, schedule.valid_steps,
        tuple(len(order) for order in orders), lane_of,
    )  # fmt: skip


def run(
    trainings: Trainings,
    supernets: Sequence[Supernet],
    data_orders: Sequence[Sequence[Batch]],
    schedule: Schedule,
    *,
    validation: Sequence[Batch] | None = None,
    from_scratch: int | None = None,
    precision: Precision = "fp32",
    memory: int = DEFAULT_MEMORY,
    backend: ScoreBackend = "auto",
    threads: int | None = None,
) -> Iterator[ChunkCurves]:
    """Fine-tune chunk by chunk.

    Args:
        trainings: What to train.
        supernets: Weight sets that the trainings name.
        data_orders: Minibatches of each data order that they name.
        schedule: Steps and evaluations.
        validation: As in :func:`finetune`.
        from_scratch: As in :func:`finetune`.
        precision: As in :func:`finetune`.
        memory: As in :func:`finetune`.
        backend: As in :func:`finetune`.
        threads: As in :func:`finetune`.

    Yields:
        The curves of each chunk as it is done.

    Raises:
        ValueError: If an argument does not fit; raised before the first chunk.
    """
    config = check_supernets(supernets)
    modes = _check_modes(config, schedule.bn)
    chosen = choose_finetune_backend(backend, precision, modes, config.weights_on)
    if chosen == "cuda":
        cuda_device.require()
    workers = check_threads(threads)
    _check_indices(trainings, len(supernets), len(data_orders))
    dtype = DTYPES[precision]
    streams = [
        check_batches(config, order, f"batches[{k}]", dtype) for k, order in enumerate(data_orders)
    ]
    valid = [] if validation is None else check_batches(config, validation, "validation", dtype)
    if not valid and schedule.mini_steps:
        raise ValueError(f"validate_at: {schedule.mini_steps} needs validation minibatches")
    check_sizes(config, streams, valid)
    if from_scratch is not None:
        supernets = [Supernet.create(config, from_scratch + k) for k in range(len(supernets))]
    for k, stream in enumerate(streams):
        if schedule.steps > len(stream):
            _LOG.warning(
                "batches[%d]: %d minibatches for %d steps, so they are used again from the first",
                k, len(stream), schedule.steps,
            )  # fmt: skip
    # A chunk has one weight set: with the rate as a part of it, also one rate.
    pairs, pair_of = np.unique(
        np.stack([trainings.weight_set, trainings.lr], axis=1), axis=0, return_inverse=True
    )
    program = build_training(
        supernets[0].layout, trainings.archs,
        weight_set=pair_of.reshape(-1).astype(np.int32), data_order=trainings.data_order,
    )  # fmt: skip
    cut = _plan(
        program, chosen, streams, valid, schedule, modes,
        precision=precision, memory=memory, threads=workers,
    )  # fmt: skip
    trainer = lane_trainer(
        chosen, cut, [supernets[int(k)] for k in pairs[:, 0]], schedule.sgd,
        precision=precision, threads=workers, gradient_sums=schedule.gradient_sums, memory=memory,
    )  # fmt: skip
    by_lane = np.argsort(program.lane_of_request, kind="stable").astype(np.int32)
    begin = np.searchsorted(program.lane_of_request[by_lane], np.arange(program.num_lanes + 1))
    for chunk in range(cut.num_chunks):
        began = time.perf_counter()
        lanes = cut.lanes_of(chunk)
        _, pair, order = program.lanes[lanes[0]].tolist()
        curves = _train(
            trainer, chunk, len(lanes), float(pairs[pair, 1]), streams[order], valid, schedule,
            modes,
        )  # fmt: skip
        members = [by_lane[begin[lane] : begin[lane + 1]] for lane in lanes.tolist()]
        rows = np.repeat(np.arange(len(lanes)), [len(own) for own in members])
        elapsed_s = time.perf_counter() - began
        yield ChunkCurves(
            np.concatenate(members), curves.rows(rows), lanes[rows].astype(np.int32), elapsed_s
        )


def _train(
    trainer: LaneTrainer, chunk: int, lanes: int, lr: float, stream: list[Batch],
    valid: list[Batch], schedule: Schedule, modes: BatchNorm,
) -> Curves:  # fmt: skip
    """Train the lanes of a chunk and record their curves."""
    steps, minis, points = schedule.steps, schedule.mini_steps, schedule.valid_steps
    curves = Curves.empty(lanes, steps, len(minis), len(points))
    state = trainer.start(chunk)
    stops = sorted({0, steps, *minis})
    for end, following in pairwise([*stops, steps]):
        if end in minis:
            column = minis.index(end)
            scores = _scores(trainer, chunk, state, valid[:1], modes)
            curves.mini_loss[:, column], curves.mini_accuracy[:, column] = scores
        if end in points:
            column = points.index(end)
            scores = _scores(trainer, chunk, state, valid, modes)
            curves.valid_loss[:, column], curves.valid_accuracy[:, column] = scores
        if end == following:
            break
        window = [stream[step % len(stream)] for step in range(end, following)]
        records = trainer.step(chunk, state, window, np.full((lanes, len(window)), lr))
        sizes = np.array([len(batch.labels) for batch in window])
        curves.loss[:, end:following] = records.loss
        curves.accuracy[:, end:following] = records.correct / sizes
        curves.gradient_l1[:, end:following] = records.gradient_l1
        curves.gradient_sum_l1[:, end:following] = records.gradient_sum_l1
    diverged = state.diverged_at[:, None]
    after = (diverged >= 0) & (np.arange(steps) >= diverged)
    curves.accuracy[after] = np.nan
    curves.diverged_at[:] = state.diverged_at
    return curves


def _scores(
    trainer: LaneTrainer, chunk: int, state: LaneState, batches: list[Batch], modes: BatchNorm
) -> tuple[_Floats, _Floats]:
    """Return mean loss and accuracy of each lane, NaN for those that have diverged."""
    loss, correct = trainer.evaluate(chunk, state, batches, modes)
    scores = ChunkScores(np.arange(len(loss), dtype=np.int32), loss, correct)
    gone = state.diverged_at >= 0
    return np.where(gone, np.nan, scores.mean_loss), np.where(gone, np.nan, scores.accuracy)


def _plan(
    program: Program, backend: LaneBackend, streams: list[list[Batch]],
    valid: list[Batch], schedule: Schedule, modes: BatchNorm, *, precision: Precision, memory: int,
    threads: int,
) -> Plan:  # fmt: skip
    sizes = [[len(batch.labels) for batch in stream] for stream in streams]
    height, width = streams[0][0].images.shape[2:]
    evaluated = [len(batch.labels) for batch in valid] if schedule.mini_steps else [0]
    images = schedule.steps * max(map(max, sizes))
    return plan_lanes(
        program, backend, batch=max(map(max, sizes)), images=images,
        evaluated=sum(evaluated) if modes.recalibrates else max(evaluated),
        height=height, width=width, precision=precision,
        copies=1 + (schedule.sgd.momentum > 0) + schedule.gradient_sums, memory=memory,
        threads=threads,
    )  # fmt: skip


# Checks.


def _check_modes(config: SupernetConfig, bn: str) -> BatchNorm:
    modes = check_batch_norm(config, bn)
    if modes.cells == "running" and not config.affine:
        # Where nothing flows, running statistics leave a constant, which training has merged away.
        raise ValueError(
            "bn: running statistics of the cells need affine=True after fine-tuning by batch "
            "statistics; use 'batch' or 'recalibrate' there"
        )
    return modes


def _check_indices(trainings: Trainings, weight_sets: int, data_orders: int) -> None:
    for name, count in (("weight_set", weight_sets), ("data_order", data_orders)):
        indices = np.asarray(getattr(trainings, name))
        if indices.dtype.kind not in "iu" or indices.min() < 0 or indices.max() >= count:
            raise ValueError(f"{name}: wanted integers 0..{count - 1}, got {indices.tolist()}")
