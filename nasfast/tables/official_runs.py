# SPDX-License-Identifier: MIT
"""Runs of NAS-Bench-201 and NATS-Bench, from the dictionaries that the authors' classes make.

``ResultsCount.state_dict`` is one training, ``ArchResults.state_dict`` all trainings of an
architecture with one schedule.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

DATASETS = ("cifar10-valid", "cifar10", "cifar100", "ImageNet16-120")
EVALUATED = ("x-valid", "x-test", "ori-test")  # the authors' names of sets of images

_RUN = (
    *("name", "seed", "epochs", "params", "flop", "latency"),
    *("train_acc1es", "train_losses", "train_times"),
    *("eval_names", "eval_acc1es", "eval_losses", "eval_times"),
)
_ARCH = ("arch_index", "arch_str", "all_results", "dataset_seed")
_SCHEDULES = {"less": 12, "full": 200, "01": 1, "12": 12, "90": 90, "200": 200}
_MOST_EPOCHS, _MOST_KEY = 1000, 1 << 31
_NAN = math.nan

Curve = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One training of an architecture.

    Attributes:
        dataset: What it was trained on.
        seed: Its number.
        epochs: Its length.
        params: Parameters in millions, as the file says.
        flops: Multiply-adds of one image in millions, likewise.
        latency: Seconds, the mean of those measured; NaN: none.
        train_seconds: Of all epochs together; NaN: unknown.
        seconds: Of one evaluation, by set of images; NaN: unknown.
        loss: After each epoch, float64 ``[epochs]``, by ``"train"`` and sets of images.
        accuracy: Likewise, in percent.
    """

    dataset: str
    seed: int
    epochs: int
    params: float
    flops: float
    latency: float
    train_seconds: float
    seconds: dict[str, float]
    loss: dict[str, Curve]
    accuracy: dict[str, Curve]


@dataclass(frozen=True, slots=True, eq=False)
class ArchRuns:
    """All runs of an architecture with one schedule.

    Attributes:
        index: Official index.
        text: The benchmark's own string.
        epochs: Of every run.
        runs: By data set and seed.
    """

    index: int
    text: str
    epochs: int
    runs: dict[tuple[str, int], Run]


def by_schedule(found: Any) -> list[Any]:
    """Return what was found of an architecture, one entry for each of its schedules.

    Args:
        found: The dictionary that a file has for an architecture: ``{"less": ..., "full": ...}``
            or ``{"12": ..., "200": ...}``, as :mod:`nasfast.tables.official_pickles` reads it.
            Entries are :class:`ArchRuns` or anything else with ``index`` and ``epochs``.

    Raises:
        ValueError: If it is no such dictionary, or says one schedule and has another.
    """
    if not isinstance(found, dict) or not found or not set(found) <= set(_SCHEDULES):
        keys = sorted(map(str, found)) if isinstance(found, dict) else type(found).__name__
        raise ValueError(
            f"wanted schedules such as 'less' and 'full' or '12' and '200', got {keys}"
        )
    entries = []
    for key, state in found.items():
        entry = state.get("") if isinstance(state, dict) else None
        if entry is None:
            raise ValueError(f"schedule {key!r}: wanted results of trainings, got none")
        if entry.epochs != _SCHEDULES[key]:
            raise ValueError(
                f"schedule {key!r}: wanted {_SCHEDULES[key]} epochs, got {entry.epochs}"
            )
        entries.append(entry)
    if len({entry.index for entry in entries}) != 1:
        numbers = ", ".join(str(entry.index) for entry in entries)
        raise ValueError(f"wanted one architecture, got results of {numbers}")
    return entries


def is_number(key: Any) -> bool:
    """Tell whether a key of a dictionary is an index, a seed or an epoch."""
    return type(key) is int and 0 <= key < _MOST_KEY


def is_run(key: Any) -> bool:
    """Tell whether a key of a dictionary is a data set with a seed."""
    return type(key) is tuple and len(key) == 2 and type(key[0]) is str and is_number(key[1])


def run_of(state: dict[Any, Any]) -> Run:
    """Turn what ``ResultsCount.state_dict`` made into a run."""
    lacking = [key for key in _RUN if key not in state]
    if lacking:
        raise ValueError(f"a run lacks {', '.join(lacking)}: it may be of another release")
    epochs, names = state["epochs"], state["eval_names"]
    if type(epochs) is not int or not 1 <= epochs <= _MOST_EPOCHS:
        raise ValueError(f"a run of {epochs!r:.40} epochs")
    if not isinstance(names, list) or not all(name in EVALUATED for name in names):
        raise ValueError(
            f"a run evaluated on {names!r:.100}, wanted some of {', '.join(EVALUATED)}"
        )
    loss = {"train": _curve(state, "train_losses", range(epochs))}
    accuracy = {"train": _curve(state, "train_acc1es", range(epochs))}
    seconds = {}
    for name in names:
        keys = _epoch_keys(name, epochs)
        loss[name] = _curve(state, "eval_losses", keys)
        accuracy[name] = _curve(state, "eval_acc1es", keys)
        times = _values(state, "eval_times", keys) if state["eval_times"] else [_NAN]
        seconds[name] = math.fsum(times) / len(times)
    times = _values(state, "train_times", range(epochs)) if state["train_times"] else [_NAN]
    latency = state["latency"] or []
    if not isinstance(latency, list):
        raise ValueError(f"a run with latencies {latency!r:.60}, wanted a list")
    if type(state["seed"]) is str and state["seed"].isdecimal():  # as in the name of a file
        state["seed"] = int(state["seed"])
    if type(state["name"]) is not str or not is_number(state["seed"]):
        raise ValueError(f"a run with name {state['name']!r:.60} and seed {state['seed']!r:.60}")
    return Run(
        dataset=state["name"],
        seed=state["seed"],
        epochs=epochs,
        params=_number("params", state["params"]),
        flops=_number("flop", state["flop"]),
        latency=sum(_number("latency", value) for value in latency) / len(latency)
        if latency
        else _NAN,
        train_seconds=math.fsum(times),
        seconds=seconds,
        loss=loss,
        accuracy=accuracy,
    )


@functools.cache
def _epoch_keys(name: str, epochs: int) -> tuple[str, ...]:
    return tuple(f"{name}@{epoch}" for epoch in range(epochs))


def _curve(state: dict[Any, Any], name: str, keys: Sequence[Any]) -> Curve:
    return np.array(_values(state, name, keys), dtype=np.float64)


def _values(state: dict[Any, Any], name: str, keys: Sequence[Any]) -> list[float]:
    """Return numbers by key, NaN where there is none."""
    found = state[name]
    if not isinstance(found, dict):
        raise ValueError(f"a run with {name} of type {type(found).__name__}, wanted a dictionary")
    values = [found.get(key, _NAN) for key in keys]
    odd = set(map(type, values)) - {float, int}
    if odd:
        raise ValueError(f"a run with {name} of {odd.pop().__name__}, wanted numbers")
    return values


def _number(name: str, value: Any) -> float:
    if type(value) is not float and type(value) is not int:
        raise ValueError(f"a run with {name} of {type(value).__name__}, wanted a number")
    return float(value)


def arch_runs_of(state: dict[Any, Any]) -> ArchRuns:
    """Turn what ``ArchResults.state_dict`` made into runs."""
    lacking = [key for key in _ARCH if key not in state]
    if lacking:
        raise ValueError(f"an architecture lacks {', '.join(lacking)}")
    index, text = state["arch_index"], state["arch_str"]
    seeds, results = state["dataset_seed"], state["all_results"]
    if not is_number(index) or type(text) is not str:
        raise ValueError(f"an architecture with number {index!r:.40} and string {text!r:.100}")
    where = f"architecture {index}"
    if not isinstance(seeds, dict) or not isinstance(results, dict) or not results:
        raise ValueError(f"{where}: has no runs")
    listed = {
        (dataset, seed)
        for dataset, of_dataset in seeds.items()
        for seed in (of_dataset if isinstance(of_dataset, list) else ())
        if is_run((dataset, seed))
    }
    if listed != set(results):
        raise ValueError(
            f"{where}: mixed seeds: it lists runs {_listed(listed)} and has {_listed(set(results))}"
        )
    runs: dict[tuple[str, int], Run] = {}
    for key, found in results.items():
        # Taken out, as the pickle may refer back to the dictionary until its end.
        run = found.pop("", None) if isinstance(found, dict) else None
        if not isinstance(run, Run) or key[0] not in DATASETS:
            raise ValueError(f"{where}: wanted a run of {', '.join(DATASETS)}, got {key!r:.80}")
        if (run.dataset, run.seed) != key:
            raise ValueError(
                f"{where}: mixed seeds: run {key[0]}/{key[1]} says that it is "
                f"{run.dataset:.40}/{run.seed}"
            )
        runs[key] = run
    lengths = {run.epochs for run in runs.values()}
    if len(lengths) != 1:
        raise ValueError(f"{where}: mixed schedules: runs of {sorted(lengths)} epochs in one")
    return ArchRuns(index, text, lengths.pop(), runs)


def _listed(keys: set[Any]) -> str:
    return ", ".join(f"{key[0]}/{key[1]}" for key in sorted(keys)) or "none"
