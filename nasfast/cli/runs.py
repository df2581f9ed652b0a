# SPDX-License-Identifier: MIT
"""Commands on a run: train, rank, finetune, verify, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nasfast.cli.app import JsonFlag, RunFolder, app, guarded, resumable
from nasfast.cli.progress import finetuning_progress, progress, ranking_progress, until_progress
from nasfast.cli.results import emit, emit_finetuning, emit_outcome, emit_summary
from nasfast.config import RunConfig, load_config
from nasfast.train import EpochRecord


@app.command(
    epilog="Examples: `nasfast train configs/nb201_digits.toml --run runs/first`; "
    "`nasfast train configs/nb201_cifar10.toml --precision bf16 --threads 2`"
)
@resumable
def train(
    config: Annotated[Path, typer.Argument(help="TOML file, such as configs/nb201_digits.toml.")],
    run: Annotated[
        Path | None, typer.Option("--run", help="Run folder; runs/NAME when left out.")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="auto, cpu (compiled), cuda (a card) or reference (plain PyTorch)."),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, tf32 (on a card), bf16 or fp64.")
    ] = None,
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
@resumable
def rank(
    run: RunFolder,
    backend: Annotated[
        str | None,
        typer.Option(help="auto, cpu (compiled), cuda (a card) or reference (plain PyTorch)."),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, tf32 (on a card), bf16 or fp64.")
    ] = None,
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
    minibatches would say, if means of minibatches differ as normal variables do. Architectures that
    can no longer matter are dropped. There is no report then, and no other score is touched.
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
@resumable
def finetune(
    run: RunFolder,
    archs: Annotated[int | None, typer.Option(help="Architectures, drawn once.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of SGD for each.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate, constant.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in a minibatch.")] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="auto, cpu (compiled), cuda (a card) or reference (plain PyTorch)."),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, tf32 (on a card), bf16 or fp64.")
    ] = None,
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


@app.command(epilog="Example: `nasfast verify runs/nb201_digits --archs 50 --seed 1`")
@guarded
def verify(
    run: RunFolder,
    archs: Annotated[int, typer.Option(help="Architectures, drawn by the seed.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Changes nothing; as of other commands.")]
    = None,
    as_json: JsonFlag = False,
) -> None:  # fmt: skip
    """Compute a random sample of a run's scores again in float64, and sign the report with it.

    By the definition, plain PyTorch, which is slow and shares no code with the engine. All scores
    are also compared with the bits of their images. Ends with exit code 1 if a score is farther off
    than the rule allows; the report says what was found as long as it is about its scores.
    """
    from dataclasses import asdict

    from nasfast.runs import Run
    from nasfast.verify import verify_run

    this = Run.open(run).with_options(threads=threads)
    with progress("architectures, twice", quiet=as_json) as (bar, task):

        def on_progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        found = verify_run(this, archs=archs, seed=seed, on_progress=on_progress)
    emit(as_json, {**asdict(found), "passed": found.passed}, str(found))
    if not found.passed:
        raise typer.Exit(1)


@app.command(
    epilog="Examples: `nasfast report runs/nb201_digits --json`; "
    "`nasfast report runs/nb201_digits --tensorboard runs/nb201_digits/tensorboard`"
)
@guarded
def report(
    run: RunFolder,
    tensorboard: Annotated[
        Path | None,
        typer.Option(help="Folder for training, fine-tuning and metrics as TensorBoard scalars."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write the report of a ranked run again: one HTML file, and its plots as images.

    `--tensorboard` needs the package tensorboard: pip install 'nasfast[tensorboard]'.
    """
    from nasfast.report import tensorboard_writer, write_scalars
    from nasfast.runs import Run
    from nasfast.scalars import run_scalars
    from nasfast.summary import report_run

    if tensorboard is not None:
        tensorboard_writer()  # its error comes before the work
    this = Run.open(run)
    summary = report_run(this)
    if tensorboard is not None:
        write_scalars(run_scalars(this, summary), tensorboard)
    emit_summary(as_json, summary, tensorboard=tensorboard)
