# SPDX-License-Identifier: MIT
"""Commands on many runs: experiment, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nasfast.cli.app import JsonFlag, app, guarded, resumable
from nasfast.cli.progress import ERR, progress
from nasfast.cli.results import emit


@app.command(
    epilog="Examples: `nasfast experiment configs/experiment_digits.toml`; "
    "`nasfast experiment configs/experiment_digits.toml --run runs/again --threads 2`"
)
@resumable
def experiment(
    config: Annotated[
        Path, typer.Argument(help="TOML file with an [experiment] section beside those of a run.")
    ],
    run: Annotated[
        Path | None, typer.Option("--run", help="Folder of the runs; runs/NAME when left out.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads; changes nothing but time.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run a grid of configurations with several seeds each, and put them into one table.

    `[experiment]` has `name`, `seeds`, `steps` (`rank`, `finetune`; training comes first), and
    `[experiment.grid]` with lists of values of dotted keys, such as `"train.lr" = [0.01, 0.025]`.
    Every combination with every seed is an ordinary run folder, `runs/NAME/lr=0.01/seed-0`, where
    the other commands work too. All configurations are checked before the first run starts; every
    run goes on where it stopped. A run that fails is named at the end, with exit code 1; the
    others go on.

    Written: `experiment.md` (mean ± standard deviation over seeds, t intervals, agreement of the
    seeds' rankings), `experiment.csv` (one line a run) and `experiment_points.csv` (one line a
    grid point).
    """
    from nasfast.experiment import run_experiment
    from nasfast.experiment_config import load_experiment

    this = load_experiment(config, run)
    with progress("runs", quiet=as_json) as (bar, task):

        def on_progress(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, note=what)

        results = run_experiment(this, threads=threads, on_progress=on_progress)
        bar.update(task, completed=len(results.runs), note="")
    written = f"written: {this.folder / 'experiment.md'}, experiment.csv, experiment_points.csv"
    emit(as_json, results.plain(), f"{results.markdown()}\n{written}")
    for label, message in results.failed.items():
        ERR.print(f"failed: {this.folder / label}: {message}", markup=False, soft_wrap=True)
    if results.failed:
        raise typer.Exit(1)


@app.command(epilog="Example: `nasfast compare runs/nb201_digits runs/first`")
@guarded
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two or more ranked run folders.")],
    as_json: JsonFlag = False,
) -> None:
    """Put runs of one search space side by side.

    What differs in their configurations, their metrics, and for every two how far their rankings
    by loss agree: Kendall's tau-b over the architectures that both have scored, and the share of
    the ten best of one that are among the ten best of the other.
    """
    from nasfast.compare import compare_runs

    found = compare_runs(runs)
    emit(as_json, found.plain(), str(found))
