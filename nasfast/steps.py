# SPDX-License-Identifier: MIT
"""The two steps of a run, training and ranking; each goes on where it stopped."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import safetensors
import torch
from torch import Tensor

from nasfast import cuda_device, slow_paths
from nasfast.backends import DTYPES, REDUCED_PRECISIONS, Precision
from nasfast.data import Splits
from nasfast.files import write_text
from nasfast.image_bits import ImageBits
from nasfast.inputs import check_batch_norm
from nasfast.lane_backends import choose_train_backend
from nasfast.runs import Run, RunError
from nasfast.scoring import ScoredChunk, ScoringJob, Work, available_threads
from nasfast.spaces import Architecture
from nasfast.store import ScoreStore
from nasfast.supernet import Supernet, write_tensors
from nasfast.train import EpochRecord, TrainState, train

_LOG = logging.getLogger(__name__)

FP32_SAMPLE = "supernet, fp32"  # in the score store: a sample of a ranking in tf32 or bf16
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
        RunError: If the run cannot be trained, or not be ranked later, it names threads that this
            machine does not have, or another process works on it.
        OSError: If a file cannot be written.
    """
    with run_.locked("train"):
        splits = run_.splits()
        if run_.supernet_file.is_file():
            run_.state_file.unlink(missing_ok=True)  # killed just before
            return run_.supernet(splits)
        return _train(run_, splits, on_epoch)


def _train(
    run_: Run, splits: Splits, on_epoch: Callable[[EpochRecord, int], None] | None
) -> Supernet:
    config, t = run_.config, run_.config.train
    backend = choose_train_backend(t.backend, t.precision, config.supernet.weights_on)
    if backend == "cuda":
        cuda_device.require()
    isa = slow_paths.isa_of(backend)
    threads = available_threads(config.threads)
    torch.set_num_threads(threads)
    check_ranking(run_, splits)
    supernet = Supernet.create(run_.shape(splits), config.seed).copy(DTYPES[t.precision])
    state, records = _load_state(run_.state_file, supernet)
    sampler = t.draws(config.supernet.spec, supernet.layout.num_cells, config.seed)
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


def check_ranking(run_: Run, splits: Splits) -> None:
    """Find out now, not after hours of training, that the ranking cannot work.

    Raises:
        RunError: If the images do not make its minibatches.
        ValueError: If truth or batch-norm modes do not fit.
    """
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
            wanted, dtype = supernet.layout.by_name[name].shape, supernet.arena.dtype
            finite = tensor.dtype == dtype and bool(torch.isfinite(tensor).all())
            if tuple(tensor.shape) != wanted or not finite:
                raise ValueError(f"momentum of {name}: wanted finite {dtype} {list(wanted)}")
        records = [EpochRecord(**record) for record in json.loads(header["log"])]
        state = TrainState(int(header["epoch"]), parts["momentum"])
        if state.epoch != len(records):
            raise ValueError(f"wanted records of {state.epoch} epochs, got {len(records)}")
        supernet.load_state_dict(parts["weights"])
    except (
        safetensors.SafetensorError, AttributeError, KeyError, RecursionError, RuntimeError,
        TypeError, ValueError,
    ) as error:  # fmt: skip
        raise RunError(
            f"{path}: damaged training state ({error}); delete it to begin anew"
        ) from None
    return state, records


# Ranking.

# Which scores ('supernet', 'untrained', FP32_SAMPLE), architectures done, all, work on these scores
# in this call.
Progress = Callable[[str, int, int, Work], None]


def rank_run(run_: Run, *, on_progress: Progress | None = None) -> Work:
    """Score the architectures of a run that have no score yet.

    Those with a ground truth are scored by the untrained supernet too, as a control. Of a ranking
    in tf32 or bf16 a sample is also scored in fp32, to be compared.

    Args:
        run_: A trained run.
        on_progress: Called after each chunk.

    Returns:
        What scoring by the supernet took in this call.

    Raises:
        RunError: If the run is not trained, its weights are of another shape, it names threads
            that this machine does not have, or another process works on it.
        ValueError: If truth, images or options do not fit.
        StoreError: If there are scores of other weights or settings, or a file is damaged.
        OSError: If a file cannot be written.
    """
    began = time.perf_counter()
    config, rank = run_.config, run_.config.rank
    job = ScoringJob.of(run_)
    supernet, spec = job.supernet, job.supernet.config.spec
    with run_.locked("rank"), ScoreStore(run_.score_file, job.settings()) as store:
        run_.record_environment("rank", backend=job.backend, isa=job.isa, threads=job.threads)
        if not store.done("supernet"):
            run_.bits_file.unlink(missing_ok=True)  # of scores that were deleted
        scorer = _Scorer(store, job, on_progress)
        with ImageBits(run_.bits_file, spec.num_archs, job.images) as bits:
            work = scorer.score("supernet", supernet, job.archs, rank.bn, rank.precision, bits)
        if rank.precision in REDUCED_PRECISIONS:
            sample = _sample(job.archs, config.seed)
            scorer.score(FP32_SAMPLE, supernet, sample, rank.bn, "fp32")
        known = np.array([], dtype=np.int64) if job.truth is None else job.truth.known
        has_truth = np.isin(job.indices(job.archs), known).tolist()
        control = [arch for arch, wanted in zip(job.archs, has_truth, strict=True) if wanted]
        # Running statistics of a supernet that saw no image mean nothing: batch statistics.
        untrained = Supernet.create(supernet.config, config.seed)
        scorer.score("untrained", untrained, control, "batch", rank.precision)
    work.elapsed_s = time.perf_counter() - began
    return work


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
    job: ScoringJob
    on_progress: Progress | None

    def score(
        self, weights: str, supernet: Supernet, archs: list[Architecture], bn: str,
        precision: Precision, bits: ImageBits | None = None,
    ) -> Work:  # fmt: skip
        """Score architectures and return what that took."""
        work = Work()
        if not archs:
            return work
        indices = self.job.indices(archs)
        scored = np.isin(indices, list(self.store.done(weights)))
        done = scored if bits is None else scored & bits.known(indices.tolist())
        pending = [arch for arch, is_done in zip(archs, done.tolist(), strict=True) if not is_done]
        already = len(archs) - len(pending)
        self._tell(weights, already, len(archs), work)
        if not pending:
            return work
        self.store.note_origin(self.job.where)
        has_score = set(indices[scored & ~done].tolist())
        if has_score:
            _LOG.warning(
                "%s: no valid bits of %d architectures that have a score; they are scored again",
                bits.path if bits is not None else "", len(has_score),
            )  # fmt: skip
        for chunk in self.job.chunks(supernet, pending, bn, precision):
            self._add(weights, chunk, has_score, bits)
            work.add(chunk)
            self._tell(weights, already + work.archs, len(archs), work)
        return work

    def _add(
        self, weights: str, chunk: ScoredChunk, has_score: set[int], bits: ImageBits | None
    ) -> None:  # fmt: skip
        """Store a chunk. Bits come first: what has a score has bits too, whenever it is killed."""
        correct = chunk.scores.correct[chunk.rows]
        if bits is not None:
            bits.write(chunk.archs.tolist(), correct)
        took = Work()
        took.add(chunk)
        self.store.add(
            weights, chunk.archs.tolist(), chunk.scores.mean_loss[chunk.rows].tolist(),
            correct.sum(axis=1).tolist(), correct.shape[1], replace=has_score,
            work={"archs": took.archs, "macs": took.macs, "computing_s": took.computing_s},
        )  # fmt: skip

    def _tell(self, weights: str, done: int, total: int, work: Work) -> None:
        if self.on_progress is not None:
            self.on_progress(weights, done, total, work)
