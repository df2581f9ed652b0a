# SPDX-License-Identifier: MIT
"""The results of an experiment: over seeds, across supernets, as Markdown, CSV and plain values.

``experiment.md`` has one row a grid point. ``experiment.csv`` has one line a run: its label, the
value of each key of the grid, seed, state (done, failed or to do), counts, and every metric.
``experiment_points.csv`` has one line a grid point: for each metric ``_mean``, ``_std``, ``_low``,
``_high`` (ends of the interval) and ``_n`` (seeds that have it), and how its seeds agree.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from nasfast import metrics
from nasfast.experiment_config import Experiment, GridPoint
from nasfast.markdown import MISSING, markdown_table, number
from nasfast.run_metrics import METRICS, TOP, Metric, RunResults, agreement

CONFIDENCE = 0.95
INTERVAL = f"{100 * CONFIDENCE:g} % t interval over seeds"

# Which number of a supernet tells how good a search with it is?
_ACROSS = (
    *itertools.product(("training_loss", "mean_accuracy", "best_accuracy"), ("tau", "best_truth")),
    ("tau", "best_truth"),
)
_LEAST_SUPERNETS = 3
_RESAMPLES = 1000


@dataclass(frozen=True)
class OverSeeds:
    """A metric over the seeds of a grid point.

    Attributes:
        mean: Over the seeds that have it; NaN for none.
        std: Standard deviation, with n - 1; NaN below two seeds.
        low: Lower end of the t interval of the mean; NaN likewise.
        high: Upper end.
        n: Seeds that have it.
    """

    mean: float
    std: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class SeedAgreement:
    """How alike the rankings of the seeds of a grid point are, two at a time.

    Attributes:
        pairs: Of seeds.
        tau_mean: Mean of Kendall's tau-b between two rankings by loss; NaN without pairs.
        tau_min: Least of them.
        tau_max: Largest.
        overlap_mean: Mean share of the ten best of one that are among those of the other.
        common: Least number of architectures that both of a pair have ranked.
    """

    pairs: int
    tau_mean: float
    tau_min: float
    tau_max: float
    overlap_mean: float
    common: int


@dataclass(frozen=True)
class PointResults:
    """A grid point.

    Attributes:
        point: Which.
        seeds: Runs that are done.
        metrics: By key.
        agreement: Between its seeds.
    """

    point: GridPoint
    seeds: int
    metrics: dict[str, OverSeeds]
    agreement: SeedAgreement


@dataclass(frozen=True)
class ExperimentResults:
    """What an experiment came to, so far.

    Attributes:
        experiment: Which.
        runs: Results by label, of the runs that are done.
        failed: Messages by label, of those that failed.
    """

    experiment: Experiment
    runs: Mapping[str, RunResults]
    failed: Mapping[str, str]

    def points(self) -> list[PointResults]:
        """Return a row for each grid point."""
        rows = []
        for point in self.experiment.points:
            own = [
                self.runs[run.label]
                for run in self.experiment.runs
                if run.point == point and run.label in self.runs
            ]
            values = {m.key: over_seeds([r.metrics[m.key] for r in own]) for m in METRICS}
            rows.append(PointResults(point, len(own), values, seed_agreement(own)))
        return rows

    def across(self) -> dict[tuple[str, str], metrics.RankCorrelation]:
        """Return how metrics go together across all supernets; none of fewer than three."""
        found: dict[tuple[str, str], metrics.RankCorrelation] = {}
        for pair in _ACROSS:
            columns = {key: [run.metrics[key] for run in self.runs.values()] for key in pair}
            both = np.isfinite(np.array(list(columns.values()))).all(axis=0)
            if both.sum() >= _LEAST_SUPERNETS:
                found |= metrics.correlation_across_supernets(
                    columns, bootstrap=_RESAMPLES, confidence=CONFIDENCE
                )
        return found

    def plain(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "experiment": self.experiment.name,
            "folder": str(self.experiment.folder),
            "interval": INTERVAL,
            "points": [
                {
                    "label": row.point.label,
                    "settings": dict(row.point.settings),
                    "seeds": row.seeds,
                    "metrics": {key: asdict(value) for key, value in row.metrics.items()},
                    "agreement": asdict(row.agreement),
                }
                for row in self.points()
            ],
            "across_supernets": [
                {"metrics": list(pair), "spearman": c.value, "n": c.n, "interval": c.interval}
                for pair, c in self.across().items()
            ],
            "runs": [dict(zip(self._run_head(), line, strict=True)) for line in self._run_lines()],
            "failed": dict(self.failed),
        }

    def markdown(self) -> str:
        """Return the tables, with what their columns mean."""
        rows, shown = self.points(), self._shown()
        titles = [metric.title for metric in shown]

        def table(cell: Callable[[OverSeeds, int], str], more: bool) -> str:
            head = [*(self.experiment.keys or ("settings",)), "seeds", *titles]
            cells = [
                [*_setting_words(row.point), str(row.seeds),
                 *(cell(row.metrics[m.key], row.seeds) for m in shown),
                 *(_agreement_words(row.agreement) if more else ())]
                for row in rows
            ]  # fmt: skip
            head += ["seeds agree: tau-b", f"top {TOP} shared"] if more else []
            return markdown_table(head, cells, left=max(1, len(self.experiment.keys)))

        parts = [
            f"# {self.experiment.name}",
            self._about(),
            f"Mean ± standard deviation over seeds (n {MINUS} 1):",
            table(_mean_words, more=True),
            f"{INTERVAL}, of the mean; with few seeds it may leave the range of a metric:",
            table(_interval_words, more=False),
            _legend(shown, [row.agreement.common for row in rows if row.agreement.pairs]),
        ]
        across = self.across()
        if across:
            parts += [
                "Spearman's rho across all supernets, each being one point (runs of one grid point "
                "are alike in more than chance):",
                _across_table(across),
            ]
        if self.failed:
            lines = [f"- {label}: {message}" for label, message in self.failed.items()]
            parts += ["Failed:", "\n".join(lines)]
        return "\n\n".join(parts) + "\n"

    def runs_csv(self) -> str:
        """Return one line a run."""
        return _csv(self._run_head(), self._run_lines())

    def points_csv(self) -> str:
        """Return one line a grid point."""
        rows = self.points()
        head = [*self.experiment.keys, "seeds"]
        head += [f"{m.key}_{name}" for m in METRICS for name in OverSeeds.__dataclass_fields__]
        head += [f"seeds_agree_{name}" for name in SeedAgreement.__dataclass_fields__]
        lines = [
            [*row.point.settings.values(), row.seeds,
             *(value for m in METRICS for value in asdict(row.metrics[m.key]).values()),
             *asdict(row.agreement).values()]
            for row in rows
        ]  # fmt: skip
        return _csv(head, lines)

    def _run_head(self) -> list[str]:
        head = ["run", *self.experiment.keys, "seed", "state", "architectures", "with_truth"]
        return [*head, "ties", "finetuned", *(m.key for m in METRICS)]

    def _run_lines(self) -> Iterator[list[Any]]:
        for run in self.experiment.runs:
            found = self.runs.get(run.label)
            state = "done" if found else "failed" if run.label in self.failed else "to do"
            line = [run.label, *run.point.settings.values(), run.config.seed, state]
            if found is None:
                yield line + [None] * (4 + len(METRICS))
            else:
                counts = [len(found.archs), found.with_truth, found.ties, found.finetuned]
                yield line + counts + [found.metrics[m.key] for m in METRICS]

    def _shown(self) -> list[Metric]:
        """Return the metrics that any run has."""
        return [
            metric for metric in METRICS
            if any(math.isfinite(run.metrics[metric.key]) for run in self.runs.values())
        ]  # fmt: skip

    def _about(self) -> str:
        of = self.experiment
        config = of.runs[0].config
        seeds = ", ".join(map(str, of.seeds))
        words = [
            f"{len(self.runs)} of {len(of.runs)} runs done: {len(of.points)} grid points, seeds "
            f"{seeds}. A seed draws initial weights, paths, minibatches, and the images and "
            "architectures where not all are used.",
            f"Space {config.supernet.space}, images {config.data.name}.",
        ]
        done = list(self.runs.values())
        truths = {run.truth_name: None for run in done if run.truth_name}
        if truths:
            words.append(f"Truth: {'; '.join(truths)}.")
        if any(run.with_truth for run in done):
            words.append(
                f"Rank correlations over {_span([run.with_truth for run in done])} architectures "
                f"a run, {_span([run.ties for run in done])} of which share their loss with "
                "another."
            )
        return "\n".join(words)


MINUS = "\N{MINUS SIGN}"


def over_seeds(values: Sequence[float]) -> OverSeeds:
    """Return mean, deviation and t interval of the values that are finite.

    The interval is ``mean ± t(0.975; n - 1) std / sqrt(n)``. It takes seeds as drawn from a normal
    distribution, which few seeds cannot show.
    """
    known = np.array([value for value in values if math.isfinite(value)], dtype=np.float64)
    n = len(known)
    mean = float(known.mean()) if n else math.nan
    if n < 2:
        return OverSeeds(mean, math.nan, math.nan, math.nan, n)
    std = float(known.std(ddof=1))
    half = float(stdtrit(n - 1, (1.0 + CONFIDENCE) / 2.0)) * std / math.sqrt(n)
    return OverSeeds(mean, std, mean - half, mean + half, n)


def seed_agreement(runs: Sequence[RunResults]) -> SeedAgreement:
    """Compare every two runs of a grid point; pairs with fewer than two architectures are none."""
    found = [agreement(one, other) for one, other in itertools.combinations(runs, 2)]
    known = [(pair, common) for pair, common in found if pair is not None]
    if not known:
        return SeedAgreement(0, math.nan, math.nan, math.nan, math.nan, 0)
    taus = np.array([pair.kendall.value for pair, _ in known])
    overlaps = np.array([pair.overlap.value for pair, _ in known])
    return SeedAgreement(
        len(known), float(taus.mean()), float(taus.min()), float(taus.max()),
        float(overlaps.mean()), min(common for _, common in known),
    )  # fmt: skip


def setting_word(value: Any) -> str:
    """Return a plain value as TOML has it, a word without quotes."""
    return value if isinstance(value, str) else json.dumps(value)


def _legend(shown: Sequence[Metric], common: Sequence[int]) -> str:
    lines = [f"{metric.title}: {metric.meaning}." for metric in shown]
    if common:
        lines += [
            "seeds agree: Kendall's tau-b between the rankings by loss of two seeds, mean (least "
            f"to largest) over all pairs of seeds; over {_span(common)} architectures that both "
            "have ranked.",
            f"top {TOP} shared: share of the {TOP} best of one seed that are among those of "
            "another, mean over the pairs.",
        ]
    return "\n".join(f"- {line}" for line in lines)


def _setting_words(point: GridPoint) -> list[str]:
    return [setting_word(value) for value in point.settings.values()] or [point.label]


def _mean_words(value: OverSeeds, seeds: int) -> str:
    words = number(value.mean)
    if math.isfinite(value.std):
        words += f" ± {number(value.std)}"
    return words if value.n in (0, seeds) else f"{words} (n = {value.n})"


def _interval_words(value: OverSeeds, _: int) -> str:
    if not math.isfinite(value.low):
        return MISSING
    return f"{number(value.low)} to {number(value.high)}"


def _agreement_words(value: SeedAgreement) -> tuple[str, str]:
    if not value.pairs:
        return MISSING, MISSING
    span = f"({number(value.tau_min)} to {number(value.tau_max)})"
    tau = number(value.tau_mean) + (f" {span}" if value.pairs > 1 else "")
    return tau, number(value.overlap_mean)


def _across_table(found: Mapping[tuple[str, str], metrics.RankCorrelation]) -> str:
    titles = {metric.key: metric.title for metric in METRICS}
    rows = []
    for (a, b), one in found.items():
        ends = MISSING if one.interval is None else " to ".join(number(x) for x in one.interval)
        rows.append([titles[a], titles[b], number(one.value), ends, str(one.n)])
    head = [
        "metric",
        "with",
        "Spearman",
        f"{100 * CONFIDENCE:g} % bootstrap interval over supernets",
        "supernets",
    ]
    return markdown_table(head, rows, left=2)


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _csv(head: Sequence[str], lines: Iterator[list[Any]] | list[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([_cell(value) for value in line] for line in lines)
    return text.getvalue()


def _cell(value: Any) -> str:
    """Return a value for CSV: all digits, and nothing where there is no number."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return setting_word(value)
