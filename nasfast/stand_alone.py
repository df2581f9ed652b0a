# SPDX-License-Identifier: MIT
"""Tables of architectures trained on their own: ground truth for a ranking, built resumably."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nasfast import slow_paths, tables
from nasfast.config import TableConfig, chosen_archs
from nasfast.data import Splits
from nasfast.data.sampling import mix_seeds
from nasfast.files import differences
from nasfast.from_scratch import FromScratch
from nasfast.journal import Journal
from nasfast.lane_backends import choose_lane_backend
from nasfast.layout import Layout, SupernetConfig
from nasfast.origins import origin_of
from nasfast.plan import DEFAULT_MEMORY
from nasfast.program import build_training
from nasfast.runs import environment
from nasfast.spaces import Architecture
from nasfast.spaces.spec import IntArray
from nasfast.tables import trainings

# Trainings done (epochs of those in work count as parts of one), and all trainings.
Progress = Callable[[float, int], None]


def build_table(
    config: TableConfig,
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    on_progress: Progress | None = None,
) -> tables.TrainingTable:
    """Train a sample of a space, or all of it, from scratch and write a table of trainings.

    With merging ``"linear"``, architectures of the same function, which have the same weights,
    gradients and minibatches, are trained once. With ``"none"`` each is trained, copy ``k`` of a
    function (in the official order of the whole space) with ``mix_seeds(seed, k)`` in place of the
    seed for ``k`` above 0, so that copies differ by the noise of training.

    Chunks of trainings are kept in ``PATH.progress`` as they are done, so a killed build goes on,
    to the same bytes but for the measured seconds; the file is removed once the table is written.
    A table that is there already is left as it is.

    Args:
        config: What to train, and how: :class:`nasfast.from_scratch.FromScratch`.
        path: Table to write, ``.npz``.
        threads: Threads of the engine; PyTorch's number when left out. They change no result.
        memory: Budget in bytes for private weights and feature maps; it changes no result.
        on_progress: Called with trainings done and all trainings, after each epoch of a chunk.

    Returns:
        The table, as it was written.

    Raises:
        ValueError: If the table or the progress file is of another configuration or damaged, an
            argument does not fit, or the memory is too small for one lane.
        OSError: If a file cannot be written.
    """
    target = Path(path)
    if target.suffix != ".npz":
        raise ValueError(f"{target}: wanted the name of a table to end in .npz")
    splits, archs = config.data.load(), sampled(config)
    trainer = FromScratch(
        network_shape(config, splits), config.train.loader(splits.train, 0),
        config.train.settings(), splits.valid, splits.test, config.table.backend,
        config.table.precision, threads, memory,
    )  # fmt: skip
    work, settings = Work.of(config, trainer.shape, archs), table_settings(config, splits)
    total = len(work.archs) * len(config.table.seeds)
    progress = target.with_name(target.name + ".progress")
    if target.exists():
        _check_same(target, config, archs, settings)
        progress.unlink(missing_ok=True)  # left by a kill just after the table was written
        if on_progress is not None:
            on_progress(total, total)
        return trainings.read(target, config.supernet.spec)
    with Journal(progress, settings) as journal:
        done = _finished(journal, work, config)
        if on_progress is not None:
            on_progress(len(done), total)
        _train_all(trainer, work, config, journal, done, on_progress)
        trainings.write(
            target,
            _collected(done, work, config),
            name=config.name,
            truth_name=config.table.truth_name,
            archs=archs,
            network=work.network,
            merging=config.table.merging,
            images=(len(splits.valid), len(splits.test)),
            settings=settings,
            measured=_measured(journal),
        )
        journal.remove()
    return trainings.read(target, config.supernet.spec)


def sampled(config: TableConfig) -> list[Architecture]:
    """Return the architectures of a table in official order."""
    table = config.table
    return chosen_archs(config.supernet.spec, table.archs, table.sample_seed, config.train.without)


def network_shape(config: TableConfig, splits: Splits) -> SupernetConfig:
    """Return the shape of the stand-alone networks of a table."""
    return SupernetConfig(
        classes=splits.num_classes,
        in_channels=splits.train.images.shape[1],
        track=True,
        **config.supernet.model_dump(),
    )


def table_settings(config: TableConfig, splits: Splits) -> dict[str, Any]:
    """Return everything that the trainings of a table depend on, as plain values."""
    values = config.model_dump(mode="json", exclude={"name": True, "table": {"truth_name"}})
    table = values.pop("table")
    table["backend"] = choose_lane_backend(config.table.backend, config.table.precision)
    del values["data"]["path"]  # the images themselves count
    digest = hashlib.sha256()
    for part in (splits.train, splits.valid, splits.test):
        digest.update(part.images.numpy().tobytes())
        digest.update(part.labels.numpy().tobytes())
    values["data"]["images"] = f"sha256 {digest.hexdigest()[:16]}"
    return {**table, **values}


def _check_same(
    path: Path, config: TableConfig, archs: list[Architecture], settings: dict[str, Any]
) -> None:
    wanted = {
        "name": config.name,
        "truth_name": config.table.truth_name,
        "settings": settings,
        "archs": [arch.spec.to_index(arch) for arch in archs],
    }
    changed = differences(trainings.identity(path), wanted)
    if changed:
        raise ValueError(
            f"{path}: holds a table of another configuration ({'; '.join(changed):.500}); "
            "delete it, or give another file with --out"
        )


# What there is to train.


@dataclass(frozen=True, eq=False)
class Work:
    """The trainings of a table.

    Attributes:
        network: Function of each architecture of the table, numbered by first appearance, int32.
        archs: Architecture of each training.
        indices: Its official index.
        copies: Which copy of its function it is.
    """

    network: IntArray
    archs: list[Architecture]
    indices: list[int]
    copies: list[int]

    @classmethod
    def of(
        cls, config: TableConfig, shape: SupernetConfig, archs: Sequence[Architecture]
    ) -> Work:  # fmt: skip
        """Find out which architectures of a table are the same function."""
        spec, layout = shape.spec, Layout(shape)
        network = _functions(layout, archs)
        if config.table.merging == "linear":
            _, first = np.unique(network, return_index=True)
            chosen = [archs[k] for k in first.tolist()]
            return cls(network, chosen, [spec.to_index(a) for a in chosen], [0] * len(chosen))
        indices = [spec.to_index(arch) for arch in archs]
        copies = _copies(_functions(layout, spec.enumerate()))
        return cls(network, list(archs), indices, copies[indices].tolist())


def _functions(layout: Layout, archs: Sequence[Architecture]) -> IntArray:
    """Number the functions of architectures by first appearance, int32 ``[archs]``."""
    lanes = build_training(layout, archs).lane_of_request
    _, first, of = np.unique(lanes, return_index=True, return_inverse=True)
    number = np.empty(len(first), dtype=np.int32)
    number[np.argsort(first)] = np.arange(len(first))
    return number[of]


def _copies(network: IntArray) -> npt.NDArray[np.int64]:
    """Count how many of the same number stand before each, ``[archs]``."""
    order = np.argsort(network, kind="stable")
    ordered = network[order]
    copies = np.empty(len(network), dtype=np.int64)
    copies[order] = np.arange(len(network)) - np.searchsorted(ordered, ordered)
    return copies


# Training it, from where it stands.

_Key = tuple[int, int]  # seed, official index


@dataclass(frozen=True)
class _Result:
    loss: list[float]  # of each epoch
    valid: int
    test: int
    diverged_at: int


def _train_all(
    trainer: FromScratch, work: Work, config: TableConfig, journal: Journal,
    done: dict[_Key, _Result], on_progress: Progress | None,
) -> None:  # fmt: skip
    """Train what is not done; trainings with one seed and one copy number go together."""
    by_copy = sorted(range(len(work.archs)), key=work.copies.__getitem__)
    total = len(work.archs) * len(config.table.seeds)

    def on_epoch(lanes: int, epochs: int) -> None:
        if on_progress is not None:
            on_progress(len(done) + lanes * epochs / config.train.epochs, total)

    for seed in config.table.seeds:
        for copy, members in itertools.groupby(by_copy, key=work.copies.__getitem__):
            rows = [row for row in members if (seed, work.indices[row]) not in done]
            if not rows:
                continue
            origin = _origin(config, journal)
            own_seed = mix_seeds(seed, copy) if copy else seed
            archs = [work.archs[row] for row in rows]
            for chunk in trainer.train(archs, own_seed, on_epoch=on_epoch):
                record = {
                    "seed": seed,
                    "archs": [work.indices[rows[lane]] for lane in chunk.lanes.tolist()],
                    "loss": chunk.train_loss.tolist(),
                    "valid": chunk.valid_correct.tolist(),
                    "test": chunk.test_correct.tolist(),
                    "diverged_at": chunk.diverged_at.tolist(),
                    "elapsed_s": chunk.elapsed_s,
                    "by": origin,
                }
                journal.append(record)
                done |= _results(record)


def _results(record: dict[str, Any]) -> dict[_Key, _Result]:
    columns = (record[key] for key in ("archs", "loss", "valid", "test", "diverged_at"))
    return {
        (record["seed"], index): _Result(*result)
        for index, *result in zip(*columns, strict=True)
    }  # fmt: skip


def _finished(journal: Journal, work: Work, config: TableConfig) -> dict[_Key, _Result]:
    """Return the finished trainings of a journal."""
    done: dict[_Key, _Result] = {}
    known = {(seed, index) for seed in config.table.seeds for index in work.indices}
    for number, record in enumerate(journal.records):
        try:
            new = _results(record)
            sound = new.keys() <= known - done.keys()
        except (KeyError, TypeError, ValueError):
            sound = False
        if not sound:
            raise ValueError(
                f"{journal.path}: damaged (record {number}); delete it to begin anew"
            )  # fmt: skip
        done |= new
    return done


def _collected(
    done: dict[_Key, _Result], work: Work, config: TableConfig
) -> trainings.Trainings:  # fmt: skip
    rows = [[done[seed, index] for seed in config.table.seeds] for index in work.indices]

    def column(name: str) -> npt.NDArray[Any]:
        return np.array([[getattr(result, name) for result in row] for row in rows])

    return trainings.Trainings(*map(column, ("loss", "valid", "test", "diverged_at")))


def _origin(config: TableConfig, journal: Journal) -> str:
    """Name what computes; say so when a table is continued on another machine."""
    backend = choose_lane_backend(config.table.backend, config.table.precision)
    where = slow_paths.named(backend, slow_paths.isa_of(backend))
    return origin_of(where, journal.path, "trainings", _origins(journal))


def _origins(journal: Journal) -> list[str]:
    """Return what computed the trainings of a journal, sorted."""
    return sorted({record["by"] for record in journal.records})


def _measured(journal: Journal) -> dict[str, Any]:
    count = sum(len(record["archs"]) for record in journal.records)
    elapsed_s = math.fsum(record["elapsed_s"] for record in journal.records)
    return {
        "trainings": count,
        "seconds": round(elapsed_s, 3),
        "seconds_a_training": round(elapsed_s / count, 6),
        "computed_by": _origins(journal),
        "environment": environment(),
    }
