# SPDX-License-Identifier: MIT
"""What a command shows while it works: a bar with rate and time left, on the error stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

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

from nasfast.anytime_run import UntilProgress
from nasfast.finetune_run import FinetuneProgress, FinetuneWork
from nasfast.scoring import Work
from nasfast.steps import FP32_SAMPLE
from nasfast.steps import Progress as RankProgress

ERR = Console(stderr=True, highlight=False)
_Work = TypeVar("_Work", Work, FinetuneWork)

_STAGES = {
    "supernet": "architectures",
    FP32_SAMPLE: "sample in fp32",
    "untrained": "untrained",
}


class _Rate(ProgressColumn):
    """What the task says of its rate, otherwise items a second over the last moments."""

    def render(self, task: Task) -> Text:
        """Return the rate, nothing while it is unknown."""
        speed = task.finished_speed or task.speed
        text = task.fields["rate"] or (f"{speed:,.1f}/s" if speed else "")
        return Text(text, no_wrap=True)


@contextmanager
def progress(unit: str, *, quiet: bool) -> Iterator[tuple[Progress, TaskID]]:
    """Show a progress bar on the error stream, with rate and time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),  # the rest fits into 80 columns
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=ERR, disable=quiet) as bar:
        yield bar, bar.add_task(unit, total=None, note="", rate="")


def ranking_progress(*, quiet: bool) -> AbstractContextManager[RankProgress]:
    """Show the progress of a ranking: what is scored, architectures and operations a second."""
    return _staged(lambda work: rates(work, "/s") if work.archs else "", quiet)


def finetuning_progress(*, quiet: bool) -> AbstractContextManager[FinetuneProgress]:
    """Show the progress of fine-tuning: from which weights, architectures, steps a second."""
    return _staged(lambda w: f"{short(w.steps_per_s)} steps/s" if w.steps else "", quiet)


@contextmanager
def _staged(
    rate_of: Callable[[_Work], str], quiet: bool
) -> Iterator[Callable[[str, int, int, _Work], None]]:
    """Show one stage after another, and what the work on it says of its rate."""
    with progress(_STAGES["supernet"], quiet=quiet) as (bar, task):
        stage = ""

        def on_progress(what: str, done: int, total: int, work: _Work) -> None:
            nonlocal stage
            if what != stage:
                # Anew: what an earlier call has computed is no speed of this one.
                bar.reset(task, total=total, completed=done, description=_STAGES[what])
                stage = what
            bar.update(task, total=total, completed=done, rate=rate_of(work))

        yield on_progress


@contextmanager
def until_progress(*, quiet: bool) -> Iterator[UntilProgress]:
    """Show the progress of a ranking that stops when it knows enough."""
    with progress(_STAGES["supernet"], quiet=quiet) as (bar, task):
        stage = -1

        def on_look(seen: int, minibatches: int, done: int, total: int, work: Work) -> None:
            nonlocal stage
            if seen != stage:
                bar.reset(task, total=total, completed=done)
                stage = seen
            note = f"to minibatch {seen} of {minibatches}"
            rate = f"{short(work.gflops)} GFLOP/s" if work.archs else ""
            bar.update(task, total=total, completed=done, rate=rate, note=note)

        yield on_look


def rates(work: Work, unit: str) -> str:
    """Return architectures and operations a second in words."""
    return f"{short(work.archs_per_s)}{unit}, {short(work.gflops)} GFLOP/s"


def short(value: float) -> str:
    """Return a number with few digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
