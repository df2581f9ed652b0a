# SPDX-License-Identifier: MIT
"""Commands for the official results of benchmarks: import table, table show."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from nasfast import tables
from nasfast.cli.app import JsonFlag, app, guarded
from nasfast.cli.progress import progress
from nasfast.cli.results import emit
from nasfast.tables.columns import is_columns
from nasfast.tables.curve_table import CurveTable
from nasfast.tables.importers import SUFFIX, import_table
from nasfast.tables.overview import overview

imports = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(
    imports,
    name="import",
    help="Convert files of other projects.",
    epilog="Example: `nasfast import table nasbench_only108.tfrecord`",
)
shows = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(
    shows,
    name="table",
    help="Look into converted tables of benchmarks.",
    epilog="Example: `nasfast table show nasbench_only108.table`",
)


@imports.command(
    "table",
    epilog="Examples: `nasfast import table nasbench_only108.tfrecord`; "
    "`nasfast import table NAS-Bench-201-v1_1-096897.pth --out nb201.table`",
)
@guarded
def table(
    source: Annotated[Path, typer.Argument(help="File or folder as its authors publish it.")],
    out: Annotated[
        Path | None, typer.Option("--out", help=f"Table to write; else NAME{SUFFIX} here.")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Write also what is not the whole release.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Convert the official results of a benchmark into one file that opens in a moment.

    What was read is compared with known facts of the release; what is missing is listed. The file
    can then be named in the `[truth]` section of a run's config, with a column such as
    `cifar10/200/test_accuracy`.
    """
    target = out or Path(source.resolve().stem + SUFFIX)
    start = time.perf_counter()
    with progress("MB", quiet=as_json) as (bar, task):

        def on_progress(done: int, total: int) -> None:
            bar.update(task, completed=done // 10**6, total=max(1, total // 10**6))

        report = import_table(source, target, partial=partial, on_progress=on_progress)
    report |= {
        "table": str(target),
        "bytes": target.stat().st_size,
        "seconds": round(time.perf_counter() - start, 3),
    }
    emit(as_json, report, "\n".join([_written(report), *_facts(report)]))


@shows.command("show", epilog="Example: `nasfast table show nasbench_only108.table --json`")
@guarded
def show(
    file: Annotated[Path, typer.Argument(help="Table that nasfast import table wrote.")],
    as_json: JsonFlag = False,
) -> None:
    """Show what a table holds: release, columns, what is missing, and the best rows.

    Every column is compared with its checksum.
    """
    if str(file) in tables.shipped() or (file.is_file() and not is_columns(file)):
        raise ValueError(
            f"{file}: wanted a table that nasfast import table wrote; for one of trainings, "
            f"'nasfast table correlate {file}' shows what its learning curves say"
        )
    found = overview(CurveTable.open(file))
    emit(as_json, {"table": str(file), **found}, "\n".join(_shown(file, found)))


def _written(report: dict[str, Any]) -> str:
    words = "written: {table}: {release}, {rows:,} rows, {bytes:,} bytes, in {seconds:,.1f} s"
    return words.format(**report)


def _facts(report: dict[str, Any]) -> list[str]:
    lines = [
        f"source: {entry['name']}, {entry['bytes']:,} bytes, sha256 {entry['sha256']}"
        for entry in report["sources"]
    ]
    lines += [f"missing: {text}" for text in report["missing"]] or ["missing: nothing"]
    for check in report["checks"]:
        verdict = "as it should be" if check["good"] else f"WRONG, wanted {check['wanted']}"
        lines.append(f"check: {check['name']}: {check['got']}, {verdict}")
    return lines + [f"note: {text}" for text in report.get("notes", [])]


def _shown(file: Path, found: dict[str, Any]) -> list[str]:
    lines = [
        f"{file}: {found['release']}, space {found['space']}, {found['rows']:,} rows, imported by "
        f"nasfast {found['importer']}",
        *_facts(found),
        "checksums: every column is as it was written",
        "columns:",
    ]
    width = max(map(len, found["columns"]))
    for name, column in found["columns"].items():
        shape = " x ".join(f"{size:,}" for size in column["shape"])
        missing = f", {column['missing']:,} missing" if column.get("missing") else ""
        lines.append(f"  {name:<{width}}  {column['type']} {shape}{missing}")
    for name, rows in found["best"].items():
        best = ", ".join(f"{row['mean']:.4f} ({row.get('index', row.get('hash'))})" for row in rows)
        lines.append(f"best {name}, mean of the runs: {best or 'none'}")
    return lines
