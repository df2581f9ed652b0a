# SPDX-License-Identifier: MIT
"""What the scripts that measure training share: options, timing in pairs, memory, the result.

A piece of work is a list of items, such as architectures; whoever is measured is a function that
takes such a list, and all seconds are for one item.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from environment import environment
from pairs import (
    fastest,
    peak_gflops,
    peak_memory_mib,
    ratio,
    seconds,
    spread,
    timed_pair,
)  # fmt: skip

Items = Sequence[Any]
Run = Callable[[Items], object]

FAMILIES = ("xautodl", "PyTorch")  # how the names of the published code and of PyTorch begin

# Relative error of all gradients together (root of the sum of squares) to float64. float32: at most
# so many times PyTorch's own, or the share; bfloat16: times autocast's, in the median over items.
FP32_TIMES, FP32_SHARE, BF16_TIMES = 4.0, 1e-5, 1.2
# A loss this far off in the median is of something else. (In bfloat16 gradients of a random
# supernet are far off float64 for everyone.)
LOSS_TOLERANCE = {"fp32": 1e-2, "bf16": 0.1}


def parser(
    description: str, devices: Sequence[str] = ("cpu",),
    precisions: Sequence[str] = ("bf16", "fp32"),
) -> argparse.ArgumentParser:  # fmt: skip
    """Return the options that every script has."""
    found = argparse.ArgumentParser(description=description.partition("\n")[0])
    found.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    found.add_argument("--precision", choices=precisions, default="bf16")
    found.add_argument("--device", choices=devices, default="cpu")
    cpus = len(os.sched_getaffinity(0))
    found.add_argument("--threads", type=int, default=cpus, metavar="N")
    found.add_argument("--repeats", type=int, metavar="N", help="pairs timed of each baseline")
    found.add_argument("--quick", action="store_true", help="few of everything: at most 60 s")
    found.add_argument("--memory", metavar="WHO", help=argparse.SUPPRESS)
    return found


def parse(
    options: argparse.ArgumentParser, arguments: Sequence[str] | None, full: dict[str, int],
    quick: dict[str, int], most: Mapping[str, int], least: Mapping[str, int] | None = None,
) -> argparse.Namespace:  # fmt: skip
    """Read the command line; ``full`` or ``quick`` has the values of what is not given.

    Numbers are at least 1, or as ``least`` says.
    """
    values = options.parse_args(arguments)
    for name, value in (quick if values.quick else full).items():
        if getattr(values, name) is None:
            setattr(values, name, value)
    for name in ("threads", *full):
        value, limit, low = getattr(values, name), most.get(name), (least or {}).get(name, 1)
        if value < low or (limit is not None and value > limit):
            wanted = f"at least {low}" if limit is None else f"{low} to {limit}"
            options.error(f"--{name} must be {wanted}, got {value}")
    return values


# Equality.


def check(mine: Sequence[float], torchs: Sequence[float], precision: str) -> dict[str, Any]:
    """Hold relative errors of ours, item by item, against those of PyTorch in the precision.

    Returns:
        The field ``max_error``.

    Raises:
        SystemExit: If ours are off by more than the tolerance.
    """
    ours, theirs = np.array(mine), np.array(torchs)
    if not np.isfinite(ours).all():
        raise SystemExit("ours: a loss or a gradient is not finite")
    found = {
        "value": float(ours.max()),
        "against": "gradient of all weights in float64, relative, largest over items",
        "pytorch": float(theirs.max()),
        "items": len(ours),
    }
    if precision == "fp32":
        allowed = np.maximum(FP32_TIMES * theirs, FP32_SHARE)
        worst = int((ours / allowed).argmax())
        if ours[worst] > allowed[worst]:
            raise SystemExit(
                f"ours: item {worst} is {ours[worst]:.3g} off, allowed {allowed[worst]:.3g}"
            )
        return found | {
            "tolerance": f"{FP32_TIMES:g} x PyTorch's fp32 on the item, the worse of two layouts, "
            "or 1e-5"
        }
    times = (ours + FP32_SHARE) / (theirs + FP32_SHARE)
    median = float(np.median(times))
    if median > BF16_TIMES:
        raise SystemExit(f"ours: {median:.3g} times the error of PyTorch's bf16 autocast (median)")
    return found | {
        "tolerance": f"at most {BF16_TIMES} x PyTorch's bf16 autocast, in the median over items",
        "times_autocast": spread(times.tolist()),
    }


def check_losses(
    who: str, precision: str, losses: Sequence[float], truth: Sequence[float]
) -> None:  # fmt: skip
    """Refuse losses that are not those of the same computation; gradients may hide a wrong one.

    Raises:
        SystemExit: If they are off by more than the tolerance.
    """
    off = np.abs(np.array(losses) - truth) / np.maximum(1, np.abs(truth))
    error = float(np.median(off))
    if not error <= LOSS_TOLERANCE[precision]:
        raise SystemExit(f"{who}: a loss {error:.3g} off: it computes something else")


def check_baseline(name: str, losses: Sequence[float], truth: Sequence[float]) -> None:
    """Refuse to be compared with something else, as :func:`check_losses` does."""
    check_losses(f"baseline {name}", "bf16" if "bf16" in name else "fp32", losses, truth)


# Timing.


def time_rivals(
    ours: Callable[[], object], rivals: Mapping[str, Callable[[], object]], repeats: int,
    *, our_items: float = 1, their_items: float = 1,
) -> dict[str, Any]:  # fmt: skip
    """Time ours in turns with each way of PyTorch; all are warm.

    Args:
        ours: Runs ``our_items`` items.
        rivals: Each runs ``their_items`` items, by names that begin with ``PyTorch``.
        repeats: Pairs of each.

    Returns:
        Fields of the result, with seconds for one item.
    """
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in rivals}
    for repeat in range(repeats):
        for name, rival in rivals.items():
            mine_s, other_s = timed_pair(ours, rival, repeat)
            pairs[name].append((mine_s / our_items, other_s / their_items))
    baselines = {name: spread([s for _, s in pairs[name]])["median"] for name in rivals}
    eager = {name: s for name, s in baselines.items() if "CUDA graph" not in name}
    found: dict[str, Any] = {
        "ours_s": statistics.median(s for name in rivals for s, _ in pairs[name]),
        "baselines": baselines,
        "repeats": repeats,
    }
    for kind, some in (("best_pytorch", baselines), ("eager_pytorch", eager)):
        found[kind] = fastest(some, "PyTorch")
        found[f"ratio_vs_{kind}"] = ratio(pairs[found[kind]])
    return found


def time_pairs(
    ours: Run, rivals: Mapping[str, Run], screened: Items, compared: Items,
    options: argparse.Namespace, beside: Mapping[str, Callable[[], object]] | None = None,
    families: Sequence[str] = FAMILIES,
) -> dict[str, Any]:  # fmt: skip
    """Time ours and, of each family of rivals, the fastest on few items, in turns.

    Plain eager PyTorch is always among them. What is ``beside`` runs once before the pairs of each
    repeat; its seconds are for all of it. The first of the ``families`` is the published code.
    """
    repeats = options.repeats
    first = {
        name: min(seconds(lambda r=rival: r(screened)) for _ in range(1 if options.quick else 2))
        / len(screened)
        for name, rival in rivals.items()
    }
    eager = fastest(first, "PyTorch fp32 contiguous,")  # the comma: nothing added to plain PyTorch
    paired = dict.fromkeys([*(fastest(first, family) for family in families), eager])
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in paired}
    alone: dict[str, list[float]] = {name: [] for name in beside or {}}
    for repeat in range(repeats):
        for name, work in (beside or {}).items():
            alone[name].append(seconds(work))
        for name in paired:
            mine, other = timed_pair(
                lambda: ours(compared), lambda r=rivals[name]: r(compared), repeat
            )
            pairs[name].append((mine / len(compared), other / len(compared)))
    baselines = {name: spread([s for _, s in pairs[name]])["median"] for name in paired}
    peer, best = (fastest(baselines, family) for family in families)
    return {
        "ours_s": spread([s for name in paired for s, _ in pairs[name]])["median"],
        **{name: spread(times) for name, times in alone.items()},
        "baselines": baselines,
        "screened_s": first,  # of a few items; the rest is timed no more
        "repeats": repeats,
        "peer": peer,
        "best_pytorch": best,
        "eager_pytorch": eager,
        "ratio_vs_peer": ratio(pairs[peer]),
        "ratio_vs_best_pytorch": ratio(pairs[best]),
        "ratio_vs_eager_pytorch": ratio(pairs[eager]),
    }


def peak_memory(
    script: str, options: argparse.Namespace, who: str, sizes: Sequence[str] = ()
) -> dict[str, float]:
    """Let one do its work in a process that does nothing else; return its largest sizes in MiB.

    ``sizes`` names further options that the work depends on.
    """
    done = subprocess.run(
        [sys.executable, script, f"--memory={who}", f"--precision={options.precision}",
         f"--threads={options.threads}", *(["--quick"] if options.quick else []),
         *(f"--{name}={getattr(options, name)}" for name in sizes)],
        stdout=subprocess.PIPE, text=True, check=True,
        env=os.environ | {"OMP_NUM_THREADS": str(options.threads)},
    )  # fmt: skip
    return json.loads(done.stdout)


def print_memory(work: Callable[[], object]) -> None:
    """The process that :func:`peak_memory` starts: imports and data are there before the work."""
    before = peak_memory_mib()
    work()
    print(json.dumps({"peak_mib": peak_memory_mib(), "peak_mib_before": before}))


# The result.


def result(
    name: str, options: argparse.Namespace, work: dict[str, Any], found: dict[str, Any],
    max_error: dict[str, Any], flop: float, flop_s: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Put together what DESIGN's contract names.

    ``flop`` is what ours does in ``flop_s`` seconds; of one item, in ``ours_s``, when left out.
    """
    gflops = flop / (flop_s or found["ours_s"]) / 1e9
    peak = peak_gflops(options.precision, options.threads, options.quick)
    return {
        "name": name,
        "precision": options.precision,
        "quick": options.quick,
        "work": work,
        **found,
        "max_error": max_error,
        "gflops": gflops,
        "peak": peak,
        "share_of_peak": gflops / peak["gflops"],
        "load_average": os.getloadavg()[0],
        "environment": environment(options.threads),
    }


def write(found: dict[str, Any], options: argparse.Namespace) -> None:
    """Write the JSON object, if a file is named."""
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def publish(found: dict[str, Any], options: argparse.Namespace, item: str) -> None:
    """Write the JSON object, and print what matters of it."""
    write(found, options)
    print(f"ours {found['ours_s'] * 1e3:.1f} ms {item}, {found['gflops']:.0f} GFLOP/s, "
          f"{found['share_of_peak']:.0%} of peak")  # fmt: skip
    for rival in ("peer", "best_pytorch", "eager_pytorch"):
        times = found[f"ratio_vs_{rival}"]
        print(f"{found[rival]}: {times['median']:.1f} times as long "
              f"({times['min']:.1f} to {times['max']:.1f})")  # fmt: skip


def restart_with(threads: int) -> None:
    """Start this script again if OpenMP has another number: it reads it when torch is imported."""
    if os.environ.get("OMP_NUM_THREADS") != str(threads):
        os.execve(sys.executable, sys.orig_argv, os.environ | {"OMP_NUM_THREADS": str(threads)})
    torch.set_num_threads(threads)
