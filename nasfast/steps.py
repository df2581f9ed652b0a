# SPDX-License-Identifier: MIT
"""The two steps of a run, training and ranking; each goes on where it stopped."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from nasfast import data
from nasfast.data import Batch, Splits
from nasfast.evaluate import check_batch_norm, compile_archs, run
from nasfast.files import write_text
from nasfast.lower import Merge
from nasfast.runs import Run, RunError
from nasfast.spaces import Architecture
from nasfast.store import ScoreStore
from nasfast.supernet import Supernet, write_tensors
from nasfast.train import EpochRecord, TrainState, UniformSampler, train


def train_run(run_: Run, *, on_epoch: Callable[[EpochRecord, int], None] | None = None) -> Supernet:
    """Train the supernet of a run, from where it stands.

    What ranking will need (truth, batch-norm modes, minibatches) is checked before the first step.

    Args:
        run_: The run.
        on_epoch: Called after each epoch with its record and the number of epochs.

    Returns:
        The trained supernet, also in ``supernet.safetensors``.

    Raises:
        RunError: If the run cannot be trained, or not be ranked later.
        OSError: If a file cannot be written.
    """
    config, t = run_.config, run_.config.train
    splits = run_.splits()
    if run_.supernet_file.is_file():
        return run_.supernet(splits)
    torch.set_num_threads(config.threads)
    _check_ranking(run_, splits)
    supernet = Supernet.create(run_.shape(splits), config.seed)
    state, records = _load_state(run_.state_file, supernet)
    spec = supernet.config.spec
    cells = supernet.layout.num_cells
    sampler = UniformSampler(spec, config.seed, spec.mask(t.without), t.scope, cells)
    loader, settings = t.loader(splits.train, config.seed), t.settings()
    run_.record_environment("train")

    def after_epoch(record: EpochRecord, state: TrainState) -> None:
        records.append(record)
        _save_state(run_.state_file, supernet, state, records)
        _write_log(run_.log_file, records)
        if on_epoch is not None:
            on_epoch(record, t.epochs)

    train(supernet, loader, sampler, settings, state=state, on_epoch=after_epoch)
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

Progress = Callable[[str, int, int], None]  # what is scored, architectures done, all


def rank_run(run_: Run, *, on_progress: Progress | None = None) -> None:
    """Score the architectures of a run that have no score yet.

    Those with a ground truth are scored by the untrained supernet too, as a control.

    Args:
        run_: A trained run.
        on_progress: Called after each chunk.

    Raises:
        RunError: If the run is not trained, or its weights are of another shape.
        ValueError: If truth or images do not fit.
        StoreError: If there are scores of other weights or settings.
        OSError: If a file cannot be written.
    """
    config = run_.config
    torch.set_num_threads(config.threads)
    truth, splits = run_.truth(), run_.splits()
    supernet = run_.supernet(splits)
    spec, rank = supernet.config.spec, config.rank
    images = splits.valid if rank.images == "valid" else splits.test
    stream = data.batches(images, rank.batch_size, seed=config.seed, last=rank.last_batch)
    wanted = run_.archs()
    with ScoreStore(run_.score_file, score_settings(run_, supernet)) as store:
        run_.record_environment("rank")
        _score(store, "supernet", supernet, wanted, stream, rank.bn, run_, on_progress)
        known = set() if truth is None else set(truth.known.tolist())
        control = [arch for arch in wanted if spec.to_index(arch) in known]
        # Running statistics of a supernet that saw no image mean nothing: batch statistics.
        untrained = Supernet.create(supernet.config, config.seed)
        _score(store, "untrained", untrained, control, stream, "batch", run_, on_progress)


def score_settings(run_: Run, supernet: Supernet) -> dict[str, Any]:
    """Return what the scores of a run depend on, as plain values."""
    values = run_.config.model_dump(mode="json", include={"seed", "data", "rank"})
    del values["data"]["path"], values["rank"]["memory_mib"]  # may change without any effect
    digest = hashlib.sha256(supernet.arena.numpy().tobytes()).hexdigest()
    return {**values, "supernet": f"sha256 {digest[:16]}"}


def _score(
    store: ScoreStore, weights: str, supernet: Supernet, archs: list[Architecture],
    stream: list[Batch], bn: str, run_: Run, on_progress: Progress | None,
) -> None:  # fmt: skip
    if not archs:
        return
    spec = supernet.config.spec
    done = store.done(weights)
    indices = np.array([spec.to_index(arch) for arch in archs], dtype=np.int64)
    waits = [index not in done for index in indices.tolist()]
    pending, index_of = list(itertools.compress(archs, waits)), indices[waits]
    count = len(archs) - len(pending)
    if on_progress is not None:
        on_progress(weights, count, len(archs))
    if not pending:
        return
    program = compile_archs(supernet, pending, bn=bn, merge=Merge.LINEAR)
    by_lane = np.argsort(program.lane_of_request, kind="stable")
    begin = np.searchsorted(program.lane_of_request[by_lane], np.arange(program.num_lanes + 1))
    rank = run_.config.rank
    for chunk in run(
        program, [supernet], [stream], bn=bn, precision=rank.precision,
        memory=rank.memory_mib * 2**20,
    ):  # fmt: skip
        images = chunk.correct.shape[1]
        rows: list[tuple[int, float, int]] = []
        for lane, loss, right in zip(
            chunk.lanes.tolist(), chunk.mean_loss, chunk.correct.sum(axis=1), strict=True
        ):
            members = index_of[by_lane[begin[lane] : begin[lane + 1]]]
            rows += [(int(index), float(loss), int(right)) for index in members]
        store.add(weights, [r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows], images)
        count += len(rows)
        if on_progress is not None:
            on_progress(weights, count, len(archs))
