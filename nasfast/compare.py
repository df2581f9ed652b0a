# SPDX-License-Identifier: MIT
"""Runs of one space side by side: configurations, metrics, and how far their rankings agree."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nasfast.experiment_table import setting_word
from nasfast.files import flat
from nasfast.markdown import MISSING, markdown_table, number
from nasfast.metrics import RankingAgreement
from nasfast.run_metrics import METRICS, TOP, RunResults, agreement, read_results
from nasfast.runs import Run, RunError


@dataclass(frozen=True)
class Pair:
    """Two runs.

    Attributes:
        one: Place of the first in the comparison, from 0.
        other: Place of the second.
        common: Architectures that both have a finite loss of.
        agreement: Of their rankings by loss; None where fewer than two are common.
    """

    one: int
    other: int
    common: int
    agreement: RankingAgreement | None


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other.

    Attributes:
        runs: What each came to.
        differing: By dotted key, the value in each run where not all are equal, None where it is
            not set; names of runs are left out.
        pairs: Every two runs.
    """

    runs: tuple[RunResults, ...]
    differing: dict[str, tuple[Any, ...]]
    pairs: tuple[Pair, ...]

    def plain(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "runs": [
                {
                    "run": str(run.run.folder),
                    "architectures": len(run.archs),
                    "with_truth": run.with_truth,
                    "ties": run.ties,
                    "finetuned": run.finetuned,
                    **run.metrics,
                }
                for run in self.runs
            ],
            "differing": {key: list(values) for key, values in self.differing.items()},
            "agreement": [
                {
                    "runs": [str(self.runs[k].run.folder) for k in (pair.one, pair.other)],
                    "common": pair.common,
                    "kendall_tau_b": _part(pair, "kendall"),
                    "spearman": _part(pair, "spearman"),
                    f"top_{TOP}_overlap": _part(pair, "overlap"),
                }
                for pair in self.pairs
            ],
        }

    def __str__(self) -> str:
        """Return the tables as Markdown."""
        numbers = [f"[{k}]" for k in range(1, len(self.runs) + 1)]
        legend = [f"{n} {run.run.folder}" for n, run in zip(numbers, self.runs, strict=True)]
        settings = [[key, *map(_word, values)] for key, values in self.differing.items()]
        parts = ["\n".join(legend)]
        if settings:
            parts.append(markdown_table(["setting", *numbers], settings))
        else:
            parts.append("The configurations differ in nothing but names.")
        parts.append(markdown_table(["metric", *numbers], self._metric_rows()))
        pairs = [
            [f"{numbers[p.one]} {numbers[p.other]}", number(_part(p, "kendall")),
             number(_part(p, "spearman")), number(_part(p, "overlap")), f"{p.common:,}"]
            for p in self.pairs
        ]  # fmt: skip
        head = ["rankings by loss", "tau-b", "Spearman", f"top {TOP} shared", "architectures"]
        return "\n\n".join([*parts, markdown_table(head, pairs)])

    def _metric_rows(self) -> list[list[str]]:
        rows = [
            [metric.title, *(number(run.metrics[metric.key]) for run in self.runs)]
            for metric in METRICS
        ]
        rows = [row for row in rows if any(cell != MISSING for cell in row[1:])]
        for name, counts in (
            ("architectures ranked", [len(run.archs) for run in self.runs]),
            ("of these with a truth", [run.with_truth for run in self.runs]),
            ("of these with a loss of another", [run.ties for run in self.runs]),
            ("architectures fine-tuned", [run.finetuned for run in self.runs]),
        ):
            if any(counts):
                rows.append([name, *(f"{count:,}" for count in counts)])
        return rows


def compare_runs(folders: Sequence[str | os.PathLike[str]]) -> Comparison:
    """Put ranked runs of one space side by side.

    Configurations are those that made the scores and curves, options of commands included.

    Args:
        folders: At least two run folders.

    Raises:
        ValueError: If there are fewer, or one is given twice.
        RunError: If one is no run, not trained or not ranked, or their spaces differ.
        StoreError: If scores or curves are damaged, or of other weights or settings.
    """
    if len(folders) < 2:
        raise ValueError(f"runs: wanted at least 2, got {len(folders)}")
    seen: set[Path] = set()
    for folder in folders:
        place = Path(folder).resolve()
        if place in seen:
            raise ValueError(f"runs: wanted distinct ones, got {folder} twice")
        seen.add(place)
    opened = [Run.open(folder) for folder in folders]
    _check_spaces(opened)
    results = []
    for run in opened:
        found = read_results(run)
        if len(found.archs) == 0:
            raise RunError(f"{run.folder}: nothing scored yet; run 'nasfast rank' first")
        results.append(found)
    pairs = []
    for one, other in itertools.combinations(range(len(results)), 2):
        found_agreement, common = agreement(results[one], results[other])
        pairs.append(Pair(one, other, common, found_agreement))
    return Comparison(tuple(results), _differing(results), tuple(pairs))


def _check_spaces(runs: Sequence[Run]) -> None:
    spaces: dict[str, list[str]] = {}
    for run in runs:
        spaces.setdefault(run.config.supernet.space, []).append(str(run.folder))
    if len(spaces) > 1:
        got = "; ".join(f"{space} ({', '.join(names)})" for space, names in spaces.items())
        raise RunError(f"runs: wanted runs of one search space, got {got}")


def _differing(runs: Sequence[RunResults]) -> dict[str, tuple[Any, ...]]:
    configs = [flat(run.run.config.model_dump(mode="json")) for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config)
    found = {}
    for key in keys:
        values = tuple(config.get(key) for config in configs)
        if key != "name" and any(value != values[0] for value in values):
            found[key] = values
    return found


def _part(pair: Pair, name: str) -> float:
    return math.nan if pair.agreement is None else getattr(pair.agreement, name).value


def _word(value: Any) -> str:
    return "not set" if value is None else setting_word(value)
