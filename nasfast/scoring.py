# SPDX-License-Identifier: MIT
"""What scoring the architectures of a run takes: loaded, checked, and run chunk by chunk."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nasfast import cuda_device, data, slow_paths, tables
from nasfast.backends import Precision, ScoreBackend, choose_score_backend
from nasfast.data import Batch
from nasfast.evaluate import ChunkScores, check_threads, compile_archs, run
from nasfast.lower import Merge
from nasfast.reference import BatchNorm
from nasfast.runs import Run, RunError
from nasfast.spaces import Architecture
from nasfast.store import stored_settings
from nasfast.supernet import Supernet


@dataclass
class Work:
    """What was computed so far.

    Attributes:
        archs: Architectures scored.
        macs: Multiply-accumulates of convolutions and classifiers, without calibration.
        computing_s: Time that their chunks took.
        elapsed_s: Time of the whole call: what came before, other weights and files included.
    """

    archs: int = 0
    macs: int = 0
    computing_s: float = 0.0
    elapsed_s: float = 0.0

    @property
    def archs_per_s(self) -> float:
        """Architectures a second of computing; NaN when there was none."""
        return self.archs / self.computing_s if self.computing_s else math.nan

    @property
    def gflops(self) -> float:
        """Billions of operations a second, two for a multiply-accumulate; NaN as above."""
        return 2e-9 * self.macs / self.computing_s if self.computing_s else math.nan

    def add(self, chunk: ScoredChunk) -> None:
        """Count a chunk."""
        self.archs += len(chunk.archs)
        self.macs += chunk.scores.macs
        self.computing_s += chunk.scores.elapsed_s


@dataclass(frozen=True, eq=False)
class ScoredChunk:
    """A chunk of lanes and the architectures that they stand for.

    Attributes:
        archs: Official indices, int64 ``[archs]``; every architecture of a lane is there.
        rows: Row of ``scores`` of each, ``[archs]``.
        scores: Results of the lanes.
    """

    archs: npt.NDArray[np.int64]
    rows: npt.NDArray[np.intp]
    scores: ChunkScores


@dataclass(frozen=True)
class ScoringJob:
    """Everything that scoring by the supernet of a run needs.

    Attributes:
        run: The run.
        supernet: Its trained weights.
        truth: Its ground truth.
        stream: Minibatches.
        archs: Architectures that it ranks.
        backend: That scores.
        isa: Instruction set of the CPU engine, name of the card, None for the reference.
        threads: Of the CPU engine.
    """

    run: Run
    supernet: Supernet
    truth: tables.Table | None
    stream: list[Batch]
    archs: list[Architecture]
    backend: ScoreBackend
    isa: str | None
    threads: int

    @classmethod
    def of(cls, run_: Run, backend: ScoreBackend | None = None) -> ScoringJob:
        """Load what a run needs; PyTorch takes its number of threads too.

        Args:
            run_: The run.
            backend: In place of the one that its scores come from.

        Raises:
            RunError: If the run is not trained, its weights are of another shape, or it names
                threads that this machine does not have.
            ValueError: If truth, images or options do not fit, or there is no card for backend
                ``"cuda"``.
        """
        config, rank = run_.config, run_.config.rank
        backend = backend or _chosen_backend(run_)
        if backend == "cuda":
            cuda_device.require()
        isa = slow_paths.isa_of(backend)
        threads = available_threads(config.threads)
        torch.set_num_threads(threads)
        truth, splits = run_.truth(), run_.splits()
        images = splits.valid if rank.images == "valid" else splits.test
        stream = data.batches(images, rank.batch_size, seed=config.seed, last=rank.last_batch)
        supernet = run_.supernet(splits)
        return cls(run_, supernet, truth, stream, run_.archs(), backend, isa, threads)

    @property
    def images(self) -> int:
        """Images of all minibatches."""
        return sum(len(batch.labels) for batch in self.stream)

    @property
    def where(self) -> str:
        """Backend and instruction set in words."""
        return slow_paths.named(self.backend, self.isa)

    def indices(self, archs: Sequence[Architecture]) -> npt.NDArray[np.int64]:
        """Return official indices, ``[archs]``."""
        return self.supernet.config.spec.to_indices(archs)

    def settings(self) -> dict[str, Any]:
        """Return what the scores depend on, as plain values."""
        return score_settings(self.run, self.supernet)

    def chunks(
        self, supernet: Supernet, archs: Sequence[Architecture], bn: str, precision: Precision,
        stream: Sequence[Batch] | None = None, merge: Merge = Merge.LINEAR,
    ) -> Iterator[ScoredChunk]:  # fmt: skip
        """Score architectures; equal ones are computed once.

        Args:
            supernet: Weights.
            archs: At least one architecture.
            bn: Batch-norm modes.
            precision: Of the arithmetic.
            stream: Minibatches; all of the job's when left out.
            merge: How much equal work is recognised.

        Yields:
            Each chunk as it is done.
        """
        index_of = self.indices(archs)
        program = compile_archs(supernet, archs, bn=bn, merge=merge)
        by_lane = np.argsort(program.lane_of_request, kind="stable")
        begin = np.searchsorted(program.lane_of_request[by_lane], np.arange(program.num_lanes + 1))
        members = [index_of[by_lane[a:b]] for a, b in itertools.pairwise(begin)]
        for scores in run(
            program, [supernet], [self.stream if stream is None else stream], bn=bn,
            precision=precision, memory=self.run.config.rank.memory_mib * 2**20,
            backend=self.backend, threads=self.threads,
        ):  # fmt: skip
            own = [members[lane] for lane in scores.lanes.tolist()]
            rows = np.repeat(np.arange(len(own)), [len(group) for group in own])
            yield ScoredChunk(np.concatenate(own), rows, scores)


def _chosen_backend(run_: Run) -> ScoreBackend:
    rank = run_.config.rank
    return choose_score_backend(rank.backend, rank.precision, BatchNorm.parse(rank.bn))


def score_settings(run_: Run, supernet: Supernet) -> dict[str, Any]:
    """Return what the scores of a run depend on, as plain values."""
    values = run_.config.model_dump(mode="json", include={"seed", "data", "rank"})
    del values["data"]["path"], values["rank"]["memory_mib"]  # may change without any effect
    values["rank"]["backend"] = _chosen_backend(run_)
    return {**values, "supernet": weights_digest(supernet)}


def weights_digest(supernet: Supernet) -> str:
    """Return a name for the weights of a supernet, by which others are told from them."""
    digest = hashlib.sha256(supernet.arena.numpy().tobytes()).hexdigest()
    return f"sha256 {digest[:16]}"


def as_scored(run_: Run) -> Run:
    """Return a run with the backend and precision of its scores, which options may have chosen.

    Raises:
        ValueError: If the score file names some that do not exist.
    """
    rank = stored_settings(run_.score_file).get("rank")
    rank = rank if isinstance(rank, dict) else {}
    return run_.with_options(backend=rank.get("backend"), precision=rank.get("precision"))


def available_threads(wanted: int) -> int:
    """Return a number of threads that this machine has.

    Raises:
        RunError: If it has fewer.
    """
    try:
        return check_threads(wanted)
    except ValueError as error:
        raise RunError(f"{error}; --threads takes another number for this command") from None
