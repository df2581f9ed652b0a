# SPDX-License-Identifier: MIT
"""The command line: train, rank, finetune, report, explain, build-table, info."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer

from nasfast import __version__, slow_paths, spaces, tables
from nasfast.cli_output import (
    ERR,
    emit,
    emit_finetuning,
    emit_outcome,
    emit_summary,
    finetuning_progress,
    paragraph,
    progress,
    ranking_progress,
    until_progress,
)
from nasfast.config import RunConfig, TableConfig, load_config
from nasfast.layout import SupernetConfig
from nasfast.lower import Mode
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
            ERR.print("interrupted; type the same command again to go on")
            raise typer.Exit(130) from None
        except (ValueError, FileNotFoundError, RunError, StoreError) as error:
            ERR.print(f"error: {error}", markup=False, soft_wrap=True)
            raise typer.Exit(2) from None
        except OSError as error:
            where = f"{error.filename}: {error.strerror}" if error.filename else error
            ERR.print(f"error: {where}", markup=False, soft_wrap=True)
            raise typer.Exit(1) from None
        except (FloatingPointError, ImportError) as error:
            ERR.print(f"error: {error}", markup=False, soft_wrap=True)
            raise typer.Exit(1) from None

    return guarded


@app.command(
    epilog="Examples: `nasfast train configs/nb201_digits.toml --run runs/first`; "
    "`nasfast train configs/nb201_cifar10.toml --precision bf16 --threads 2`"
)
@_guarded
def train(
    config: Annotated[Path, typer.Argument(help="TOML file, such as configs/nb201_digits.toml.")],
    run: Annotated[
        Path | None, typer.Option("--run", help="Run folder; runs/NAME when left out.")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="auto, cpu (compiled) or reference (plain PyTorch).")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp64.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Train a supernet by sampled single paths.

    Writes the run folder: resolved config, weights after every epoch, the trained supernet. What
    ranking will need is checked first.
    Options take the place of values of the config: `--backend` and `--precision` change the
    weights and become part of the run's config; `--threads` changes nothing but time (with backend
    reference it may change last digits).
    """
    from nasfast.runs import Run
    from nasfast.steps import train_run

    checked = load_config(config, RunConfig)
    checked = checked.with_options("train", backend=backend, precision=precision)
    this = Run.create(checked, run if run is not None else Path("runs") / checked.name)
    this = this.with_options(threads=threads)
    with progress("epochs", quiet=as_json) as (bar, task):

        def on_epoch(record: EpochRecord, epochs: int) -> None:
            words = f"loss {record.loss:.4f}, accuracy {record.accuracy:.1%}"
            bar.update(task, completed=record.epoch + 1, total=epochs, note=words)

        supernet = train_run(this, on_epoch=on_epoch)
    result: dict[str, Any] = {"run": str(this.folder), "parameters": supernet.num_params}
    words = f"trained: {this.supernet_file}, {supernet.num_params:,} parameters"
    for last in this.records()[-1:]:
        result |= {"epochs": last.epoch + 1, "loss": last.loss, "accuracy": last.accuracy}
        words += f", last epoch: loss {last.loss:.4f}, accuracy {last.accuracy:.1%}"
    emit(as_json, result, f"{words}\nnext: nasfast rank {this.folder}")


@app.command(
    epilog="Examples: `nasfast rank runs/nb201_digits`; "
    "`nasfast rank runs/nb201_digits --precision bf16 --threads 2`; "
    "`nasfast rank runs/nb201_digits --until top-10`; "
    "`nasfast rank runs/nb201_digits --until 'tau +-0.01 at 99%'`"
)
@_guarded
def rank(
    run: RunFolder,
    backend: Annotated[
        str | None, typer.Option(help="auto, cpu (compiled) or reference (plain PyTorch).")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp64.")] = None,
    memory: Annotated[int | None, typer.Option(help="MiB for feature maps.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the cpu backend.")] = None,
    until: Annotated[
        str | None, typer.Option(help="Stop when this is known: 'top-10', 'tau ±0.01', ' at 99%'.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Score the architectures of a space with a trained supernet, and write the report.

    Which architectures, images and batch-norm modes is said in the `[rank]` section of the
    config. Equal architectures are computed once; every chunk of scores is kept as it is done.
    Options take the place of values of the config: `--backend` and `--precision` change scores, so
    all scores of a run folder are made with the same; `--memory` and `--threads` change none.

    With `--until` minibatches are added until the best architectures are known, or Kendall's tau
    with the ground truth is known closely enough, at a confidence (95% unless said): what all
    minibatches would say. Architectures that can no longer matter are dropped. There is no report
    then, and no other score is touched.
    """
    from nasfast.anytime import Goal
    from nasfast.anytime_run import rank_until
    from nasfast.runs import Run
    from nasfast.steps import rank_run
    from nasfast.summary import report_run

    this = Run.open(run).with_options(
        backend=backend, precision=precision, memory_mib=memory, threads=threads
    )
    if until is not None:
        goal = Goal.parse(until)
        with until_progress(quiet=as_json) as on_look:
            outcome = rank_until(this, goal, on_progress=on_look)
        emit_outcome(as_json, outcome, this.config.supernet.spec)
        return
    with ranking_progress(quiet=as_json) as on_progress:
        work = rank_run(this, on_progress=on_progress)
    emit_summary(as_json, report_run(this), work)


@app.command(
    epilog="Examples: `nasfast finetune runs/nb201_digits`; "
    "`nasfast finetune runs/nb201_digits --archs 50 --steps 20 --lr 0.001`"
)
@_guarded
def finetune(
    run: RunFolder,
    archs: Annotated[int | None, typer.Option(help="Architectures, drawn once.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of SGD for each.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate, constant.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in a minibatch.")] = None,
    backend: Annotated[
        str | None, typer.Option(help="auto, cpu (compiled) or reference (plain PyTorch).")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp64.")] = None,
    memory: Annotated[
        int | None, typer.Option(help="MiB for private weights and feature maps.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the cpu backend.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Train architectures on from a trained supernet for a few steps, and rank them by the curves.

    SoTL and other estimators, from private copies of the supernet's weights; the same from the
    untrained supernet as a control where there is a ground truth. How is said in the `[finetune]`
    section of the config. Every chunk of curves is kept as it is done. Options take the place of
    values of the config; all curves of a run folder are made with the same, but for `--archs`,
    `--memory` and `--threads`. The report, once there is a ranking, shows them too.
    """
    from nasfast.finetune_run import finetune_run
    from nasfast.runs import Run
    from nasfast.summary import finetuning_summary

    this = Run.open(run).with_options(
        "finetune", threads=threads, archs=archs, steps=steps, lr=lr, batch_size=batch_size,
        backend=backend, precision=precision, memory_mib=memory,
    )  # fmt: skip
    with finetuning_progress(quiet=as_json) as on_progress:
        work = finetune_run(this, on_progress=on_progress)
    emit_finetuning(as_json, finetuning_summary(this), work)


@app.command(epilog="Example: `nasfast report runs/nb201_digits --json`")
@_guarded
def report(run: RunFolder, as_json: JsonFlag = False) -> None:
    """Write the report of a ranked run again: one HTML file, and its plots as images."""
    from nasfast.runs import Run
    from nasfast.summary import report_run

    emit_summary(as_json, report_run(Run.open(run)))


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
    emit(as_json, plain, str(result))


@app.command(
    "build-table",
    epilog="Example: `nasfast build-table configs/table_digits_nb201.toml --out truth.npz "
    "--threads 2`",
)
@_guarded
def build_table(
    config: Annotated[Path, typer.Argument(help="TOML file with a [table] section.")],
    out: Annotated[Path, typer.Option("--out", help="Table to write (.npz).")],
    backend: Annotated[
        str | None, typer.Option(help="auto, cpu (compiled) or reference (plain PyTorch).")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp64.")] = None,
    memory: Annotated[
        int, typer.Option(min=1, help="MiB for private weights and feature maps.")
    ] = 2048,
    threads: Annotated[int | None, typer.Option(help="Threads of the cpu backend.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Train architectures from scratch and write what they reach as a ground-truth table.

    Architectures of the same function are trained once, unless the config says otherwise; every
    chunk of trainings is kept as it is done. Name the table in the `[truth]` section of a run's
    config to have its ranking compared.
    `--backend` and `--precision` take the place of values of the config and change the table;
    `--memory` and `--threads` do not.
    """
    from nasfast.stand_alone import build_table as build

    checked = load_config(config, TableConfig).with_options(backend=backend, precision=precision)
    with progress("trainings", quiet=as_json) as (bar, task):

        def on_progress(done: float, total: int) -> None:
            if bar.tasks[task].total is None:
                # Anew: what an earlier call has trained is no speed of this one.
                bar.reset(task, total=total, completed=int(done))
            bar.update(task, completed=done)

        table = build(checked, out, threads=threads, memory=memory * 2**20, on_progress=on_progress)
    result = {
        "table": str(out),
        "architectures": len(table.index),
        "networks": int(table.network.max()) + 1,
        "trainings": table.measured["trainings"],
        "seconds": table.measured["seconds"],
    }
    words = "{table}: {architectures:,} architectures, {networks:,} distinct networks"
    words += ", {trainings:,} trainings in {seconds:,.1f} s"
    emit(as_json, result, f"written: {words.format(**result)}")


@app.command(epilog="Example: `nasfast info --json`")
@_guarded
def info(as_json: JsonFlag = False) -> None:
    """Show versions, backends, spaces and shipped tables, and which paths are slow and why."""
    from nasfast.runs import environment

    facts = {
        **environment(),
        "extensions": {name: _extension(name) for name in ("_host", "_ops")},
        **_engine(),
        "spaces": {name: spaces.get(name).num_archs for name in spaces.names()},
        "tables": list(tables.shipped()),
    }
    emit(as_json, facts, "\n".join(paragraph(key, value) for key, value in facts.items()))


def _engine() -> dict[str, Any]:
    """Say what the CPU engine uses and what is slow, or why there is no engine."""
    try:
        cpu = slow_paths.cpu_info()
    except (ValueError, ImportError) as error:
        return {"backends": ["reference"], "isa": {"error": str(error)}}
    return {
        "backends": ["cpu", "reference"],
        "isa": {"chosen": cpu.chosen, "not_used": slow_paths.not_used(cpu)},
        "kernels": slow_paths.kernels(cpu),
        "slow_paths": slow_paths.slow_paths(cpu),
    }


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


def _arch(spec: spaces.CellSpec, text: str) -> spaces.Architecture:
    return spec.from_index(int(text)) if text.lstrip("-").isdecimal() else spec.from_string(text)


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
