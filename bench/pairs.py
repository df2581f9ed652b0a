# SPDX-License-Identifier: MIT
"""Timing in pairs: what is compared runs right after what it is compared with, in turns."""

import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nasfast import Architecture
from peak import measure_peak

PAUSE_S = 0.02  # OpenMP's threads spin a while after their last work, on cores the next one needs

# The probes of peak.py that a precision could reach at best, the faster one first.
PEAK_PROBES = {"fp32": ("fma_f32",), "bf16": ("amx_bf16", "dot_bf16", "fma_f32")}


def seconds(work: Callable[[], object]) -> float:
    """Time one run."""
    time.sleep(PAUSE_S)
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def timed_pair(
    ours: Callable[[], object], other: Callable[[], object], repeat: int
) -> tuple[float, float]:
    """Time both, one right after the other; which one goes first alternates."""
    if repeat % 2:
        other_s = seconds(other)
        return seconds(ours), other_s
    ours_s = seconds(ours)
    return ours_s, seconds(other)


def spread(values: list[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """How many times as long the other took: median, minimum and maximum over the pairs."""
    return spread([other_s / ours_s for ours_s, other_s in pairs])


def spaced(
    archs: Sequence[Architecture], count: int, cost: Callable[[Architecture], float]
) -> list[Architecture]:
    """Return so many architectures, at most all, evenly spaced in order of their cost."""
    count = min(count, len(archs))
    by_cost = sorted(archs, key=cost)
    return [by_cost[(2 * k + 1) * len(by_cost) // (2 * count)] for k in range(count)]


def fastest(seconds_of: dict[str, float], family: str) -> str:
    """Return the name of the fastest of those whose names begin so."""
    return min((name for name in seconds_of if name.startswith(family)), key=seconds_of.__getitem__)


def peak_gflops(precision: str, threads: int, quick: bool) -> dict[str, Any]:
    """Measure the arithmetic peak of this machine that a precision is held against."""
    rows = {
        row["probe"]: row
        for row in measure_peak(threads, quick)["probes"]
        if row["threads"] == threads and row["unit"] == "GFLOP/s"
    }
    row = next(rows[probe] for probe in PEAK_PROBES[precision] if probe in rows)
    return {"probe": row["probe"], "isa": row["isa"], "gflops": row["median"]}


def peak_memory_mib() -> float:
    """Largest resident size of this process so far.

    Not ``ru_maxrss``: that starts at the size of the process that forked this one.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(kib) / 1024
