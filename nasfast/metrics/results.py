# SPDX-License-Identifier: MIT
"""What a metric returns, and the options of its interval."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, TypedDict

Resampled = Literal["architectures", "images", "seeds", "supernets"]


@dataclass(frozen=True)
class Measured:
    """One metric and what is needed to judge it.

    Attributes:
        name: What was measured, with every choice that changes the value.
        value: nan where it is undefined, as a correlation with a constant is.
        n: Architectures used (supernets, for a correlation across them).
        dropped: Rows left out because one of their values is not finite.
        ties_scores: Used rows that share their score with at least one other. Where the value is
            a mean over seeds, the most that any seed has.
        ties_truth: The same for the truth, after binning if there is any.
        interval: Percentile bootstrap interval; None if it was not asked for or the value is
            undefined.
        confidence: Level of ``interval``, in (0, 1); None without an interval.
        resampled: What was drawn anew for ``interval``; None without an interval.
    """

    name: str
    value: float
    n: int
    dropped: int
    ties_scores: int
    ties_truth: int
    interval: tuple[float, float] | None
    confidence: float | None
    resampled: Resampled | None = None


class RankCorrelation(Measured):
    """A :class:`Measured` whose value is a correlation, in [-1, 1]."""


class IntervalOptions(TypedDict, total=False):
    """Options of a bootstrap interval, which every metric takes by keyword.

    Attributes:
        bootstrap: Resamples; 0, the default, for no interval. Those in which the value is
            undefined are left out.
        confidence: Level of the interval, in (0, 1); 0.95 unless given.
        seed: Of the resampling, 0 unless given; equal seeds give equal intervals.
        threads: Of the resampling, where it is compiled (the Kendall family); unless given,
            ``OMP_NUM_THREADS`` or as many as the process may use. No value depends on it.
    """

    bootstrap: int
    confidence: float
    seed: int
    threads: int


@dataclass(frozen=True)
class Interval:
    """:class:`IntervalOptions` with defaults, checked."""

    bootstrap: int = 0
    confidence: float = 0.95
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        if self.bootstrap < 0:
            raise ValueError(f"bootstrap: wanted at least 0 resamples, got {self.bootstrap}")
        if not 0.0 < self.confidence < 1.0:
            raise ValueError(f"confidence: wanted a level between 0 and 1, got {self.confidence}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed: wanted 0 to 2^64 - 1, got {self.seed}")
        if self.threads < 0:
            raise ValueError(f"threads: wanted at least 0, got {self.threads}")

    @property
    def num_threads(self) -> int:
        """Threads to start."""
        if self.threads:
            return self.threads
        setting = os.environ.get("OMP_NUM_THREADS", "")
        if setting.isdecimal() and int(setting):
            return int(setting)
        affinity = getattr(os, "sched_getaffinity", None)  # Linux has it
        return len(affinity(0)) if affinity else os.cpu_count() or 1
