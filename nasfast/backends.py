# SPDX-License-Identifier: MIT
"""What runs a chunk of lanes: plain PyTorch (the definition), the CPU engine or a CUDA device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nasfast import cuda_device, native
from nasfast.data import Batch
from nasfast.plan import Plan
from nasfast.primitives import loss_and_correct
from nasfast.reference import BatchNorm, Executor, Normaliser, Weights
from nasfast.slow_paths import warn_of_slow_paths
from nasfast.supernet import Supernet

Precision = Literal["fp32", "tf32", "bf16", "fp64"]
Backend = Literal["auto", "cpu", "reference"]  # that trains
ScoreBackend = Literal["auto", "cpu", "cuda", "reference"]
PRECISIONS: dict[str, tuple[str, ...]] = {
    "reference": ("fp32", "fp64"),
    "cpu": ("fp32", "bf16"),
    "cuda": cuda_device.PRECISIONS,
}
# Those that round products to fewer bits than float32 has.
REDUCED_PRECISIONS = ("tf32", "bf16")
# What the reference computes with, and what images are converted to; the engines take float32.
DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.float32,
    "fp64": torch.float64,
}

LossAndCorrect = tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]


def choose_backend(backend: Backend, precision: Precision) -> Literal["cpu", "reference"]:
    """Return the backend of a run.

    Args:
        backend: ``"auto"``: the CPU engine where it has the precision, otherwise the reference.
        precision: Precision that one of them has.

    Raises:
        ValueError: If backend or precision is unknown, or the one does not have the other.
    """
    _check_names(backend, precision, get_args(Backend))
    if backend == "auto":
        return "cpu" if precision in PRECISIONS["cpu"] else "reference"
    return backend


def _check_names(backend: str, precision: str, backends: tuple[str, ...]) -> None:
    if precision not in get_args(Precision):
        raise ValueError(
            f"precision: wanted one of {', '.join(get_args(Precision))}, got {precision!r}"
        )
    if backend not in backends:
        raise ValueError(f"backend: wanted one of {', '.join(backends)}, got {backend!r}")
    named = backends if backend == "auto" else (backend,)
    has = [p for p in get_args(Precision) if any(p in PRECISIONS.get(n, ()) for n in named)]
    if precision not in has:
        raise ValueError(f"precision: backend {backend!r} has {', '.join(has)}, got {precision!r}")


def wants_card(precision: Precision) -> bool:
    """Return whether a CUDA device alone has a precision."""
    return [name for name, some in PRECISIONS.items() if precision in some] == ["cuda"]


def check_score_backend(backend: ScoreBackend, precision: Precision, modes: BatchNorm) -> None:
    """Check that a backend scores in a precision and with batch-norm modes, wherever that is.

    Raises:
        ValueError: If backend or precision is unknown, or the one does not have the other or what
            the modes ask for.
    """
    _check_names(backend, precision, get_args(ScoreBackend))
    if backend == "cuda" and modes.recalibrates:
        raise ValueError(
            f"backend: 'cuda' does not recalibrate, got bn={str(modes)!r}; use 'cpu' or 'reference'"
        )
    if wants_card(precision) and modes.recalibrates:
        raise ValueError(
            f"precision: {precision!r} wants a CUDA device, which does not recalibrate, "
            f"got bn={str(modes)!r}"
        )


def choose_score_backend(
    backend: ScoreBackend, precision: Precision, modes: BatchNorm
) -> Literal["cpu", "cuda", "reference"]:
    """Return the backend that scores.

    Whether there is a card is asked for ``"auto"`` alone: what was scored on one is read elsewhere
    too. :func:`nasfast.cuda_device.require` asks before scoring.

    Args:
        backend: ``"auto"``: a card if there is one that has the precision and the modes, otherwise
            the CPU engine where it has the precision, otherwise the reference where that has it.
        precision: Precision.
        modes: Batch-norm modes.

    Raises:
        ValueError: As :func:`check_score_backend`, or ``"auto"`` is asked for what a card alone
            has, and there is none.
    """
    check_score_backend(backend, precision, modes)
    if backend != "auto":
        return backend
    if wants_card(precision):
        missing = cuda_device.why_not()
        if missing:
            raise ValueError(f"precision: {precision!r} wants a CUDA device, but {missing}")
    elif precision not in PRECISIONS["cpu"]:
        return "reference"
    if not cuda_device.has_kernels():
        return "cpu"
    missing = cuda_device.why_no_card()
    if not missing and modes.recalibrates:
        missing = "'cuda' does not recalibrate"
    if missing:
        cuda_device.say_cpu(missing)
        return "cpu"
    cuda_device.say_card()
    return "cuda"


class ChunkRunner(Protocol):
    """Scores the lanes of a chunk on the minibatches of their data order."""

    def __call__(self, chunk: int) -> LossAndCorrect:
        """Return loss and correctness, ``[lanes, images]`` each."""
        ...


class Engine:
    """An engine: ``csrc/engine`` through :func:`nasfast.ops.run_program`.

    Args:
        cut: Program and chunks.
        supernets: Weight sets.
        streams: Minibatches of each data order.
        modes: Batch-norm modes.
        precision: ``"fp32"``, ``"bf16"``, or on a CUDA device ``"tf32"``.
        threads: Threads.
        calibration: Minibatches for parts that recalibrate; None: those that are scored.
        device: ``"cpu"`` or ``"cuda"``, where weights and images are brought once.
        memory: Budget in bytes on a CUDA device, which takes as many lanes of a chunk at a time as
            fit; on the CPU, chunks are made for theirs.

    Raises:
        ValueError: If ``NASFAST_ISA`` names an instruction set that is not there.
        ImportError: If the engine is not built.
    """

    def __init__(
        self, cut: Plan, supernets: Sequence[Supernet], streams: Sequence[Sequence[Batch]],
        modes: BatchNorm, precision: str, threads: int, calibration: Sequence[Batch] | None,
        device: Literal["cpu", "cuda"] = "cpu", memory: int = 0,
    ) -> None:  # fmt: skip
        if device == "cpu":
            warn_of_slow_paths()
        self._cut, self._table = cut, torch.from_numpy(cut.table())
        arenas = [supernet.arena.detach().to(device, torch.float32) for supernet in supernets]
        self._arenas = arenas[0][None] if len(arenas) == 1 else torch.stack(arenas)
        self._streams = [
            (images.to(device), labels.to(device), sizes)
            for images, labels, sizes in map(concatenated, streams)
        ]
        self._options: dict[str, Any] = dict(
            precision=precision, fixed=modes.fixed, last=modes.last, threads=threads, memory=memory
        )
        if calibration is not None:
            images, _, sizes = concatenated(calibration)
            self._options |= dict(calibration=images, calibration_sizes=sizes)

    def __call__(self, chunk: int) -> LossAndCorrect:
        """Score a chunk."""
        lanes = self._cut.lanes_of(chunk)
        images, labels, sizes = self._streams[int(self._cut.program.lanes[lanes[0], 2])]
        loss, correct = native.ops().run_program(
            self._table, self._arenas, images, labels, sizes=sizes, chunk=chunk, lanes=len(lanes),
            **self._options,
        )  # fmt: skip
        return loss.cpu().numpy().astype(np.float64), correct.cpu().numpy()


def concatenated(batches: Sequence[Batch]) -> tuple[Tensor, Tensor, list[int]]:
    """Return images, labels, and the sizes of the minibatches that they are."""
    images = [batch.images for batch in batches]
    labels = torch.cat([batch.labels for batch in batches])
    return torch.cat(images) if len(images) > 1 else images[0], labels, [len(i) for i in images]


class Reference:
    """Plain PyTorch, one lane after another; computes with one of PyTorch's threads.

    Some of its kernels round differently with more.

    Args:
        cut: Program and chunks.
        supernets: Weight sets.
        streams: Minibatches of each data order.
        modes: Batch-norm modes.
        dtype: float32 or float64.
        calibration: Minibatches for parts that recalibrate; None: those that are scored.
    """

    def __init__(
        self, cut: Plan, supernets: Sequence[Supernet], streams: Sequence[Sequence[Batch]],
        modes: BatchNorm, dtype: torch.dtype, calibration: Sequence[Batch] | None,
    ) -> None:  # fmt: skip
        self.cut, self.streams = cut, streams
        self.modes, self.calibration = modes, calibration
        program = cut.program
        self.executors = [
            Executor(program, Weights(program.layout, dict(s.copy(dtype).named_tensors())))
            for s in supernets
        ]

    @torch.no_grad()
    def __call__(self, chunk: int) -> LossAndCorrect:
        """Score a chunk."""
        with one_thread():
            return self._run(chunk)

    def _run(self, chunk: int) -> LossAndCorrect:
        cut = self.cut
        lanes, shared = cut.lanes_of(chunk), cut.shared_of(chunk)
        _, weight_set, order = cut.program.lanes[lanes[0]].tolist()
        executor, stream = self.executors[weight_set], self.streams[order]
        networks = [int(network) for network in cut.program.lanes[lanes, 0]]
        norms = [Normaliser(self.modes)] * len(lanes)
        common = norms[0]
        if self.modes.recalibrates:
            common, norms = calibrate(
                executor, networks, shared, self.calibration or stream, self.modes
            )
        images = sum(len(batch.labels) for batch in stream)
        loss = np.empty((len(lanes), images))
        correct = np.empty((len(lanes), images), dtype=np.bool_)
        begin = 0
        for batch in stream:
            stem = executor.stem(batch.images, common)
            values = executor.shared(stem, shared, common)
            end = begin + len(batch.labels)
            for row, network in enumerate(networks):
                logits = executor.logits(network, stem, values, norms[row])
                lane_loss, lane_correct = loss_and_correct(logits, batch.labels)
                loss[row, begin:end] = lane_loss.numpy()
                correct[row, begin:end] = lane_correct.numpy()
            begin = end
        return loss, correct


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch compute with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def calibrate(
    executor: Executor, networks: Sequence[int], shared: Sequence[int], batches: Sequence[Batch],
    modes: BatchNorm,
) -> tuple[Normaliser, list[Normaliser]]:  # fmt: skip
    """Measure pooled statistics with the reference, layer by layer over all images at once.

    Returns:
        Batch norm of what the lanes share, and of each lane.
    """
    images = torch.cat([batch.images for batch in batches])
    sizes = [len(batch.labels) for batch in batches]
    common = Normaliser(modes, recording=sizes)
    stem = executor.stem(images, common)
    values = executor.shared(stem, shared, common)
    common.recording = ()
    norms = []
    for network in networks:
        own = Normaliser(modes, recording=sizes)
        executor.logits(network, stem, values, own)
        own.recording = ()
        norms.append(own)
    return common, norms
