# SPDX-License-Identifier: MIT
"""Columns of NAS-Bench-201 and NATS-Bench, made run by run, and what the source lacks.

The authors' names of the images that a network was evaluated on depend on what it was trained on;
columns say ``valid`` and ``test`` where ``get_more_info`` of the authors' packages does:

===================================  =====================  ===========  ============  ==========
data set (trained on)                ``valid``              ``test``     ``valtest``   images
===================================  =====================  ===========  ============  ==========
``cifar10-valid`` (half of train)    ``x-valid``            ``ori-test``               25k, 10k
``cifar10`` (the whole of train)                            ``ori-test``               10k
``cifar100``, ``ImageNet16-120``     ``x-valid``            ``x-test``   ``ori-test``  test halves
===================================  =====================  ===========  ============  ==========

``valtest`` is both halves together. ``train_seconds`` are those of a whole training,
``valid_seconds`` and the like those of one evaluation. An infinite value, such as the loss of a
training that diverged, becomes NaN as one that is not there does; a note counts them.

Costs are ``{dataset}/parameters``, ``{dataset}/flops`` (multiply-adds of one image) and
``{dataset}/latency_seconds``, float64 ``[rows]``, of the runs of the longest schedule.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nasfast.tables.columns import Column
from nasfast.tables.curve_table import mean_of_known
from nasfast.tables.official_runs import DATASETS, ArchRuns, Run

MEANING: dict[str, dict[str, str]] = {
    "cifar10-valid": {"train": "train", "x-valid": "valid", "ori-test": "test"},
    "cifar10": {"train": "train", "ori-test": "test"},
    **{
        dataset: {"train": "train", "x-valid": "valid", "x-test": "test", "ori-test": "valtest"}
        for dataset in ("cifar100", "ImageNet16-120")
    },
}
_MOST_SEEDS = 8  # the releases have three
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_COSTS = ("parameters", "flops", "latency_seconds")


@dataclass(frozen=True)
class Release:
    """What an official release has.

    Attributes:
        name: For people.
        space: Name of the space.
        texts: The benchmark's own string of each architecture, by official index.
        seeds: Numbers of runs that it has, by epochs of the schedule.
        best: Known optimum of each data set with the longest schedule: index and mean test
            accuracy in percent.
    """

    name: str
    space: str
    texts: Sequence[str]
    seeds: Mapping[int, tuple[int, ...]]
    best: Mapping[str, tuple[int, float]]


class _Kept:
    """What is kept of a run: curves, and single numbers, by name."""

    __slots__ = ("curve_names", "curves", "end_names", "ends")

    def __init__(self, curves: Mapping[str, Floats], ends: Mapping[str, float]) -> None:
        self.curve_names, self.end_names = _same(tuple(curves)), _same(tuple(ends))
        self.curves = np.array(list(curves.values()), dtype=np.float32)
        self.ends = np.array(list(ends.values()), dtype=np.float32)

    def get(self, name: str) -> npt.NDArray[np.float32] | None:
        """A curve ``[epochs]``, or a number ``[1]``."""
        if name in self.curve_names:
            return self.curves[self.curve_names.index(name)]
        if name in self.end_names:
            place = self.end_names.index(name)
            return self.ends[place : place + 1]
        return None


@functools.cache
def _same(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return one tuple for all equal ones: there are many runs and few kinds."""
    return names


class _Group:
    """The runs on one data set with one schedule."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.runs: dict[int, dict[int, _Kept]] = {}  # by official index, then by seed
        self.seeds: set[int] = set()
        self.curves: set[str] = set()  # names of what has a value before the end
        self.ends: set[str] = set()  # names of what has one at the end
        self.gaps = 0  # curves that lack some of the values
        self.infinite = 0  # values that the source has, which are no numbers to compare

    def put(self, index: int, seed: int, curves: dict[str, Floats], ends: dict[str, float]) -> None:
        of_arch = self.runs.setdefault(index, {})
        if seed in of_arch:
            raise ValueError(f"run {seed} comes twice")
        self.seeds.add(seed)
        if len(self.seeds) > _MOST_SEEDS:
            raise ValueError(f"mixed seeds: {', '.join(map(str, sorted(self.seeds)))}")
        of_arch[seed] = _Kept(curves, ends)
        self.infinite += sum(int(np.isinf(values).sum()) for values in curves.values())
        self.infinite += sum(map(math.isinf, ends.values()))
        for name, values in curves.items():
            known = np.isfinite(values)
            if known[:-1].any():
                self.curves.add(name)
                self.gaps += not known.all()
            if known[-1]:
                self.ends.add(name)
        self.ends |= {name for name, value in ends.items() if math.isfinite(value)}

    def names(self) -> set[str]:
        """Names of columns."""
        return {"seeds"} | self.curves | self.ends

    def column(self, name: str, rows: Ints) -> Column:
        """Make a column; each run has the same place in all rows."""
        slots = sorted(self.seeds)
        seeds = np.full((len(rows), len(slots)), -1, dtype=np.int32)
        shape = (*seeds.shape, self.epochs) if name in self.curves else (*seeds.shape, 1)
        column = np.full(shape, np.nan, dtype=np.float32)
        for row, index in enumerate(rows.tolist()):
            for seed, kept in self.runs.get(index, {}).items():
                slot = slots.index(seed)
                seeds[row, slot] = seed
                values = None if name == "seeds" else kept.get(name)
                if values is not None:
                    column[row, slot] = values[-shape[2] :]
        if name == "seeds":
            return seeds
        column[~np.isfinite(column)] = np.nan
        return column if name in self.curves else column[:, :, 0]


class OfficialColumns(Mapping[str, Column]):
    """Columns of a release, filled architecture by architecture, then read by name.

    Args:
        release: What it should have.
    """

    def __init__(self, release: Release) -> None:
        self.release = release
        self._groups: dict[tuple[str, int], _Group] = {}
        self._costs: dict[str, dict[int, float]] = {}  # by column, then by official index
        self._rows: Ints = np.empty(0, dtype=np.int64)
        self._made: dict[str, Column] = {}  # the last one, as it is asked for several times

    @property
    def rows(self) -> Ints:
        """Official indices of the architectures so far, ascending, int64 ``[rows]``."""
        found = set[int]().union(*(group.runs for group in self._groups.values()))
        if len(found) != len(self._rows):
            self._rows = np.array(sorted(found), dtype=np.int64)
        return self._rows

    def add(self, found: ArchRuns) -> None:
        """Take the runs of one architecture with one schedule.

        Raises:
            ValueError: If they are of another release, or the architecture is not expected.
        """
        self._made = {}
        release, where = self.release, f"architecture {found.index}"
        total = len(release.texts)
        if found.index >= total:
            raise ValueError(f"{where}: wanted one of the {total:,} of {release.name}")
        if found.text != release.texts[found.index]:
            raise ValueError(
                f"{where}: wanted {release.texts[found.index]} as in {release.name}, "
                f"got {found.text:.200}: a table of another release"
            )
        if found.epochs not in release.seeds:
            wanted = ", ".join(map(str, release.seeds))
            raise ValueError(
                f"{where}: wanted schedules of {wanted} epochs as in {release.name}, "
                f"got {found.epochs}"
            )
        for (dataset, seed), run in sorted(found.runs.items()):
            try:
                self._add_run(found.index, dataset, seed, run)
            except ValueError as error:
                what = f"run {seed} on {dataset} for {run.epochs} epochs"
                raise ValueError(f"{where}: {what}: {error}") from None
        if found.epochs == max(release.seeds):
            self._add_costs(found)

    def _add_run(self, index: int, dataset: str, seed: int, run: Run) -> None:
        meaning, curves = MEANING[dataset], dict[str, Floats]()
        ends = {"train_seconds": run.train_seconds}
        for part, loss in run.loss.items():
            if part not in meaning:
                raise ValueError(f"evaluated on {part}, wanted {', '.join(meaning)}")
            name, percent = meaning[part], run.accuracy[part]
            low, high = np.fmin.reduce(percent), np.fmax.reduce(percent)
            if low < 0.0 or high > 100.0:
                raise ValueError(f"wanted accuracies in percent, got {low:g} to {high:g}")
            curves |= {f"{name}_loss": loss, f"{name}_accuracy": percent / 100.0}
            if part != "train":
                ends[f"{name}_seconds"] = run.seconds[part]
        group = self._groups.setdefault((dataset, run.epochs), _Group(run.epochs))
        group.put(index, seed, curves, ends)

    def _add_costs(self, found: ArchRuns) -> None:
        for dataset in DATASETS:
            runs = {
                seed: run for (name, seed), run in sorted(found.runs.items()) if name == dataset
            }
            if runs:
                latencies = [run.latency for run in runs.values() if run.latency > 0]
                params = _agreed({seed: run.params for seed, run in runs.items()})
                flops = _agreed({seed: run.flops for seed, run in runs.items()})
                values = (float(round(params * 1e6)), flops * 1e6, _mean(latencies))
                for cost, value in zip(_COSTS, values, strict=True):
                    self._costs.setdefault(f"{dataset}/{cost}", {})[found.index] = value

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def _names(self) -> list[str]:
        names = {"index", *self._costs}
        for (dataset, epochs), group in self._groups.items():
            names |= {f"{dataset}/{epochs}/{name}" for name in group.names()}
        return sorted(names)

    def __getitem__(self, name: str) -> Column:
        """Make a column."""
        if name not in self._made:
            column = self._column(name)
            kept = [seeds for seeds in self._made if seeds.endswith("/seeds")]
            self._made = {seeds: self._made[seeds] for seeds in kept} | {name: column}
        return self._made[name]

    def _column(self, name: str) -> Column:
        if name == "index":
            return self.rows
        if name in self._costs:
            values = self._costs[name]
            return np.array([values.get(index, np.nan) for index in self.rows.tolist()])
        for (dataset, epochs), group in self._groups.items():
            quantity = name.removeprefix(f"{dataset}/{epochs}/")
            if quantity != name and quantity in group.names():
                return group.column(quantity, self.rows)
        raise KeyError(name)

    def missing(self) -> list[str]:
        """Say what the official release has and the source has not."""
        release, found = self.release, []
        total = len(release.texts)
        if len(self.rows) < total:
            found.append(f"{total - len(self.rows):,} of {total:,} architectures")
        for epochs in release.seeds:
            for dataset in DATASETS:
                group = self._groups.get((dataset, epochs))
                if group is None:
                    found.append(f"all runs on {dataset} for {epochs} epochs")
                    continue
                lacking = len(self.rows) - len(group.runs)
                if lacking:
                    found.append(
                        f"runs on {dataset} for {epochs} epochs of {lacking:,} of "
                        f"{len(self.rows):,} architectures"
                    )
        return found

    def notes(self) -> list[str]:
        """Say how many runs there are, and which quantities are known at the end alone."""
        sentences = []
        for (dataset, epochs), group in sorted(self._groups.items()):
            counts = Counter(len(runs) for runs in group.runs.values())
            each = ", ".join(f"{runs}: {count:,}" for runs, count in sorted(counts.items()))
            words = f"{dataset}/{epochs}: architectures by number of runs: {each}"
            ends = sorted(n for n in group.ends - group.curves if not n.endswith("_seconds"))
            if ends and epochs > 1:
                words += f"; known at the end of training alone: {', '.join(ends)}"
            if group.infinite:
                words += f"; {group.infinite:,} infinite values of the source stand as NaN"
            if group.gaps:
                words += f"; {group.gaps:,} curves lack some of their values"
            sentences.append(words)
        return sentences

    def seeds(self) -> dict[int, set[int]]:
        """Return the numbers of runs by epochs of the schedule."""
        found: dict[int, set[int]] = {}
        for (_, epochs), group in sorted(self._groups.items()):
            found[epochs] = found.get(epochs, set()) | group.seeds
        return dict(sorted(found.items()))

    def other_seeds(self) -> list[str]:
        """Name the runs whose numbers the official release does not have."""
        return [
            f"{seed} of {dataset}/{epochs}"
            for (dataset, epochs), group in sorted(self._groups.items())
            for seed in sorted(group.seeds - set(self.release.seeds[epochs]))
        ]

    def mean_test_accuracy(self, dataset: str) -> Floats | None:
        """Return percent after the longest schedule, ``[rows]``; None without such runs."""
        group = self._groups.get((dataset, max(self.release.seeds)))
        if group is None or "test_accuracy" not in group.names():
            return None
        column = group.column("test_accuracy", self.rows)
        return 100.0 * mean_of_known(column if column.ndim == 2 else column[:, :, -1], axis=1)


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _agreed(by_seed: dict[int, float]) -> float:
    """Mean over runs; where they differ that of run 888, which nats_bench takes as right."""
    values = list(by_seed.values())
    if len({f"{value:.5f}" for value in values}) > 1 and 888 in by_seed:
        return by_seed[888]
    return _mean(values)
