# SPDX-License-Identifier: MIT
"""A ranking that stops when it knows enough.

It goes minibatch by minibatch, not architecture by architecture, and drops architectures that can
no longer matter.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nasfast.anytime import Goal, TauInterval, contenders, looks, tau_interval
from nasfast.runs import Run, RunError
from nasfast.scoring import ScoredChunk, ScoringJob, Work
from nasfast.store import Store

_LOG = logging.getLogger(__name__)
_FLOAT = np.dtype("<f8")
_Floats = npt.NDArray[np.float64]
_Indices = npt.NDArray[np.int64]


class RoundStore(Store):
    """Mean losses of some minibatches, little-endian float64.

    A round takes the place of a weight set.
    """

    table = "rounds"
    columns = "losses BLOB NOT NULL"
    noun = "round"
    again = "begin anew"

    def add(self, name: str, archs: Sequence[int], losses: _Floats) -> None:
        """Add the rows of a chunk, ``[archs, minibatches]``, in one transaction.

        Raises:
            StoreError: If an architecture has a row already.
            OSError: If the disk refuses.
        """
        blobs = losses.astype(_FLOAT, copy=False)
        self._insert([(name, int(a), row.tobytes()) for a, row in zip(archs, blobs, strict=True)])

    def read(self, name: str, minibatches: int) -> dict[int, _Floats]:
        """Return the losses of a round, by official index.

        Raises:
            StoreError: If a row has another number of minibatches.
        """
        rows = dict(self._rows("arch, losses", name))
        for arch, blob in rows.items():
            if not isinstance(blob, bytes) or len(blob) != minibatches * _FLOAT.itemsize:
                got = f"{len(blob)} bytes" if isinstance(blob, bytes) else type(blob).__name__
                raise self._damaged(
                    f"architecture {arch} of round {name}: wanted {minibatches} losses, got {got}"
                )
        return {arch: np.frombuffer(blob, dtype=_FLOAT) for arch, blob in rows.items()}


@dataclass(frozen=True, eq=False)
class Look:
    """What is known after some minibatches.

    Attributes:
        minibatches: Seen so far.
        archs: Official indices of the architectures that still matter, best first, ``[archs]``.
        loss: Mean loss of each over the minibatches seen, ``[archs]``.
        tau: Kendall's tau-b with the ground truth; None for a goal of the top.
    """

    minibatches: int
    archs: _Indices
    loss: _Floats
    tau: TauInterval | None


@dataclass(frozen=True, eq=False)
class Outcome:
    """Where a ranking stopped.

    Attributes:
        goal: What it was to reach.
        last: The last look: of a goal of the top, its ``k`` architectures.
        minibatches: In the whole set.
        began_with: Architectures at the beginning.
        spent: Minibatches scored, summed over architectures.
        work: What this call computed.
    """

    goal: Goal
    last: Look
    minibatches: int
    began_with: int
    spent: int
    work: Work

    @property
    def spared(self) -> float:
        """Share of scoring every architecture on every minibatch that was not needed."""
        return 1.0 - self.spent / (self.began_with * self.minibatches)


# Minibatches seen when this round is done, all; architectures done, in this round; work so far.
UntilProgress = Callable[[int, int, int, int, Work], None]


def rank_until(run_: Run, goal: Goal, *, on_progress: UntilProgress | None = None) -> Outcome:
    """Score architectures on ever more minibatches until a goal is reached.

    Args:
        run_: A trained run; ``[rank]`` of its configuration holds, its scores play no part.
        goal: When to stop. One of tau scores the architectures that have a ground truth.
        on_progress: Called after each chunk.

    Returns:
        What is known at the end. The goal is always reached: at the latest when all was seen.

    Raises:
        RunError: If the run is not trained, there is no ground truth for tau, there are fewer
            architectures than the top wants, minibatches differ in size, or another process
            works on the run.
        ValueError: If truth, images or options do not fit.
        StoreError: If there are rounds of other weights or settings, or the file is damaged.
        OSError: If a file cannot be written.
    """
    began = time.perf_counter()
    job = ScoringJob.of(run_)
    truth = _check(run_, job, goal)
    work, spent = Work(), 0
    archs = np.sort(job.indices(job.archs))
    if truth is not None:
        archs = archs[np.isfinite(truth[archs])]
    total, began_with = len(job.stream), len(archs)
    losses = np.empty((began_with, 0))
    plan = looks(total)
    error = (1.0 - goal.confidence) / len(plan)
    with run_.locked("rank --until"), RoundStore(run_.until_file, job.settings()) as store:
        run_.record_environment(
            "rank", until=str(goal), backend=job.backend, isa=job.isa, threads=job.threads
        )
        for before, after in itertools.pairwise((0, *plan)):
            part = _round(job, store, archs, before, after, work, on_progress)
            losses = np.concatenate([losses, part], axis=1)
            spent += part.size
            tau = None
            if truth is not None:
                tau = tau_interval(losses, truth[archs], total, error, seed=run_.config.seed)
                is_reached = tau.half_width <= goal.half_width
            else:
                kept = contenders(losses, total, goal.k, error / (goal.k * began_with))
                archs, losses = archs[kept], losses[kept]
                is_reached = len(archs) == goal.k
            if is_reached:
                break
    mean = losses.mean(axis=1)
    order = np.argsort(np.where(np.isfinite(mean), mean, np.inf), kind="stable")
    work.elapsed_s = time.perf_counter() - began
    return Outcome(
        goal, Look(after, archs[order], mean[order], tau), total, began_with, spent, work
    )


def _check(run_: Run, job: ScoringJob, goal: Goal) -> _Floats | None:
    """Return the ground truth where the goal needs it, by official index."""
    sizes = {len(batch.labels) for batch in job.stream}
    if len(sizes) > 1:
        raise RunError(
            f"rank.last_batch: minibatches of {sorted(sizes)} images cannot be compared; "
            "wanted 'drop' or 'error'"
        )
    if goal.kind == "top":
        if goal.k > len(job.archs):
            raise RunError(f"until: wanted top-{goal.k} of {len(job.archs)} architectures")
        return None
    if job.truth is None:
        raise RunError(f"until: {goal} needs a ground truth, and {run_.folder} names none")
    known = np.isfinite(job.truth.truth[job.indices(job.archs)])
    if np.count_nonzero(known) < 2:
        raise RunError(f"until: {goal} needs at least 2 architectures that have a ground truth")
    return job.truth.truth


def _round(
    job: ScoringJob, store: RoundStore, archs: _Indices, begin: int, end: int, work: Work,
    on_progress: UntilProgress | None,
) -> _Floats:  # fmt: skip
    """Score some minibatches, or read what was kept: losses, ``[archs, end - begin]``."""
    name = f"minibatches {begin} to {end}"
    stream = job.stream[begin:end]
    rows = store.read(name, end - begin)
    pending = [index for index in archs.tolist() if index not in rows]
    done = len(archs) - len(pending)

    def tell() -> None:
        if on_progress is not None:
            on_progress(end, len(job.stream), done, len(archs), work)

    tell()
    if pending:
        store.note_origin(job.where)
        spec, rank = job.supernet.config.spec, job.run.config.rank
        for chunk in job.chunks(
            job.supernet, spec.from_indices(pending), rank.bn, rank.precision,
            stream,
        ):  # fmt: skip
            losses = _by_minibatch(chunk, len(stream))
            store.add(name, chunk.archs.tolist(), losses)
            rows |= dict(zip(chunk.archs.tolist(), losses, strict=True))
            work.add(chunk)
            done += len(chunk.archs)
            tell()
    return np.array([rows[index] for index in archs.tolist()]).reshape(len(archs), end - begin)


def _by_minibatch(chunk: ScoredChunk, count: int) -> _Floats:
    """Return mean losses, ``[archs, count]``."""
    lanes, images = chunk.scores.loss.shape
    # Row by row: numpy's blocked sum over a matrix may depend on how many rows it has.
    rows = chunk.scores.loss.reshape(lanes * count, images // count)
    return np.array([np.mean(row) for row in rows]).reshape(lanes, count)[chunk.rows]
