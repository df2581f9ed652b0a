# SPDX-License-Identifier: MIT
"""Fine-tuning the architectures of a run, chunk by chunk; it goes on where it stopped."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nasfast import cuda_device, data, slow_paths, tables
from nasfast.curve_store import CurveStore
from nasfast.curves import Trainings
from nasfast.data import Batch, Splits
from nasfast.finetune import run
from nasfast.lane_backends import LaneBackend, choose_finetune_backend
from nasfast.reference import BatchNorm
from nasfast.runs import Run, RunError
from nasfast.scoring import available_threads, weights_digest
from nasfast.store import stored_settings
from nasfast.supernet import Supernet

_LOG = logging.getLogger(__name__)


@dataclass
class FinetuneWork:
    """What was computed so far.

    Attributes:
        archs: Architectures fine-tuned.
        steps: Steps of SGD taken; equal functions took theirs once.
        computing_s: Time that their chunks took.
        elapsed_s: Time of the whole call.
    """

    archs: int = 0
    steps: int = 0
    computing_s: float = 0.0
    elapsed_s: float = 0.0

    @property
    def steps_per_s(self) -> float:
        """Steps a second of computing; NaN when there were none."""
        return self.steps / self.computing_s if self.computing_s else float("nan")


# Which weights ('supernet', 'untrained'), architectures done, all, work on these in this call.
FinetuneProgress = Callable[[str, int, int, FinetuneWork], None]


def finetune_run(run_: Run, *, on_progress: FinetuneProgress | None = None) -> FinetuneWork:
    """Fine-tune the architectures of a run that have no curves yet.

    Where there is a ground truth, architectures that have one are drawn, and they are fine-tuned
    from the untrained supernet too, as a control.

    Args:
        run_: A trained run.
        on_progress: Called after each chunk.

    Returns:
        What fine-tuning took in this call.

    Raises:
        RunError: If the run is not trained, its weights are of another shape, or it names threads
            that this machine does not have.
        ValueError: If truth, images or options do not fit.
        StoreError: If there are curves of other weights or settings.
        OSError: If a file cannot be written.
    """
    began = time.perf_counter()
    config, section = run_.config, run_.config.finetune
    backend = _chosen_backend(run_)
    if backend == "cuda":
        cuda_device.require()
    isa = slow_paths.isa_of(backend)
    threads = available_threads(config.threads)
    torch.set_num_threads(threads)
    truth, splits = run_.truth(), run_.splits()
    supernet = run_.supernet(splits)
    indices = sampled(run_, truth)
    batches, validation = minibatches(run_, splits)
    starts = {"supernet": supernet}
    if truth is not None and section.control:
        starts["untrained"] = Supernet.create(supernet.config, config.seed)
    work = FinetuneWork()
    settings = curve_settings(run_, supernet)
    with run_.locked("finetune"), CurveStore(run_.curve_file, settings) as store:
        run_.record_environment("finetune", backend=backend, isa=isa, threads=threads)
        for name, start in starts.items():
            done = store.done(name)
            pending = np.array([i for i in indices.tolist() if i not in done], dtype=np.int64)
            own = _Progress(name, len(indices) - len(pending), len(indices), on_progress)
            own.tell()
            if len(pending):
                store.note_origin(slow_paths.named(backend, isa))
            archs = supernet.config.spec.from_indices(pending.tolist())
            for chunk in run(
                Trainings.grid(archs, lr=section.lr), [start], [batches], section.schedule(),
                validation=validation, precision=section.precision,
                memory=section.memory_mib * 2**20, backend=backend, threads=threads,
            ) if archs else ():  # fmt: skip
                lanes = len(np.unique(chunk.lane_of_training))
                took = (len(chunk.trainings), lanes * section.steps, chunk.elapsed_s)
                store.add(
                    name, pending[chunk.trainings].tolist(), chunk.curves,
                    dict(zip(("archs", "steps", "computing_s"), took, strict=True)),
                )  # fmt: skip
                own.add(*took)
            work.archs += own.work.archs
            work.steps += own.work.steps
            work.computing_s += own.work.computing_s
    work.elapsed_s = time.perf_counter() - began
    return work


class _Progress:
    """Counts the work on one weight set, and tells of it."""

    def __init__(
        self, name: str, already: int, total: int, on_progress: FinetuneProgress | None
    ) -> None:  # fmt: skip
        self.work = FinetuneWork()
        self._name, self._already, self._total = name, already, total
        self._on_progress = on_progress

    def add(self, archs: int, steps: int, elapsed_s: float) -> None:
        """Count a chunk."""
        self.work.archs += archs
        self.work.steps += steps
        self.work.computing_s += elapsed_s
        self.tell()

    def tell(self) -> None:
        """Call back."""
        if self._on_progress is not None:
            self._on_progress(self._name, self._already + self.work.archs, self._total, self.work)


def sampled(run_: Run, truth: tables.Table | None) -> npt.NDArray[np.int64]:
    """Return the official indices of the architectures that a run fine-tunes, ascending.

    Raises:
        RunError: If the ground truth knows none of those allowed.
    """
    section, spec = run_.config.finetune, run_.config.supernet.spec
    pool = np.sort(spec.to_indices(spec.enumerate(spec.mask(section.without))))
    if truth is not None:
        pool = np.intersect1d(pool, truth.known)
    if len(pool) == 0:
        raise RunError(f"{run_.folder}: the ground truth knows no architecture to fine-tune")
    if len(pool) <= section.archs:
        return pool
    drawn = np.random.default_rng(section.sample_seed).choice(
        len(pool), section.archs, replace=False
    )
    return pool[np.sort(drawn)]


def minibatches(run_: Run, splits: Splits) -> tuple[list[Batch], list[Batch]]:
    """Return the training minibatches, one for each step, and the validation minibatches.

    Training goes on with the epochs that come after those of the supernet, changed as those were.

    Raises:
        RunError: If there are fewer images than a minibatch has.
    """
    config, section = run_.config, run_.config.finetune
    part = splits.valid if section.images == "valid" else splits.test
    for name, images in (("train", splits.train), (section.images, part)):
        if section.batch_size > len(images):
            raise RunError(
                f"finetune.batch_size: wanted at most the {len(images)} {name} images of "
                f"{config.data.name}, got {section.batch_size}"
            )
    train = config.train.model_copy(update={"batch_size": section.batch_size})
    loader = train.loader(splits.train, config.seed)
    if section.steps > loader.steps_per_epoch:
        _LOG.info(
            "%d steps go through the %d training minibatches more than once, shuffled anew",
            section.steps, loader.steps_per_epoch,
        )  # fmt: skip
    stream = _epochs(loader, config.train.epochs)
    batches = list(itertools.islice(stream, section.steps))
    return batches, data.batches(part, section.batch_size, seed=config.seed, last="drop")


def _epochs(loader: data.TrainLoader, first: int) -> Iterator[Batch]:
    for epoch in itertools.count(first):
        yield from loader.epoch(epoch)


def _chosen_backend(run_: Run) -> LaneBackend:
    section = run_.config.finetune
    return choose_finetune_backend(
        section.backend, section.precision, BatchNorm.parse(section.bn),
        run_.config.supernet.weights_on,
    )  # fmt: skip


def curve_settings(run_: Run, supernet: Supernet) -> dict[str, Any]:
    """Return what the curves of a run depend on, as plain values."""
    values = run_.config.model_dump(mode="json", include={"seed", "data", "train", "finetune"})
    del values["data"]["path"]
    section, train = values["finetune"], values["train"]
    for key in ("archs", "sample_seed", "without", "control", "epoch_steps", "memory_mib"):
        del section[key]  # which curves there are, or how they are made or read: not what they are
    kept = ("epochs", "crop_padding", "flip", "cutout")
    values["train"] = {key: train[key] for key in kept}
    section["backend"] = _chosen_backend(run_)
    return {**values, "supernet": weights_digest(supernet)}


def as_finetuned(run_: Run) -> Run:
    """Return a run with the settings of its curves, which options may have chosen.

    Raises:
        ValueError: If the curve file names some that do not exist.
    """
    stored = stored_settings(run_.curve_file).get("finetune")
    return run_.with_options("finetune", **(stored if isinstance(stored, dict) else {}))
