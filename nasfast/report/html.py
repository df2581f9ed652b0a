# SPDX-License-Identifier: MIT
"""Writes a report as one HTML file that needs nothing else: no script, no font, no network."""

from __future__ import annotations

import itertools
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from nasfast import metrics
from nasfast.report import numbers
from nasfast.report.correlate import correlations
from nasfast.report.curve_plots import make_curve_plots
from nasfast.report.draw import ABSENT_OP, OpStyle, draw_cell, draw_line, op_styles
from nasfast.report.finetuning import TOP, estimate_rows
from nasfast.report.measures import metric_table
from nasfast.report.model import (
    CorrelationRow,
    EstimateRow,
    MetricTable,
    PrecisionCheck,
    RankedArch,
    Report,
    ReportSummary,
)
from nasfast.report.plots import Plot, make_plots, to_png, to_svg
from nasfast.report.tables import cost_cells, metric_cells, value_cell
from nasfast.report.template import PAGE, STYLE_SHEET
from nasfast.report.top_plots import make_top_curves, make_usage_plots

_LOG = logging.getLogger(__name__)


def write_report(report: Report, path: Path, *, png_folder: Path | None = None) -> ReportSummary:
    """Writes a report as one self-contained HTML file; equal reports give equal bytes.

    A file already at ``path`` is replaced in one step; after an error neither a new nor a
    half-written file stays.

    Args:
        report: The contents.
        path: The HTML file; its folder must exist.
        png_folder: Where to put the plots as PNG too; made if it does not exist.

    Returns:
        The headline, the correlations and the paths written.

    Raises:
        OSError: If a file cannot be written.
    """
    path = Path(path)
    rows = correlations(report)
    headline = _headline(report, rows)
    table = metric_table(report)
    scatters, spread = make_plots(report)
    tuned = () if report.finetuning is None else make_curve_plots(report.finetuning)
    estimates = () if report.finetuning is None else estimate_rows(report.finetuning)
    plots = {
        "scatters": scatters,
        "tops": make_top_curves(report),
        "spread": spread,
        "usages": make_usage_plots(report),
    }
    finetuning = _finetuning(report, estimates, tuned)
    files = {path: _page(report, headline, rows, table, plots, finetuning).encode()}
    pngs: tuple[Path, ...] = ()
    if png_folder is not None:
        drawn = (*itertools.chain.from_iterable(plots.values()), *tuned)
        images = {Path(png_folder) / f"{plot.name}.png": to_png(plot) for plot in drawn}
        pngs = tuple(images)
        # The page comes last: once it is there, so is everything else.
        files = images | files
        Path(png_folder).mkdir(exist_ok=True)
    _replace_all(files)
    _LOG.info("wrote %s", ", ".join(str(file) for file in files))
    return ReportSummary(headline, rows, path, pngs, report.precision, estimates, table)


def _replace_all(files: Mapping[Path, bytes]) -> None:
    """Puts each file in place of what is there, none before all of them are on the disk."""
    pending: dict[Path, Path] = {}
    try:
        for path, content in files.items():
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
            with temporary.open("xb") as file:
                pending[temporary] = path
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for temporary, path in pending.items():
            os.replace(temporary, path)
    finally:
        for temporary in pending:
            temporary.unlink(missing_ok=True)


def _page(
    report: Report,
    headline: str,
    rows: Sequence[CorrelationRow],
    table: MetricTable | None,
    plots: Mapping[str, Sequence[Plot]],
    finetuning: dict[str, Any] | None,
) -> str:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    styles = op_styles(op for arch in report.top for op in arch.cell.ops)
    known = 0 if report.truth is None else int(np.isfinite(report.truth).sum())
    low = _scale_low([row.kendall for row in rows])
    return environment.from_string(PAGE).render(
        report=report,
        style_sheet=Markup(STYLE_SHEET),
        headline=headline,
        size=numbers.things(np.size(report.loss), "architecture", "architectures"),
        known=numbers.count(known),
        rows=[_correlation_cells(row, low) for row in rows],
        scale_low=numbers.count(low),
        table=None if table is None else metric_cells(table, report),
        cost=None if report.cost is None else cost_cells(report.cost),
        **{name: [_figure(plot) for plot in group] for name, group in plots.items()},
        precision=None if report.precision is None else _precision_cells(report.precision),
        finetuning=finetuning,
        top=[_arch_cells(arch, styles) for arch in report.top],
        legend=[{"name": op, "line": Markup(draw_line(style))} for op, style in styles.items()],
        has_absent=any(op == ABSENT_OP for a in report.top for op in a.cell.ops),
        has_blocks=any(a.cell.node_ops for a in report.top),
    )


def _headline(report: Report, rows: Sequence[CorrelationRow]) -> str:
    """The result in a few sentences of plain text."""
    size = numbers.things(np.size(report.loss), "architecture", "architectures")
    loss = np.asarray(report.loss, dtype=np.float64)
    if report.top:
        best = report.top[0]
        index, best_loss, best_accuracy = best.index, best.loss, best.accuracy
    else:
        index = int(metrics.top_k(-loss, 1)[0])
        best_loss, best_accuracy = float(loss[index]), float(report.accuracy[index])
    if np.isfinite(loss).any():
        text = (
            f"Of {size} in {report.space}, number {index} ranks first, with a loss of "
            f"{numbers.significant(best_loss)} and an accuracy of {numbers.percent(best_accuracy)}."
        )
    else:
        text = f"Of {size} in {report.space}, none has a finite loss."
    if not rows:
        return text
    tau = rows[0].kendall
    if not np.isfinite(tau.value):
        return f"{text} The Kendall tau-b of the loss with the ground truth is undefined."
    interval = f"95 % interval {numbers.interval(tau.interval)}; " if tau.interval else ""
    ties = numbers.things(tau.ties_scores, "architecture shares", "architectures share")
    return (
        f"{text} Ranking by loss reaches a Kendall tau-b of {numbers.correlation(tau.value)} with "
        f"the ground truth ({interval}n = {numbers.count(tau.n)}; {ties} a loss with another). "
        f"The ground truth is {report.truth_name}."
    )


def _precision_cells(check: PrecisionCheck) -> dict[str, Any]:
    tau = check.kendall
    return {
        "name": check.precision,
        "words": {"bf16": "bfloat16"}.get(check.precision, check.precision),
        "size": numbers.count(tau.n + tau.dropped),
        "dropped": numbers.count(tau.dropped) if tau.dropped else "",
        "kendall": value_cell(tau),
        "n": numbers.count(tau.n),
        "difference": numbers.significant(100.0 * check.accuracy_difference, 3),
    }


def _finetuning(
    report: Report, rows: Sequence[EstimateRow], plots: Sequence[Plot]
) -> dict[str, Any] | None:
    tuned = report.finetuning
    if tuned is None:
        return None
    low = _scale_low([row.kendall for row in rows])
    return {
        "about": tuned.about,
        "truth_name": tuned.truth_name,
        "top": TOP,
        "scale_low": numbers.count(low),
        "rows": [
            {
                "name": row.name,
                "whisker": Markup(_whisker(row.kendall, low)),
                "spearman": value_cell(row.spearman),
                "kendall": value_cell(row.kendall),
                "top": numbers.significant(row.top_truth),
                "n": numbers.count(row.kendall.n),
                "dropped": numbers.count(row.kendall.dropped),
            }
            for row in rows
        ],
        "plots": [_figure(plot) for plot in plots],
        "diverged": _diverged_words(tuned.diverged),
    }


def _diverged_words(diverged: Sequence[tuple[int, int]]) -> str:
    """How many diverged, and when; the first twenty by name."""
    if not diverged:
        return "No architecture diverged."
    named = [f"{index} at step {step}" for index, step in diverged[:20]]
    more = f", and {numbers.count(len(diverged) - 20)} more" if len(diverged) > 20 else ""
    verb = numbers.things(len(diverged), "architecture", "architectures")
    return f"{verb} diverged (number {', '.join(named)}{more}); they rank last."


def _figure(plot: Plot) -> dict[str, Any]:
    return {"svg": Markup(to_svg(plot)), "caption": plot.caption}


def _correlation_cells(row: CorrelationRow, scale_low: int) -> dict[str, Any]:
    return {
        "name": row.name,
        "whisker": Markup(_whisker(row.kendall, scale_low)),
        "kendall": value_cell(row.kendall),
        "spearman": None if row.spearman is None else value_cell(row.spearman),
        "n": numbers.count(row.kendall.n),
        "ties_scores": numbers.count(row.kendall.ties_scores),
        "ties_truth": numbers.count(row.kendall.ties_truth),
        "dropped": numbers.count(row.kendall.dropped),
    }


def _scale_low(rows: Sequence[metrics.RankCorrelation]) -> int:
    """Left end of the scale that all whiskers share: 0, or -1 where anything is negative."""
    values = [row.value for row in rows]
    values += [row.interval[0] for row in rows if row.interval]
    return -1 if any(value < 0.0 for value in values) else 0


def _whisker(result: metrics.RankCorrelation, scale_low: int) -> str:
    """A dot for the correlation and a line for its interval, on the scale of the table."""

    def x(value: float) -> str:
        return f"{4.0 + 152.0 * (value - scale_low) / (1 - scale_low):.1f}"

    parts = [
        '<path d="M4 12H156" stroke="#c9ccd1"/>',
        f'<path d="M{x(0.0)} 5V19" stroke="#8b9097"/>',
    ]
    if np.isfinite(result.value):
        if result.interval:
            low, high = result.interval
            parts.append(f'<path d="M{x(low)} 12H{x(high)}" stroke="#1d4f91" stroke-width="4"/>')
        parts.append(f'<circle cx="{x(result.value)}" cy="12" r="4" fill="#1d4f91"/>')
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 160 24" '
        f'aria-hidden="true">{"".join(parts)}</svg>'
    )


def _arch_cells(arch: RankedArch, styles: Mapping[str, OpStyle]) -> dict[str, Any]:
    # A long string may break after a node or an edge, and copies as it was.
    text = Markup("<wbr>").join(arch.arch.replace("|", "|\0").replace("+", "+\0").split("\0"))
    return {
        "rank": numbers.count(arch.rank),
        "index": str(arch.index),
        "arch": text,
        "loss": numbers.significant(arch.loss),
        "accuracy": numbers.percent(arch.accuracy),
        "params": numbers.millions(arch.params),
        "flops": numbers.millions(arch.flops),
        "truth": "unknown" if arch.truth is None else numbers.significant(arch.truth),
        "cell": Markup(draw_cell(arch.cell, styles)),
    }
