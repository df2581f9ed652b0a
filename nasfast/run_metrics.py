# SPDX-License-Identifier: MIT
"""What one run came to, as numbers that can be put beside those of other runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nasfast import estimators, metrics
from nasfast.curve_store import CurveStore
from nasfast.finetune_run import as_finetuned, curve_settings
from nasfast.runs import Run
from nasfast.scoring import as_scored, score_settings
from nasfast.store import ScoreStore
from nasfast.supernet import Supernet

TOP = 10  # architectures whose overlap is counted

_Floats = npt.NDArray[np.float64]
_Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Metric:
    """A number of a run.

    Attributes:
        key: Name in CSV and JSON.
        title: Head of its column.
        meaning: What it is.
    """

    key: str
    title: str
    meaning: str


METRICS = (
    Metric("tau", "tau-b", "Kendall's tau-b of the negated supernet loss with the truth"),
    Metric("spearman", "Spearman", "Spearman's rho of the same"),
    Metric("best_accuracy", "best: accuracy", "supernet accuracy of the least loss"),
    Metric("best_truth", "best: truth", "truth of the least loss, of those with a truth; the mean "
           "where several have that loss"),
    Metric("regret", "regret", "how far that is below the best truth of all"),
    Metric("sotl_tau", "SoTL tau-b", "Kendall's tau-b of SoTL, the negated sum of the training "
           "losses of fine-tuning, with the truth, over the architectures fine-tuned"),
    Metric("mean_accuracy", "mean accuracy", "mean supernet accuracy of all ranked"),
    Metric("training_loss", "training loss", "mean training loss of the last epoch"),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class RunResults:
    """What a run came to.

    Attributes:
        run: The run, with the backends and precisions of what it holds.
        archs: Official indices of the architectures ranked, ascending, ``[archs]``; none where
            nothing is ranked.
        loss: Mean loss of each.
        accuracy: Accuracy of each.
        truth_name: What a value of the ground truth is; empty without one.
        with_truth: Architectures that the rank correlations use.
        ties: Of these, how many share their loss with another.
        finetuned: Architectures fine-tuned.
        metrics: By key of :data:`METRICS`; NaN where there is none.
    """

    run: Run
    archs: _Indices
    loss: _Floats
    accuracy: _Floats
    truth_name: str
    with_truth: int
    ties: int
    finetuned: int
    metrics: dict[str, float]


def read_results(run: Run) -> RunResults:
    """Read what a run came to; what is not done yet is left out.

    Args:
        run: A trained run.

    Raises:
        RunError: If it is not trained, or its weights are of another shape.
        StoreError: If scores or curves are damaged, or of other weights or settings.
        ValueError: If the ground truth does not fit.
    """
    run = as_finetuned(as_scored(run))
    supernet = run.supernet(run.splits())
    table = run.truth()
    archs, loss, accuracy = _scores(run, supernet)
    tuned, sotl = _sotl(run, supernet)
    found = dict.fromkeys((metric.key for metric in METRICS), math.nan)
    found["best_accuracy"] = _value(_of_best, -loss, accuracy)
    found["mean_accuracy"] = float(accuracy.mean()) if len(archs) else math.nan
    records = run.records()
    if records:
        found["training_loss"] = records[-1].loss
    with_truth = ties = 0
    if table is not None:
        truth = table.truth[archs]
        found["best_truth"] = _value(_of_best, -loss, truth)
        found["regret"] = _value(_regret, -loss, truth)
        found["spearman"] = _value(metrics.spearman, -loss, truth, least=2)
        if _rows(-loss, truth) >= 2:
            tau = metrics.kendall_tau(-loss, truth)
            found["tau"], with_truth, ties = tau.value, tau.n, tau.ties_scores
        found["sotl_tau"] = _value(metrics.kendall_tau, sotl, table.truth[tuned], least=2)
    name = "" if table is None else table.truth_name
    return RunResults(
        run, archs, loss, accuracy, name, with_truth, ties, len(tuned), found
    )  # fmt: skip


def agreement(one: RunResults, other: RunResults) -> tuple[metrics.RankingAgreement | None, int]:
    """Compare the rankings by loss of two runs of one space.

    Returns:
        Their agreement over the architectures that both have a finite loss of, and how many these
        are; None where these are fewer than two.
    """
    _, here, there = np.intersect1d(one.archs, other.archs, return_indices=True)
    columns = -one.loss[here], -other.loss[there]
    common = _rows(*columns)
    if common < 2:
        return None, common
    return metrics.ranking_agreement(*columns, k=TOP), common


def _scores(run: Run, supernet: Supernet) -> tuple[_Indices, _Floats, _Floats]:
    if not run.score_file.is_file():
        return np.array([], dtype=np.int64), np.array([]), np.array([])
    with ScoreStore(run.score_file, score_settings(run, supernet)) as store:
        return store.read("supernet")


def _sotl(run: Run, supernet: Supernet) -> tuple[_Indices, _Floats]:
    if run.curve_file.is_file():
        with CurveStore(run.curve_file, curve_settings(run, supernet)) as store:
            archs, curves = store.read("supernet")
        if len(archs):
            return archs, estimators.sotl(curves.loss)
    return np.array([], dtype=np.int64), np.array([])


def _of_best(scores: _Floats, values: _Floats) -> metrics.Measured:
    return metrics.top_k_mean(scores, values, 1)


def _regret(scores: _Floats, truth: _Floats) -> metrics.Measured:
    return metrics.top_k_regret(scores, truth, 1)


def _value(
    metric: Callable[[_Floats, _Floats], metrics.Measured], one: _Floats, other: _Floats, *,
    least: int = 1,
) -> float:  # fmt: skip
    """Return a metric, NaN over fewer rows than it takes."""
    return metric(one, other).value if _rows(one, other) >= least else math.nan


def _rows(one: _Floats, other: _Floats) -> int:
    return int((np.isfinite(one) & np.isfinite(other)).sum())
