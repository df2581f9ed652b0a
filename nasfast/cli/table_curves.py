# SPDX-License-Identifier: MIT
"""The command about learning curves of a table: table correlate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from nasfast import spaces, tables
from nasfast.cli.app import JsonFlag, guarded
from nasfast.cli.progress import progress
from nasfast.cli.results import emit
from nasfast.cli.tables import shows
from nasfast.files import check_target, write_bytes
from nasfast.from_table import TableCorrelations, curves_of, estimator_correlations
from nasfast.tables import CurveTable, TrainingTable
from nasfast.tables.arrays import read_arrays
from nasfast.tables.columns import is_columns
from nasfast.tables.trainings import HEADER


@shows.command(
    "correlate",
    epilog="Examples: `nasfast table correlate digits-nb201`; `nasfast table correlate "
    "NATS-tss-v1_0-3ffb9-simple.table --dataset cifar10-valid --truth cifar10/200/test_accuracy "
    "--png curves.png`",
)
@guarded
def correlate(
    table: Annotated[
        str, typer.Argument(help="Table that nasfast import table or build-table wrote, or name.")
    ],
    dataset: Annotated[
        str | None, typer.Option(help="Of an imported table: whose curves, as in its columns.")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="Likewise: length of the trainings; the longest if none.")
    ] = None,
    truth: Annotated[
        str | None, typer.Option(help="Column to compare with; the final test accuracy if none.")
    ] = None,
    estimator: Annotated[
        list[str] | None, typer.Option(help="sotl, sotl_e10, ema...; may be repeated.")
    ] = None,
    epoch: Annotated[
        list[int] | None, typer.Option(help="Epochs to look at; may be repeated.")
    ] = None,
    top: Annotated[
        list[float] | None, typer.Option(help="Shares of the architectures; may be repeated.")
    ] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="Resamples for intervals.")] = 100,
    png: Annotated[Path | None, typer.Option(help="Plot to write.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show how early estimators order architectures as their final accuracy does.

    From learning curves of trainings from scratch that the table has, nothing is trained: sum of
    training losses (*sotl*), of the last epochs (*sotl_e10*), with discount (*ema*), validation
    accuracy and losses, where there are any.
    """
    if png is not None:
        check_target(png, "--png")
    curves = curves_of(_opened(table), dataset, schedule, truth)
    with progress("estimates", quiet=as_json) as (bar, task):

        def on_progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        found = estimator_correlations(
            curves, estimator, epochs=epoch, top=top or (1.0, 0.1), bootstrap=bootstrap,
            on_progress=on_progress,
        )  # fmt: skip
    plain, lines = found.plain(), list(_lines(found))
    if png is not None:
        from nasfast.report.plots import to_png
        from nasfast.report.table_plots import table_plot

        write_bytes(png, to_png(table_plot(found)))
        plain["png"] = str(png)
        lines.append(f"plot: {png}")
    emit(as_json, plain, "\n".join(lines))


def _opened(name: str) -> CurveTable | TrainingTable:
    if name not in tables.shipped() and Path(name).is_file():
        if is_columns(name):
            return CurveTable.open(name)
        if HEADER not in read_arrays(Path(name), ())[0]:
            raise ValueError(
                f"{name}: wanted a table with learning curves, got one with values alone"
            )
    found = tables.load(name, spaces.get("nb201"), "test")
    assert isinstance(found, TrainingTable)  # shipped ones are, and others have its header
    return found


def _lines(found: TableCorrelations) -> Iterator[str]:
    seeds = ", ".join(map(str, found.seeds))
    yield f"{found.name}: trainings of {found.epochs} epochs, seeds {seeds}"
    yield f"truth: {found.truth_name}"
    for share in dict.fromkeys(point.top for point in found.points):
        of_share = [point for point in found.points if point.top == share]
        rows = {p.spearman.n for p in of_share}
        count = f"{min(rows):,}" if len(rows) == 1 else f"{min(rows):,} to {max(rows):,}"
        which = "all" if share == 1.0 else f"best {100 * share:g} %"
        yield f"Spearman / Kendall tau-b over {count} {found.unit} ({which}):"
        epochs = sorted({point.epoch for point in of_share})
        shown = [t for k, t in enumerate(epochs) if k % -(-len(epochs) // 6) == 0]
        shown = sorted({*shown, epochs[-1]})
        yield f"  {'epoch':<15}" + "".join(f"{epoch:>16}" for epoch in shown)
        for name in dict.fromkeys(point.estimator for point in of_share):
            by_epoch = {point.epoch: point for point in of_share if point.estimator == name}
            cells = [
                f"{by_epoch[t].spearman.value:.3f} / {by_epoch[t].kendall.value:.3f}"
                if t in by_epoch
                else "-"
                for t in shown
            ]
            yield f"  {name:<15}" + "".join(f"{cell:>16}" for cell in cells)
