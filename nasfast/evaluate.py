# SPDX-License-Identifier: MIT
"""Score architectures with the weights of a supernet."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from nasfast import cuda_device, native
from nasfast.backends import (
    DTYPES,
    ChunkRunner,
    Engine,
    Precision,
    Reference,
    ScoreBackend,
    choose_score_backend,
)
from nasfast.data import Batch
from nasfast.inputs import check_batch_norm, check_batches, check_lanes, check_streams
from nasfast.lower import Merge, Mode
from nasfast.plan import DEFAULT_MEMORY, MAX_CHUNK_LANES, UNBOUNDED, Plan, plan
from nasfast.program import Network, Program, build, request_array
from nasfast.reference import BatchNorm
from nasfast.spaces.spec import IntArray
from nasfast.supernet import Supernet

# Images of all lanes of a chunk in an engine: a chunk cannot be interrupted, and what a killed run
# has not finished is computed again.
_CHUNK_IMAGES = {"cpu": 2**16, "cuda": 2**22}
_CARD_CHUNK_LANES = 4096  # in place of MAX_CHUNK_LANES
_MIN_CHUNK_LANES = 16  # what a chunk shares is computed once for these


@dataclass(frozen=True, eq=False)
class ChunkScores:
    """Results of the lanes of one chunk.

    Attributes:
        lanes: Lanes, int32 ``[lanes]``.
        loss: Cross-entropy of each lane and image, float64 ``[lanes, images]``.
        correct: Top-1 correctness, bool ``[lanes, images]``.
        elapsed_s: Time that the chunk took.
        macs: Multiply-accumulates of convolutions and classifiers in it, without calibration.
    """

    lanes: IntArray
    loss: npt.NDArray[np.float64]
    correct: npt.NDArray[np.bool_]
    elapsed_s: float = 0.0
    macs: int = 0

    @property
    def mean_loss(self) -> npt.NDArray[np.float64]:
        """Mean cross-entropy of each lane; not finite where any image's is not, ``[lanes]``."""
        # Row by row: numpy's blocked sum over a matrix may depend on how many rows it has.
        return np.array([np.mean(row) for row in self.loss], dtype=np.float64)

    @property
    def accuracy(self) -> npt.NDArray[np.float64]:
        """Share of images classified correctly, ``[lanes]``."""
        return self.correct.sum(axis=1) / self.correct.shape[1]


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of requested architectures.

    Attributes:
        loss: Mean cross-entropy over all images, float64 ``[archs]``; NaN or infinite marks a
            lane that left the finite numbers.
        accuracy: Top-1 accuracy, 0 to 1, float64 ``[archs]``.
        lane_of_arch: Row of the two arrays below that holds each architecture, int32 ``[archs]``:
            architectures with one row are the same function.
        lane_loss: Cross-entropy of each lane and image, float64 ``[lanes, images]``; without
            columns when images were not kept.
        lane_correct: Top-1 correctness, bool ``[lanes, images]``, likewise.
        program: What was computed.
    """

    loss: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]
    lane_of_arch: IntArray
    lane_loss: npt.NDArray[np.float64]
    lane_correct: npt.NDArray[np.bool_]
    program: Program


def compile_archs(
    supernet: Supernet, archs: Sequence[Network], *, bn: BatchNorm | str = "batch",
    merge: Merge = Merge.LINEAR,
) -> Program:  # fmt: skip
    """Lower architectures for evaluation with a supernet's weights.

    Args:
        supernet: Gives the shape of the network.
        archs: Architectures, or one for each search cell.
        bn: Batch-norm modes; a string as :meth:`nasfast.BatchNorm.parse` reads it.
        merge: How much equal work is recognised.

    Raises:
        ValueError: If the modes ask for running statistics that the supernet does not keep.
    """
    modes = check_batch_norm(supernet.config, bn)
    requests = request_array(supernet.layout, archs)
    mode = Mode(modes.cells, supernet.config.affine)
    return build(supernet.layout, requests, mode=mode, merge=merge)


def evaluate(
    supernet: Supernet,
    archs: Sequence[Network],
    batches: Sequence[Batch],
    *,
    bn: BatchNorm | str = "batch",
    calibration: Sequence[Batch] | None = None,
    precision: Precision = "fp32",
    merge: Merge = Merge.LINEAR,
    memory: int = DEFAULT_MEMORY,
    keep_images: bool = True,
    backend: ScoreBackend = "auto",
    threads: int | None = None,
) -> Scores:
    """Score architectures on minibatches with the shared weights of a supernet.

    Every lane sees the same minibatches in the same order, and its result is the same bit for bit
    whatever else is in the call, and whatever the memory budget and the number of threads.

    Args:
        supernet: Shared weights.
        archs: Architectures, or for each network a sequence of one architecture a search cell.
        batches: Minibatches: images ``[batch, channels, height, width]``, labels int64
            ``[batch]``.
        bn: Where batch norm takes its statistics from: ``"batch"``, ``"running"`` or
            ``"recalibrate"`` for all parts, or ``"cells/others"``, for example
            ``"batch/running"`` as the NAS-Bench-201 search code does.
        calibration: Images whose pooled statistics ``"recalibrate"`` uses; the evaluated images
            when left out (their labels play no part).
        precision: ``"fp32"``, ``"tf32"`` (on a card: operands of convolutions rounded to 10 bits
            behind the point, all else float32), ``"bf16"`` (operands of convolutions and feature
            maps bfloat16, sums and statistics float32) or ``"fp64"``.
        merge: How much equal work is recognised.
        memory: Budget in bytes for feature maps and what is computed with them. Images, packed
            weights, logits and memory kept for the next call (at most 1 GiB), or temporaries of
            PyTorch on the reference backend, come on top. On a card: of its memory, packed weights
            included.
        keep_images: Keep loss and correctness of every lane and image, 9 bytes each.
        backend: ``"cpu"``: the engine (fp32, bf16); ``"cuda"``: the same on torch's current CUDA
            device (tf32 too), without ``"recalibrate"``; ``"reference"``: plain PyTorch, the
            definition (fp32, fp64); ``"auto"``: a card of compute capability 8.0 or later that can
            serve the call, otherwise the engine where it has the precision, otherwise the
            reference where that has it. Each rounds in its own way.
        threads: Threads of the CPU engine; PyTorch's number when left out. The reference uses one.

    Returns:
        Scores in the order of ``archs``.

    Raises:
        ValueError: If an argument does not fit; nothing is computed then.

    Source:
        Dong and Yang, NAS-Bench-201, ICLR 2020, section 2 (network); definition of each operation:
        :mod:`nasfast.reference`.
    """
    program = compile_archs(supernet, archs, bn=bn, merge=merge)
    images = sum(len(batch.labels) for batch in batches)
    loss, accuracy = np.empty(program.num_lanes), np.empty(program.num_lanes)
    kept = (program.num_lanes, images if keep_images else 0)
    lane_loss, lane_correct = np.empty(kept), np.empty(kept, dtype=np.bool_)
    for chunk in run(
        program, [supernet], [batches], bn=bn, calibration=calibration, precision=precision,
        memory=memory, backend=backend, threads=threads,
    ):  # fmt: skip
        loss[chunk.lanes], accuracy[chunk.lanes] = chunk.mean_loss, chunk.accuracy
        if keep_images:
            lane_loss[chunk.lanes], lane_correct[chunk.lanes] = chunk.loss, chunk.correct
    lane_of = program.lane_of_request
    return Scores(loss[lane_of], accuracy[lane_of], lane_of, lane_loss, lane_correct, program)


def run(
    program: Program,
    supernets: Sequence[Supernet],
    data_orders: Sequence[Sequence[Batch]],
    *,
    bn: BatchNorm | str = "batch",
    calibration: Sequence[Batch] | None = None,
    precision: Precision = "fp32",
    memory: int = DEFAULT_MEMORY,
    backend: ScoreBackend = "auto",
    threads: int | None = None,
) -> Iterator[ChunkScores]:
    """Run a program chunk by chunk.

    Args:
        program: What to compute.
        supernets: Weight sets that its lanes name.
        data_orders: Minibatches of each data order that its lanes name; all with equally many
            images.
        bn: Batch-norm modes, as in :func:`evaluate`.
        calibration: As in :func:`evaluate`.
        precision: As in :func:`evaluate`.
        memory: Budget in bytes for feature maps, as in :func:`evaluate`.
        backend: As in :func:`evaluate`.
        threads: As in :func:`evaluate`.

    Yields:
        The scores of each chunk as it is done.

    Raises:
        ValueError: If an argument does not fit; raised before the first chunk.
    """
    dtype, config = DTYPES.get(precision, torch.float32), program.layout.config
    modes = check_batch_norm(config, bn)
    chosen = choose_score_backend(backend, precision, modes)
    if chosen == "cuda":
        cuda_device.require()
    workers = check_threads(threads)
    if program.mode != Mode(modes.cells, config.affine):
        raise ValueError(f"bn: the program was built for {program.mode}, got {modes}")
    if calibration is not None and not modes.recalibrates:
        raise ValueError(f"calibration: no part of bn={str(modes)!r} recalibrates")
    check_lanes(program, len(supernets), len(data_orders))
    for k, supernet in enumerate(supernets):
        if supernet.config != config:
            raise ValueError(
                f"supernets[{k}]: wanted a supernet of {config}, got {supernet.config}"
            )
    streams = check_streams(config, data_orders, dtype)
    pooled = None
    if calibration is not None:
        pooled = check_batches(config, calibration, "calibration", dtype)
    cut = _plan(program, streams, pooled, modes, precision, memory, chosen, workers)
    runner: ChunkRunner
    if chosen == "reference":
        runner = Reference(cut, supernets, streams, modes, dtype, pooled)
    else:
        runner = Engine(
            cut, supernets, streams, modes, precision, workers, pooled, chosen, memory
        )  # fmt: skip
    height, width = streams[0][0].images.shape[2:]
    images = sum(len(batch.labels) for batch in streams[0])
    chunk_macs = native.host().count_work(cut.table(), height, width)["chunk_macs"]
    for chunk in range(cut.num_chunks):
        began = time.perf_counter()
        loss, correct = runner(chunk)
        elapsed_s = time.perf_counter() - began
        yield ChunkScores(cut.lanes_of(chunk), loss, correct, elapsed_s, chunk_macs[chunk] * images)


def _plan(
    program: Program, streams: list[list[Batch]], calibration: list[Batch] | None,
    modes: BatchNorm, precision: Precision, memory: int, backend: str, workers: int,
) -> Plan:  # fmt: skip
    """Cut a program into chunks; ``workers`` is the threads of the CPU engine."""
    sizes = [[len(batch.labels) for batch in stream] for stream in streams]
    measured = sizes[0] if calibration is None else [len(batch.labels) for batch in calibration]
    at_once = max(size for stream in sizes for size in stream)
    if modes.recalibrates:  # layer by layer over all images
        at_once = max(at_once, sum(measured))
    height, width = streams[0][0].images.shape[2:]
    lanes = _CARD_CHUNK_LANES if backend == "cuda" else MAX_CHUNK_LANES
    if backend in _CHUNK_IMAGES:
        images = sum(sizes[0]) + (sum(measured) if modes.recalibrates else 0)
        lanes = max(_MIN_CHUNK_LANES, min(lanes, _CHUNK_IMAGES[backend] // images))
    itemsize = 2 if precision == "bf16" else DTYPES[precision].itemsize
    return plan(
        program, batch=at_once, height=height, width=width, itemsize=itemsize,
        memory=UNBOUNDED if backend == "cuda" else memory,  # lanes are grouped there for theirs
        workers=workers if backend == "cpu" else 0,
        minibatches=len(measured) if modes.recalibrates else 1, max_chunk_lanes=lanes,
    )  # fmt: skip


def check_threads(threads: int | None) -> int:
    """Return a number of threads that this machine has.

    Args:
        threads: What was asked for; PyTorch's number when left out.

    Raises:
        ValueError: If it is below 1 or above the processors that this process may use.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    most = usable or 1
    if threads is None:
        return max(1, min(torch.get_num_threads(), most))
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= most:
        raise ValueError(f"threads: wanted 1..{most} (processors of this machine), got {threads!r}")
    return threads
