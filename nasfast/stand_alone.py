# SPDX-License-Identifier: MIT
"""Train architectures on their own, from scratch: ground truth for a ranking."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nasfast import data, tables
from nasfast.config import TableConfig, chosen_archs
from nasfast.evaluate import evaluate
from nasfast.files import differences, read_json, write_text
from nasfast.layout import SupernetConfig
from nasfast.spaces import Architecture, CellSpec
from nasfast.supernet import Supernet
from nasfast.train import FixedSampler, train

Key = tuple[int, int]  # (official index, seed)
Result = tuple[int, float, int]  # as train_stand_alone returns it
_EVAL_BATCH = 360  # images at once; running statistics make the result independent of it


def train_stand_alone(config: TableConfig, index: int, seed: int) -> Result:
    """Train one architecture from scratch and count what it gets right.

    Args:
        config: Data, shape and training.
        index: Official index of the architecture.
        seed: Seed of initial weights and minibatches.

    Returns:
        Test images classified correctly, mean training loss of the last epoch, test images.
    """
    torch.set_num_threads(1)
    splits = config.data.load()
    shape = SupernetConfig(
        space=config.supernet.space,
        channels=config.supernet.channels,
        cells_per_stage=config.supernet.cells_per_stage,
        classes=splits.num_classes,
        in_channels=splits.train.images.shape[1],
        affine=True,
        track=True,
    )
    network = Supernet.create(shape, seed)
    arch = shape.spec.from_index(index)
    loader = config.train.loader(splits.train, seed)
    records = train(network, loader, FixedSampler(arch), config.train.settings())
    stream = data.batches(splits.test, min(_EVAL_BATCH, len(splits.test)), last="keep")
    scores = evaluate(network, [arch], stream, bn="running")
    return int(scores.lane_correct.sum()), records[-1].loss, len(splits.test)


def build_table(
    config: TableConfig,
    path: str | os.PathLike[str],
    *,
    workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Train a sample of a space, or all of it, and write a table.

    Finished trainings are kept in ``PATH.progress``, one line each, so a killed build goes on; the
    file is removed once the table is written. A table that is there already is left as it is.

    Args:
        config: What to train, and how.
        path: Table to write.
        workers: Processes, each with one thread; the table does not depend on it.
        on_progress: Called with trainings done and all trainings.

    Raises:
        ValueError: If the table or the progress file is of another configuration, or images or
            labels do not fit.
        OSError: If a file cannot be written, or a process was killed.
    """
    target = Path(path)
    spec = config.supernet.spec
    archs = sampled(config, spec)
    keys = [(spec.to_index(arch), seed) for arch in archs for seed in config.table.seeds]
    if target.exists():
        _check_same(target, _identity(config, archs))
        if on_progress is not None:
            on_progress(len(keys), len(keys))
        return
    progress = target.with_name(target.name + ".progress")
    done = _open_progress(progress, config)
    pending = [key for key in keys if key not in done]
    if on_progress is not None:
        on_progress(len(keys) - len(pending), len(keys))
    trainings = contextlib.closing(_train_all(config, pending, workers))
    with progress.open("a", encoding="utf-8") as log, trainings as results:
        for key, result in results:
            done[key] = result
            log.write(json.dumps([*key, *result]) + "\n")
            log.flush()
            if on_progress is not None:
                on_progress(len(done), len(keys))
    rows = [[done[spec.to_index(arch), seed] for seed in config.table.seeds] for arch in archs]
    tables.write(
        target,
        name=config.name,
        truth_name=config.table.truth_name,
        space=spec,
        archs=archs,
        test_correct=np.array([[run[0] for run in row] for row in rows], dtype=np.int64),
        train_loss=np.array([[run[1] for run in row] for row in rows]),
        test_images=rows[0][0][2],
        settings=_settings(config),
    )
    progress.unlink()


def _train_all(
    config: TableConfig, keys: list[Key], workers: int
) -> Generator[tuple[Key, Result], None, None]:  # fmt: skip
    """Yield results as they come; whatever ends this early also ends the worker processes."""
    before = multiprocessing.active_children()
    # A fresh interpreter for each worker: a forked PyTorch may inherit locked thread pools.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        with _interrupts_ignored():  # inherited by the workers: Ctrl-C is for this process to heed
            futures = {pool.submit(train_stand_alone, config, *key): key for key in keys}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BaseException as error:
        for process in multiprocessing.active_children():
            if process not in before:
                process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise OSError(
                "a worker process was killed, maybe for want of memory; type the same command "
                "again to go on, with fewer --workers"
            ) from None
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's business
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _settings(config: TableConfig) -> dict[str, Any]:
    return {
        "seeds": list(config.table.seeds),
        **config.model_dump(mode="json", exclude={"name", "table"}),
        "sample_seed": config.table.sample_seed,
        "affine": "batch norm of every part is affine and keeps running statistics",
        "merging": "equal networks are trained anew for every architecture and seed",
    }


def _identity(config: TableConfig, archs: list[Architecture]) -> dict[str, Any]:
    return {
        "name": config.name,
        "truth_name": config.table.truth_name,
        "settings": _settings(config),
        "archs": [str(arch) for arch in archs],
    }


def _check_same(path: Path, wanted: dict[str, Any]) -> None:
    stored = read_json(path)
    found = {key: stored.get(key) for key in ("name", "truth_name", "settings")}
    try:
        found["archs"] = [row["arch"] for row in stored["rows"]]
    except (KeyError, TypeError):
        found["archs"] = None
    changed = differences(found, wanted)
    if changed:
        raise ValueError(
            f"{path}: holds a table of another configuration ({'; '.join(changed):.500}); "
            "delete it, or give another file with --out"
        )


def sampled(config: TableConfig, spec: CellSpec) -> list[Architecture]:
    """Return the architectures of a table in official order."""
    table = config.table
    return chosen_archs(spec, table.archs, table.sample_seed, config.train.without)


def _open_progress(path: Path, config: TableConfig) -> dict[Key, Result]:
    """Read finished trainings; begin the file when there is none."""
    values = config.model_dump(mode="json")
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else [""]
    if len(lines) == 1:  # none, or killed while it wrote its first line
        write_text(path, json.dumps(values) + "\n")
        return {}
    try:
        changed = differences(json.loads(lines[0]), values)
        done: dict[Key, Result] = {}
        for line in lines[1:-1]:  # a line cut by a kill has no end and is trained again
            index, seed, correct, loss, images = json.loads(line)
            done[index, seed] = (correct, loss, images)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error}); delete it to begin anew") from None
    if changed:
        raise ValueError(
            f"{path}: holds trainings of another configuration ({'; '.join(changed)}); "
            "delete it to begin anew"
        )
    if lines[-1]:
        write_text(path, "\n".join(lines[:-1]) + "\n")
    return done
