# SPDX-License-Identifier: MIT
"""Measure what this machine can do at best: fused multiply-add, bfloat16 products, copying.

Other timings are given as a share of these peaks. Each is a median with minimum and maximum over
repeats that are interleaved with those of the other probes. Copy bandwidth counts the bytes read
and the bytes written; its footprint is what one thread touches, source and destination together.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from environment import environment

SOURCE = Path(__file__).with_suffix(".cpp")
REPEATS, SAMPLE_MS = 15, 40.0
QUICK_REPEATS, QUICK_SAMPLE_MS = 3, 10.0


def measure_peak(threads: int, quick: bool = False) -> dict[str, list[dict] | dict[str, str]]:
    """Compile and run the probes with one thread and with ``threads``.

    Returns ``probes``, one entry for each probe, thread count and footprint, and ``absent``, a
    reason for each probe that this machine cannot run.
    """
    repeats, sample_ms = (QUICK_REPEATS, QUICK_SAMPLE_MS) if quick else (REPEATS, SAMPLE_MS)
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/peak"
        compiler = os.environ.get("CXX", "g++")
        subprocess.run(
            [compiler, "-std=c++20", "-O3", "-pthread", "-o", program, str(SOURCE)], check=True
        )
        done = subprocess.run(
            [program, str(threads), str(repeats), str(sample_ms)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    samples: dict[tuple[str, ...], list[float]] = {}
    absent = {}
    for line in done.stdout.splitlines():
        kind, probe, rest = line.split(maxsplit=2)
        if kind == "absent":
            absent[probe] = rest
        else:
            *key, value = rest.split()
            samples.setdefault((probe, *key), []).append(float(value))
    return {"probes": [summary(key, values) for key, values in samples.items()], "absent": absent}


def summary(key: tuple[str, ...], values: list[float]) -> dict[str, object]:
    probe, isa, threads, footprint, unit = key
    return {
        "probe": probe,
        "isa": isa,
        "threads": int(threads),
        "footprint_kib": int(footprint) // 1024 or None,
        "unit": unit,
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "repeats": len(values),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), metavar="N")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter samples")
    arguments = parser.parse_args()
    if arguments.threads < 1:
        parser.error(f"--threads must be at least 1, got {arguments.threads}")

    began = time.perf_counter()
    result = {
        "name": "peak",
        "work": "the same loop in every sample: independent multiply-adds, tile products, memcpy",
        **measure_peak(arguments.threads, arguments.quick),
        "quick": arguments.quick,
        "elapsed_s": round(time.perf_counter() - began, 2),
        "environment": environment(arguments.threads),
    }
    print(f"{'probe':<22}{'threads':>8}{'median':>10}{'min':>10}{'max':>10}")
    for row in result["probes"]:
        label = f"{row['footprint_kib']} KiB" if row["footprint_kib"] else row["isa"]
        figures = "".join(f"{row[name]:>10.1f}" for name in ("median", "min", "max"))
        print(f"{row['probe'] + ' ' + label:<22}{row['threads']:>8}{figures}  {row['unit']}")
    for probe, reason in result["absent"].items():
        print(f"{probe}: absent, {reason}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
