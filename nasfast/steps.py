# SPDX-License-Identifier: MIT
"""The two steps of a run, training and ranking; each goes on where it stopped."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from nasfast import data, slow_paths
from nasfast.backends import DTYPES, Backend, Precision, choose_backend
from nasfast.data import Batch, Splits
from nasfast.evaluate import ChunkScores, check_threads, compile_archs, run
from nasfast.files import write_text
from nasfast.inputs import check_batch_norm
from nasfast.lane_backends import choose_lane_backend
from nasfast.lower import Merge
from nasfast.runs import Run, RunError
from nasfast.spaces import Architecture
from nasfast.store import ScoreStore, stored_settings
from nasfast.supernet import Supernet, write_tensors
from nasfast.train import EpochRecord, TrainState, train

FP32_SAMPLE = "supernet, fp32"  # in the score store: a sample of a ranking in bf16, in fp32
_SAMPLE_ARCHS = 200


def train_run(run_: Run, *, on_epoch: Callable[[EpochRecord, int], None] | None = None) -> Supernet:
    """Train the supernet of a run, from where it stands.

    What ranking will need (truth, batch-norm modes, minibatches) is checked before the first step.

    Args:
        run_: The run.
        on_epoch: Called after each epoch with its record and the number of epochs.

    Returns:
        The trained supernet, also in ``supernet.safetensors``.

    Raises:
        RunError: If the run cannot be trained, or not be ranked later, or it names threads that
            this machine does not have.
        OSError: If a file cannot be written.
    """
    config, t = run_.config, run_.config.train
    splits = run_.splits()
    if run_.supernet_file.is_file():
        return run_.supernet(splits)
    backend = choose_lane_backend(t.backend, t.precision, config.supernet.weights_on)
    isa = slow_paths.isa_of(backend)
    threads = available_threads(config.threads)
    torch.set_num_threads(threads)
    _check_ranking(run_, splits)
    supernet = Supernet.create(run_.shape(splits), config.seed).copy(DTYPES[t.precision])
    state, records = _load_state(run_.state_file, supernet)
    sampler = t.draws(supernet.config.spec, supernet.layout.num_cells, config.seed)
    loader = replace(t.loader(splits.train, config.seed), dtype=DTYPES[t.precision])
    settings = t.settings()
    run_.record_environment(
        "train", backend=backend, isa=isa, precision=t.precision, threads=threads
    )

    def after_epoch(record: EpochRecord, state: TrainState) -> None:
        records.append(record)
        _save_state(run_.state_file, supernet, state, records)
        _write_log(run_.log_file, records)
        if on_epoch is not None:
            on_epoch(record, t.epochs)

    train(
        supernet, loader, sampler, settings, state=state, on_epoch=after_epoch,
        backend=backend, precision=t.precision, threads=threads,
    )  # fmt: skip
    _write_log(run_.log_file, records)
    supernet.save(run_.supernet_file)
    run_.state_file.unlink(missing_ok=True)
    return supernet


def _write_log(path: Path, records: list[EpochRecord]) -> None:
    """Write all of the log, which the state holds too: a kill between the two leaves no gap."""
    write_text(path, "".join(json.dumps(asdict(record)) + "\n" for record in records))


def _check_ranking(run_: Run, splits: Splits) -> None:
    """Find out now, not after hours of training, that the ranking cannot work."""
    rank = run_.config.rank
    check_batch_norm(run_.shape(splits), rank.bn)
    run_.truth()
    images = len(splits.valid if rank.images == "valid" else splits.test)
    if rank.batch_size > images:
        raise RunError(
            f"rank.batch_size: wanted at most the {images} {rank.images} images of "
            f"{run_.config.data.name}, got {rank.batch_size}"
        )
    if rank.last_batch == "error" and images % rank.batch_size:
        raise RunError(
            f"rank.batch_size: wanted a divisor of the {images} {rank.images} images of "
            f"{run_.config.data.name}, got {rank.batch_size} (or last_batch = 'drop' or 'keep')"
        )


def _save_state(
    path: Path, supernet: Supernet, state: TrainState, records: list[EpochRecord]
) -> None:  # fmt: skip
    tensors = {f"weights.{name}": t for name, t in supernet.state_dict().items()}
    tensors |= {f"momentum.{name}": t for name, t in state.momentum.items()}
    log = json.dumps([asdict(record) for record in records])
    write_tensors(path, tensors, {"epoch": str(state.epoch), "log": log})


def _load_state(path: Path, supernet: Supernet) -> tuple[TrainState, list[EpochRecord]]:
    if not path.is_file():
        return TrainState(), []
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = file.metadata() or {}
        parts: dict[str, dict[str, Tensor]] = {"weights": {}, "momentum": {}}
        for name, tensor in tensors.items():
            part, _, key = name.partition(".")
            parts[part][key] = tensor
        for name, tensor in parts["momentum"].items():
            wanted = supernet.layout.by_name[name].shape
            if tuple(tensor.shape) != wanted or not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"momentum of {name}: wanted finite numbers {list(wanted)}")
        records = [EpochRecord(**record) for record in json.loads(header["log"])]
        state = TrainState(int(header["epoch"]), parts["momentum"])
        supernet.load_state_dict(parts["weights"])
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{path}: damaged training state ({error}); delete it to begin anew"
        ) from None
    return state, records


# Ranking.


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


# Which scores ('supernet', 'untrained', FP32_SAMPLE), architectures done, all, work on these scores
# in this call.
Progress = Callable[[str, int, int, Work], None]


def rank_run(run_: Run, *, on_progress: Progress | None = None) -> Work:
    """Score the architectures of a run that have no score yet.

    Those with a ground truth are scored by the untrained supernet too, as a control. Of a ranking
    in bf16 a sample is also scored in fp32, to be compared.

    Args:
        run_: A trained run.
        on_progress: Called after each chunk.

    Returns:
        What scoring by the supernet took in this call.

    Raises:
        RunError: If the run is not trained, its weights are of another shape, or it names threads
            that this machine does not have.
        ValueError: If truth, images or options do not fit.
        StoreError: If there are scores of other weights or settings.
        OSError: If a file cannot be written.
    """
    began = time.perf_counter()
    config, rank = run_.config, run_.config.rank
    backend = choose_backend(rank.backend, rank.precision)
    isa = slow_paths.isa_of(backend)
    threads = available_threads(config.threads)
    torch.set_num_threads(threads)
    truth, splits = run_.truth(), run_.splits()
    supernet = run_.supernet(splits)
    spec = supernet.config.spec
    images = splits.valid if rank.images == "valid" else splits.test
    stream = data.batches(images, rank.batch_size, seed=config.seed, last=rank.last_batch)
    wanted = run_.archs()
    with ScoreStore(run_.score_file, score_settings(run_, supernet)) as store:
        run_.record_environment("rank", backend=backend, isa=isa, threads=threads)
        memory = rank.memory_mib * 2**20
        scorer = _Scorer(store, stream, backend, isa, memory, threads, on_progress)
        work = scorer.score("supernet", supernet, wanted, rank.bn, rank.precision)
        if rank.precision == "bf16":
            sample = _sample(wanted, config.seed)
            scorer.score(FP32_SAMPLE, supernet, sample, rank.bn, "fp32")
        known = set() if truth is None else set(truth.known.tolist())
        control = [arch for arch in wanted if spec.to_index(arch) in known]
        # Running statistics of a supernet that saw no image mean nothing: batch statistics.
        untrained = Supernet.create(supernet.config, config.seed)
        scorer.score("untrained", untrained, control, "batch", rank.precision)
    work.elapsed_s = time.perf_counter() - began
    return work


def score_settings(run_: Run, supernet: Supernet) -> dict[str, Any]:
    """Return what the scores of a run depend on, as plain values."""
    values = run_.config.model_dump(mode="json", include={"seed", "data", "rank"})
    del values["data"]["path"], values["rank"]["memory_mib"]  # may change without any effect
    rank = run_.config.rank
    values["rank"]["backend"] = choose_backend(rank.backend, rank.precision)
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
    rank = stored_settings(run_.score_file).get("rank", {})
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


def _sample(archs: list[Architecture], seed: int) -> list[Architecture]:
    """Draw the architectures whose scores in two precisions are compared."""
    if len(archs) <= _SAMPLE_ARCHS:
        return archs
    drawn = np.random.default_rng(seed).choice(len(archs), _SAMPLE_ARCHS, replace=False)
    return [archs[k] for k in sorted(drawn.tolist())]


@dataclass(frozen=True)
class _Scorer:
    """Scores what has no score yet, chunk by chunk, into a store."""

    store: ScoreStore
    stream: list[Batch]
    backend: Backend
    isa: str | None
    memory: int
    threads: int
    on_progress: Progress | None

    def score(
        self, weights: str, supernet: Supernet, archs: list[Architecture], bn: str,
        precision: Precision,
    ) -> Work:  # fmt: skip
        """Score architectures and return what that took."""
        work = Work()
        if not archs:
            return work
        indices = np.array([supernet.config.spec.to_index(arch) for arch in archs], dtype=np.int64)
        done = self.store.done(weights)
        waits = [index not in done for index in indices.tolist()]
        pending, index_of = list(itertools.compress(archs, waits)), indices[waits]
        already = len(archs) - len(pending)
        self._tell(weights, already, len(archs), work)
        if not pending:
            return work
        self.store.note_origin(slow_paths.named(self.backend, self.isa))
        program = compile_archs(supernet, pending, bn=bn, merge=Merge.LINEAR)
        by_lane = np.argsort(program.lane_of_request, kind="stable")
        begin = np.searchsorted(program.lane_of_request[by_lane], np.arange(program.num_lanes + 1))
        members = [index_of[by_lane[a:b]].tolist() for a, b in itertools.pairwise(begin)]
        for chunk in run(
            program, [supernet], [self.stream], bn=bn, precision=precision, memory=self.memory,
            backend=self.backend, threads=self.threads,
        ):  # fmt: skip
            work.archs += self._add(weights, chunk, members)
            work.macs += chunk.macs
            work.computing_s += chunk.elapsed_s
            self._tell(weights, already + work.archs, len(archs), work)
        return work

    def _add(self, weights: str, chunk: ChunkScores, members: list[list[int]]) -> int:
        """Store a chunk; return how many architectures its lanes stand for."""
        rows = [
            (index, float(loss), int(right))
            for lane, loss, right in zip(
                chunk.lanes.tolist(), chunk.mean_loss, chunk.correct.sum(axis=1), strict=True
            )
            for index in members[lane]
        ]
        archs, losses, correct = zip(*rows, strict=True)
        self.store.add(weights, archs, losses, correct, chunk.correct.shape[1])
        return len(rows)

    def _tell(self, weights: str, done: int, total: int, work: Work) -> None:
        if self.on_progress is not None:
            self.on_progress(weights, done, total, work)
