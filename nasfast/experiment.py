# SPDX-License-Identifier: MIT
"""Running an experiment: every run from where it stands, then one table of them all."""

from __future__ import annotations

import logging
from collections.abc import Callable

from nasfast.data import Splits
from nasfast.experiment_config import Experiment, PlannedRun, Step
from nasfast.experiment_table import ExperimentResults
from nasfast.files import write_text
from nasfast.finetune_run import FinetuneWork, finetune_run, minibatches
from nasfast.run_metrics import RunResults, read_results
from nasfast.runs import Run, RunError
from nasfast.scoring import Work, available_threads
from nasfast.sections import DataSection
from nasfast.steps import check_ranking, rank_run, train_run
from nasfast.store import StoreError
from nasfast.train import EpochRecord

_LOG = logging.getLogger(__name__)

# Runs done, all, and what happens now in words.
ExperimentProgress = Callable[[int, int, str], None]


def run_experiment(
    experiment: Experiment, *, threads: int | None = None,
    on_progress: ExperimentProgress | None = None,
) -> ExperimentResults:  # fmt: skip
    """Train, rank and fine-tune the runs of an experiment that are not done yet.

    Everything that can be known is checked before the first run starts. A run that fails is named
    in what is returned and does not stop the others; called again, it is tried again. The tables
    ``experiment.md``, ``experiment.csv`` and ``experiment_points.csv`` are written at the end, and
    after each run in which something was computed.

    Args:
        experiment: What to do.
        threads: In place of those of the configuration.
        on_progress: Called when a run begins, and often while it works.

    Returns:
        The results of all runs.

    Raises:
        RunError: If a folder holds something else, or a run of another configuration, or images
            do not make the minibatches.
        ValueError: If ground truth, batch-norm modes or threads do not fit.
        OSError: If a file cannot be read, or a table not be written.
    """
    _prepare(experiment, threads)
    done: dict[str, RunResults] = {}
    failed: dict[str, str] = {}
    results = ExperimentResults(experiment, done, failed)
    for k, planned in enumerate(experiment.runs):
        own = _Progress(k, len(experiment.runs), planned.label, on_progress)
        own.tell("")
        try:
            done[planned.label] = _run(planned, experiment.steps, threads, own)
        except Exception as error:  # whatever it is, the other runs go on
            failed[planned.label] = _words(error)
            _LOG.debug("%s failed", planned.folder, exc_info=True)
        if own.worked:
            write_tables(results)
    write_tables(results)
    return results


def write_tables(results: ExperimentResults) -> None:
    """Write the tables of an experiment into its folder.

    Raises:
        OSError: If a file cannot be written.
    """
    folder = results.experiment.folder
    write_text(folder / "experiment.md", results.markdown())
    write_text(folder / "experiment.csv", results.runs_csv())
    write_text(folder / "experiment_points.csv", results.points_csv())


def _prepare(experiment: Experiment, threads: int | None) -> None:
    """Make every folder, and find out what cannot work."""
    if (experiment.folder / "config.json").is_file():
        raise RunError(
            f"{experiment.folder}: is a run, not an experiment; give another folder with --run"
        )
    loaded: dict[DataSection, Splits] = {}
    for planned in experiment.runs[: len(experiment.points)]:  # sizes are those of any seed
        run = Run(planned.folder, planned.config).with_options(threads=threads)
        available_threads(run.config.threads)
        if run.config.data not in loaded:
            loaded[run.config.data] = run.splits()
        splits = loaded[run.config.data]
        try:
            check_ranking(run, splits)
            if "finetune" in experiment.steps:
                minibatches(run, splits)
        except FileNotFoundError:
            raise
        except (ValueError, RunError) as error:
            raise RunError(f"{planned.point.label}: {error}") from None
    for planned in experiment.runs:
        Run.create(planned.config, planned.folder)


def _run(
    planned: PlannedRun, steps: tuple[Step, ...], threads: int | None, own: _Progress
) -> RunResults:  # fmt: skip
    run = Run.create(planned.config, planned.folder).with_options(threads=threads)
    train_run(run, on_epoch=own.epoch)
    if "rank" in steps:
        rank_run(run, on_progress=own.ranking)
    if "finetune" in steps:
        finetune_run(run, on_progress=own.finetuning)
    return read_results(run)


def _words(error: Exception) -> str:
    """Return a message; of what no user can mend, its kind too."""
    if isinstance(error, ValueError | RunError | StoreError | OSError | FloatingPointError):
        return str(error)
    return f"{type(error).__name__}: {error}"


class _Progress:
    """Tells what one run does, and remembers whether anything was computed."""

    def __init__(
        self, done: int, total: int, label: str, on_progress: ExperimentProgress | None
    ) -> None:  # fmt: skip
        self.worked = False
        self._done, self._total, self._label = done, total, label
        self._on_progress = on_progress

    def tell(self, what: str) -> None:
        """Call back."""
        if self._on_progress is not None:
            self._on_progress(self._done, self._total, f"{self._label} {what}".rstrip())

    def epoch(self, record: EpochRecord, epochs: int) -> None:
        """After an epoch of training."""
        self.worked = True
        self.tell(f"train {record.epoch + 1}/{epochs}")

    def ranking(self, what: str, done: int, total: int, work: Work) -> None:
        """After a chunk of scores."""
        self.worked |= work.archs > 0
        self.tell(f"rank, {what} {done}/{total}")

    def finetuning(self, what: str, done: int, total: int, work: FinetuneWork) -> None:
        """After a chunk of curves."""
        self.worked |= work.archs > 0
        self.tell(f"finetune, {what} {done}/{total}")
