# SPDX-License-Identifier: MIT
"""The command line: train, rank, report, explain, build-table, info."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from nasfast import __version__, spaces, tables
from nasfast.config import RunConfig, TableConfig, load_config
from nasfast.layout import SupernetConfig
from nasfast.lower import Mode
from nasfast.report import CorrelationRow, ReportSummary
from nasfast.store import StoreError
from nasfast.train import EpochRecord

app = typer.Typer(
    name="nasfast",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Score whole neural-architecture-search spaces from one supernet.\n\n"
    "A first ranking, with nothing to download:\n\n"
    "    nasfast train configs/nb201_digits.toml\n\n"
    "    nasfast rank runs/nb201_digits\n\n"
    "Every command can be killed and typed again: it goes on where it stopped. "
    "Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.",
)
_out = Console(highlight=False)
_err = Console(stderr=True, highlight=False)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
RunFolder = Annotated[Path, typer.Argument(help="Run folder, for example runs/nb201_digits.")]


_Params = ParamSpec("_Params")


def _guarded(command: Callable[_Params, None]) -> Callable[_Params, None]:
    """Turn what a user can mend into one clear message and an exit code."""

    @functools.wraps(command)
    def guarded(*args: _Params.args, **kwargs: _Params.kwargs) -> None:
        from nasfast.runs import RunError

        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            _err.print("interrupted; type the same command again to go on")
            raise typer.Exit(130) from None
        except (ValueError, FileNotFoundError, RunError, StoreError) as error:
            _err.print(f"error: {error}", markup=False, soft_wrap=True)
            raise typer.Exit(2) from None
        except OSError as error:
            where = f"{error.filename}: {error.strerror}" if error.filename else error
            _err.print(f"error: {where}", markup=False, soft_wrap=True)
            raise typer.Exit(1) from None
        except (FloatingPointError, ImportError) as error:
            _err.print(f"error: {error}", markup=False, soft_wrap=True)
            raise typer.Exit(1) from None

    return guarded


@app.command(epilog="Example: `nasfast train configs/nb201_digits.toml --run runs/first`")
@_guarded
def train(
    config: Annotated[Path, typer.Argument(help="TOML file, such as configs/nb201_digits.toml.")],
    run: Annotated[
        Path | None, typer.Option("--run", help="Run folder; runs/NAME when left out.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Train a supernet by uniformly sampled single paths.

    Writes the run folder: resolved config, weights after every epoch, the trained supernet. What
    ranking will need is checked first.
    """
    from nasfast.runs import Run
    from nasfast.steps import train_run

    checked = load_config(config, RunConfig)
    this = Run.create(checked, run if run is not None else Path("runs") / checked.name)
    with _progress("epochs", quiet=as_json) as (bar, task):

        def on_epoch(record: EpochRecord, epochs: int) -> None:
            words = f"loss {record.loss:.4f}, accuracy {record.accuracy:.1%}"
            bar.update(task, completed=record.epoch + 1, total=epochs, note=words)

        supernet = train_run(this, on_epoch=on_epoch)
    result: dict[str, Any] = {"run": str(this.folder), "parameters": supernet.num_params}
    words = f"trained: {this.supernet_file}, {supernet.num_params:,} parameters"
    for last in this.records()[-1:]:
        result |= {"epochs": last.epoch + 1, "loss": last.loss, "accuracy": last.accuracy}
        words += f", last epoch: loss {last.loss:.4f}, accuracy {last.accuracy:.1%}"
    _print(as_json, result, f"{words}\nnext: nasfast rank {this.folder}")


@app.command(epilog="Example: `nasfast rank runs/nb201_digits`")
@_guarded
def rank(run: RunFolder, as_json: JsonFlag = False) -> None:
    """Score the architectures of a space with a trained supernet, and write the report.

    Which architectures, images and batch-norm modes is said in the `[rank]` section of the
    config. Equal architectures are computed once; every chunk of scores is kept as it is done.
    """
    from nasfast.runs import Run
    from nasfast.steps import rank_run
    from nasfast.summary import report_run

    this = Run.open(run)
    with _progress("architectures", quiet=as_json) as (bar, task):

        def on_progress(what: str, done: int, total: int) -> None:
            words = "" if what == "supernet" else "control: untrained supernet"
            bar.update(task, completed=done, total=total, note=words)

        rank_run(this, on_progress=on_progress)
    _summary(as_json, report_run(this))


@app.command(epilog="Example: `nasfast report runs/nb201_digits --json`")
@_guarded
def report(run: RunFolder, as_json: JsonFlag = False) -> None:
    """Write the report of a ranked run again: one HTML file, and its plots as images."""
    from nasfast.runs import Run
    from nasfast.summary import report_run

    _summary(as_json, report_run(Run.open(run)))


@app.command(
    epilog="Examples: `nasfast explain nb201`; `nasfast explain nb201 --without none`; "
    "`nasfast explain nb201 0 1462 '|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|"
    "avg_pool_3x3~2|'`"
)
@_guarded
def explain(
    space: Annotated[str, typer.Argument(help=f"Search space: {', '.join(spaces.names())}.")],
    archs: Annotated[
        list[str] | None,
        typer.Argument(help="Architecture strings or official indices; the whole space if none."),
    ] = None,
    bn: Annotated[str, typer.Option(help="Statistics of the cells: batch, running, recalibrate.")]
    = "batch",
    affine: Annotated[bool, typer.Option(help="Cells have a trainable scale and shift.")] = False,
    channels: Annotated[int, typer.Option(help="Channels of the first stage.")] = 16,
    cells: Annotated[int, typer.Option(help="Cells a stage.")] = 5,
    image: Annotated[int, typer.Option(help="Height and width of an image.")] = 32,
    without: Annotated[
        list[str] | None, typer.Option(help="Leave out an operation; may be repeated.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:  # fmt: skip
    """Show what merging and sharing save when architectures are scored together.

    One line for each level of merging, weakest first. *networks*: distinct networks that are left
    to run; *operations*: their convolutions and poolings; *MAC* (with G, M or k):
    multiply-accumulates for one image; *first cells*: of these, in the first cell; *shared*: what
    is left of it when networks share equal parts of it.
    """
    from nasfast import explain as count

    spec = spaces.get(space)
    if archs and without:
        raise ValueError("--without: narrows the whole space, so it goes without architectures")
    if archs:
        chosen = [_arch(spec, text) for text in archs]
    else:
        chosen = spec.enumerate(spec.mask(without or []))
    config = SupernetConfig(
        space=space, channels=channels, cells_per_stage=cells, affine=affine, track=bn == "running"
    )
    mode = Mode(bn, affine)  # type: ignore[arg-type]  # checked by Mode itself
    result = count(spec, chosen, config=config, mode=mode, image=(image, image))
    plain = {
        "title": result.title,
        "networks": result.requests,
        "steps": [
            {"merge": step.merge.name.lower(), **{k: v for k, v in vars(step).items()
                                                 if k != "merge"}}
            for step in result.steps
        ],
    }  # fmt: skip
    _print(as_json, plain, str(result))


@app.command(
    "build-table",
    epilog="Example: `nasfast build-table configs/table_digits_nb201_200.toml --out truth.json "
    "--workers 2`",
)
@_guarded
def build_table(
    config: Annotated[Path, typer.Argument(help="TOML file with a [table] section.")],
    out: Annotated[Path, typer.Option("--out", help="Table to write (JSON).")],
    workers: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 1,
    as_json: JsonFlag = False,
) -> None:
    """Train architectures from scratch and write their accuracies as a ground-truth table.

    Name the table in the `[truth]` section of a run's config to have its ranking compared.
    """
    from nasfast.stand_alone import build_table as build

    checked = load_config(config, TableConfig)
    with _progress("trainings", quiet=as_json) as (bar, task):

        def on_progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        build(checked, out, workers=workers, on_progress=on_progress)
    _print(as_json, {"table": str(out)}, f"written: {out}")


@app.command(epilog="Example: `nasfast info --json`")
@_guarded
def info(as_json: JsonFlag = False) -> None:
    """Show versions, backends, spaces and shipped tables, and which paths are slow and why."""
    from nasfast.runs import environment

    facts = {
        **environment(),
        "extensions": {"_host": _extension("_host")},
        "backends": ["reference"],
        "slow_paths": {
            "reference": "plain PyTorch, one lane after another: it is the definition; "
            "fused kernels are not built yet"
        },
        "spaces": {name: spaces.get(name).num_archs for name in spaces.names()},
        "tables": list(tables.shipped()),
    }
    lines = [f"{key}: {_words(value)}" for key, value in facts.items()]
    _print(as_json, facts, "\n".join(lines))


def _extension(name: str) -> str:
    """Say whether a compiled module can be used, and if not, why."""
    full = f"nasfast.{name}"
    try:
        if importlib.util.find_spec(full) is None:
            return "not built; run 'make install'"
        importlib.import_module(full)
    except ImportError as error:
        return f"built, but cannot be imported ({error})"
    return "built"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line."""
    app()


# Output.


class _Rate(ProgressColumn):
    """Items a second over the last moments."""

    def render(self, task: Task) -> Text:
        """Return the rate, nothing while it is unknown."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.1f}/s" if speed else "")


@contextmanager
def _progress(unit: str, *, quiet: bool) -> Iterator[tuple[Progress, TaskID]]:
    """Show a progress bar on the error stream, with rate and time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=_err, disable=quiet) as bar:
        yield bar, bar.add_task(unit, total=None, note="")


def _arch(spec: spaces.CellSpec, text: str) -> spaces.Architecture:
    return spec.from_index(int(text)) if text.lstrip("-").isdecimal() else spec.from_string(text)


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _print(as_json: bool, plain: dict[str, Any], text: str) -> None:
    if as_json:
        typer.echo(json.dumps(_strict(plain), allow_nan=False))
    else:
        _out.print(text, markup=False, soft_wrap=True)


def _strict(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by null."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _summary(as_json: bool, summary: ReportSummary) -> None:
    plain = {
        "headline": summary.headline,
        "correlations": [_correlation(row) for row in summary.correlations],
        "report": str(summary.path),
    }
    lines = [summary.headline]
    if summary.correlations:
        lines.append(_ROW.format("agreement with the ground truth", "Kendall tau-b",
                                 "95 % interval", "Spearman", "n", "ties"))  # fmt: skip
    for row in summary.correlations:
        tau, rho = row.kendall, row.spearman
        interval = " to ".join(map(_number, tau.interval)) if tau.interval else ""
        spearman = _number(rho.value) if rho else ""
        lines.append(
            _ROW.format(row.name, _number(tau.value), interval, spearman, tau.n, tau.ties_scores)
        )
    _print(as_json, plain, "\n".join([*lines, f"report: {summary.path}"]))


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


def _number(value: float) -> str:
    return f"{value:+.3f}" if math.isfinite(value) else "undefined"
