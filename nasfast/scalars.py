# SPDX-License-Identifier: MIT
"""The numbers of a ranked run as scalars: training, fine-tuning, metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from nasfast import metrics
from nasfast.finetune_summary import finetuning_report
from nasfast.report import ReportSummary, Scalar
from nasfast.runs import Run


def run_scalars(run: Run, summary: ReportSummary) -> Iterator[Scalar]:
    """Yield loss, accuracy and learning rate of each epoch, and the numbers of the report.

    Of fine-tuning that is the rank correlation of each estimator with the ground truth after so
    many steps; of the ranking, each metric of each score, at step 0. What is not finite is left
    out.

    Args:
        run: A ranked run.
        summary: Its report.
    """
    for epoch in run.records():
        for name in ("loss", "accuracy", "lr"):
            yield Scalar(f"training/{name}", epoch.epoch, getattr(epoch, name))
    for tag, step, value in (*_finetuning(run), *_ranking(summary)):
        if np.isfinite(value):
            yield Scalar(tag, step, value)


def _finetuning(run: Run) -> Iterator[Scalar]:
    tuned = finetuning_report(run, run.supernet(run.splits()), run.truth())
    if tuned is None or tuned.truth is None:
        return
    for curve in tuned.curves:
        for step, scores in zip(curve.steps, curve.scores, strict=True):
            if (np.isfinite(scores) & np.isfinite(tuned.truth)).sum() >= 2:
                rho = metrics.spearman(scores, tuned.truth).value
                yield Scalar(_tag("finetuning_spearman", curve.name), step, rho)


def _ranking(summary: ReportSummary) -> Iterator[Scalar]:
    for row in summary.correlations:
        yield Scalar(_tag("kendall_tau_b", row.name), 0, row.kendall.value)
        if row.spearman is not None:
            yield Scalar(_tag("spearman", row.name), 0, row.spearman.value)
    if summary.metrics is not None:
        for metric in summary.metrics.rows:
            for score, cell in zip(summary.metrics.scores, metric.cells, strict=True):
                if cell is not None and cell.resampled != "images":  # that value is above already
                    yield Scalar(_tag(cell.name, score), 0, cell.value)


def _tag(group: str, name: str) -> str:
    """Return a tag of characters that TensorBoard keeps."""
    return "/".join(re.sub(r"[^\w.=-]+", "_", part).strip("_") for part in (group, name))
