# SPDX-License-Identifier: MIT
"""What a command prints at its end, as text or as one JSON object."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from nasfast.anytime_run import Outcome
from nasfast.cli.progress import rates, short
from nasfast.finetune_run import FinetuneWork
from nasfast.report import (
    CorrelationRow,
    EstimateRow,
    MetricTable,
    PrecisionCheck,
    ReportSummary,
)
from nasfast.scoring import Work
from nasfast.spaces import Space
from nasfast.summary import FineTuningSummary

OUT = Console(highlight=False)
_WIDTH = 100
_SHOWN = 10  # best architectures


def words(value: Any) -> str:
    """Return a plain value as one line of text."""
    if isinstance(value, dict):
        return "; ".join(f"{key}: {words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def paragraph(key: str, value: Any) -> str:
    """Return a named value as one line of text, or one for each entry where that is too long."""
    line = f"{key}: {words(value)}"
    if not isinstance(value, Mapping) or len(line) <= _WIDTH:
        return line
    return "\n".join([f"{key}:", *(f"  {name}: {words(item)}" for name, item in value.items())])


def emit(as_json: bool, plain: dict[str, Any], text: str) -> None:
    """Print a result as one JSON object, or its text."""
    if as_json:
        typer.echo(json.dumps(_strict(plain), allow_nan=False))
    else:
        OUT.print(text, markup=False, soft_wrap=True)


def _strict(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by null."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def emit_summary(
    as_json: bool, summary: ReportSummary, work: Work | None = None,
    tensorboard: Path | None = None,
) -> None:  # fmt: skip
    """Print what a report says, and how fast the call that ended with it was."""
    plain: dict[str, Any] = {
        "headline": summary.headline,
        "correlations": [_correlation(row) for row in summary.correlations],
        "metrics": [] if summary.metrics is None else list(_metrics(summary.metrics)),
        "against_fp32": None if summary.precision is None else _check(summary.precision),
        "report": str(summary.path),
    }
    lines = [summary.headline, *_table(summary.correlations)]
    if summary.precision is not None:
        lines.append(_check_words(summary.precision))
    if work is not None:
        plain["this_call"] = {
            "architectures": work.archs,
            "architectures_per_s": work.archs_per_s,
            "gflops": work.gflops,
            "computing_s": work.computing_s,
            "elapsed_s": work.elapsed_s,
        }
        lines.append(_work_words(work))
    lines.append(f"report: {summary.path}")
    if tensorboard is not None:
        plain["tensorboard"] = str(tensorboard)
        lines.append(f"scalars: {tensorboard}")
    emit(as_json, plain, "\n".join(lines))


def emit_outcome(as_json: bool, outcome: Outcome, spec: Space) -> None:
    """Print what a ranking that stopped early knows, and what it was spared."""
    last, goal = outcome.last, outcome.goal
    shown = last.archs[: goal.k] if goal.kind == "top" else last.archs[:_SHOWN]
    rows = [
        {"index": int(index), "arch": str(spec.from_index(int(index))), "loss": float(loss)}
        for index, loss in zip(shown, last.loss, strict=False)
    ]
    plain: dict[str, Any] = {
        "until": str(goal),
        "minibatches": last.minibatches,
        "of_minibatches": outcome.minibatches,
        "architectures": outcome.began_with,
        "spared": outcome.spared,
        "best": rows,
        "elapsed_s": outcome.work.elapsed_s,
    }
    if last.tau is not None:
        plain["tau"] = {"value": last.tau.value, "interval": [last.tau.low, last.tau.high]}
        found = f"Kendall tau-b {_number(last.tau.value)} so far"
        found += f", of all minibatches {_number(last.tau.low)} to {_number(last.tau.high)}"
    else:
        found = f"the best {goal.k} of {outcome.began_with:,} architectures are known"
    lines = [
        f"{goal}: {found}",
        f"after {last.minibatches} of {outcome.minibatches} minibatches; {outcome.spared:.1%} of "
        f"scoring everything was spared ({outcome.work.elapsed_s:.1f} s)",
        *(f"{row['loss']:10.4f}  {row['index']:>6}  {row['arch']}" for row in rows),
    ]
    emit(as_json, plain, "\n".join(lines))


def emit_finetuning(as_json: bool, summary: FineTuningSummary, work: FinetuneWork) -> None:
    """Print how well the estimators of fine-tuning rank, and how fast the call was."""
    plain: dict[str, Any] = {
        "about": summary.about,
        "estimators": [_estimate(row) for row in summary.rows],
        "diverged": [{"arch": arch, "step": step} for arch, step in summary.diverged],
        "report": None if summary.report is None else str(summary.report),
        "this_call": {
            "architectures": work.archs,
            "steps": work.steps,
            "steps_per_s": work.steps_per_s,
            "computing_s": work.computing_s,
            "elapsed_s": work.elapsed_s,
        },
    }
    lines = [summary.about, *_estimates(summary.rows)]
    for arch, step in summary.diverged:
        lines.append(f"diverged: architecture {arch} at step {step}")
    if work.archs:
        noun = "architecture" if work.archs == 1 else "architectures"
        lines.append(
            f"this call: {work.archs:,} {noun}, {work.steps:,} steps in {work.computing_s:.1f} s "
            f"({short(work.steps_per_s)} steps/s), {work.elapsed_s:.1f} s in all"
        )
    else:
        lines.append(f"this call: every architecture had its curves, {work.elapsed_s:.1f} s in all")
    if summary.report is not None:
        lines.append(f"report: {summary.report}")
    else:
        lines.append(f"next: nasfast rank {summary.folder}, for a report")
    emit(as_json, plain, "\n".join(lines))


def _estimates(rows: Sequence[EstimateRow]) -> Iterator[str]:
    if rows:
        yield _ROW.format("agreement with the ground truth", "Kendall tau-b", "95 % interval",
                          "Spearman", "n", "top 10")  # fmt: skip
    for row in rows:
        tau = row.kendall
        interval = " to ".join(map(_number, tau.interval)) if tau.interval else ""
        top = f"{row.top_truth:.4g}" if math.isfinite(row.top_truth) else ""
        spearman = _number(row.spearman.value)
        yield _ROW.format(row.name, _number(tau.value), interval, spearman, tau.n, top)


def _estimate(row: EstimateRow) -> dict[str, Any]:
    return {
        "estimator": row.name,
        "kendall_tau_b": row.kendall.value,
        "interval": row.kendall.interval,
        "spearman": row.spearman.value,
        "spearman_interval": row.spearman.interval,
        "top_10_mean_truth": row.top_truth,
        "n": row.kendall.n,
        "dropped": row.kendall.dropped,
    }


def _table(rows: Sequence[CorrelationRow]) -> Iterator[str]:
    if rows:
        yield _ROW.format("agreement with the ground truth", "Kendall tau-b",
                          "95 % interval", "Spearman", "n", "ties")  # fmt: skip
    for row in rows:
        tau, rho = row.kendall, row.spearman
        interval = " to ".join(map(_number, tau.interval)) if tau.interval else ""
        spearman = _number(rho.value) if rho else ""
        yield _ROW.format(row.name, _number(tau.value), interval, spearman, tau.n, tau.ties_scores)


_ROW = "  {:<42} {:>13}  {:>16}  {:>9}  {:>6}  {:>6}"  # score, tau, interval, rho, n, ties


def _correlation(row: CorrelationRow) -> dict[str, Any]:
    return {
        "score": row.name,
        "kendall_tau_b": row.kendall.value,
        "spearman": None if row.spearman is None else row.spearman.value,
        "n": row.kendall.n,
        "dropped": row.kendall.dropped,
        "ties_scores": row.kendall.ties_scores,
        "ties_truth": row.kendall.ties_truth,
        "interval": row.kendall.interval,
    }


def _metrics(table: MetricTable) -> Iterator[dict[str, Any]]:
    for row in table.rows:
        for score, cell in zip(table.scores, row.cells, strict=True):
            if cell is not None:
                yield {"score": score, **asdict(cell)}


def _check(check: PrecisionCheck) -> dict[str, Any]:
    return {
        "precision": check.precision,
        "kendall_tau_b": check.kendall.value,
        "interval": check.kendall.interval,
        "n": check.kendall.n,
        "dropped": check.kendall.dropped,
        "largest_accuracy_difference": check.accuracy_difference,
    }


def _check_words(check: PrecisionCheck) -> str:
    return (
        f"{check.precision} against fp32: Kendall tau-b of the losses "
        f"{_number(check.kendall.value)} (n = {check.kendall.n}), accuracies differ by at most "
        f"{100 * check.accuracy_difference:.3g} percentage points"
    )


def _work_words(work: Work) -> str:
    if not work.archs:
        return f"this call: every architecture had its score, {work.elapsed_s:.1f} s in all"
    noun = "architecture" if work.archs == 1 else "architectures"
    return (
        f"this call: {work.archs:,} {noun} in {work.computing_s:.2f} s "
        f"({rates(work, ' architectures/s')}), {work.elapsed_s:.1f} s in all"
    )


def _number(value: float) -> str:
    return f"{value:+.3f}" if math.isfinite(value) else "undefined"
