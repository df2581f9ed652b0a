# SPDX-License-Identifier: MIT
"""A sample of NAS-Bench-1Shot1 space 3 on a card: nasfast, and PyTorch launch by launch.

The work is that of space_1shot1.py. Losses are checked against float64 before anything is timed.
With --device cpu it measures the CPU in the same way, which shows that the script works.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

import contract
import space_1shot1
from card_nb201 import peak_of
from eager_1shot1 import Scorer
from environment import environment
from losses import Losses, check, check_rivals, losses_of
from nasfast import Architecture, evaluate
from space_1shot1 import AGAINST, ARCHS, BASELINE_TOLERANCE, Job, make_job, work

FULL = {"archs": ARCHS, "repeats": 3}
QUICK = {"archs": 4, "repeats": 1}
FEW = 8  # that PyTorch runs in a timing


def ours(job: Job) -> Losses:
    """Score all architectures in one call."""
    options = job.options
    scores = evaluate(
        job.supernet, job.archs, [job.batch], bn="batch", precision=options.precision,
        backend=options.device, threads=options.threads, keep_images=True,
    )  # fmt: skip
    return scores.lane_loss[scores.lane_of_arch]


def rivals_of(job: Job) -> dict[str, Scorer]:
    """Return PyTorch's ways to run what an architecture selects, by name."""
    kinds = ("fp32", "bf16 autocast") if job.options.precision == "bf16" else ("fp32",)
    return {
        f"PyTorch {kind} {layout}": Scorer(
            job.state, job.batch, "single path", bf16=kind != "fp32",
            channels_last=layout == "channels_last", device=job.options.device,
        )
        for kind in kinds
        for layout in ("contiguous", "channels_last")
    }  # fmt: skip


def loop(net: Scorer, archs: Sequence[Architecture]) -> None:
    """Run one architecture after another."""
    for arch in archs:
        net(arch)
    if net.device == "cuda":
        torch.cuda.synchronize()


def measure(job: Job) -> dict[str, Any]:
    """Check, then time; seconds are for one architecture."""
    options, few = job.options, job.spaced(min(FEW, len(job.archs)))
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    exact = Scorer(job.state, job.batch, "single path", dtype=torch.float64)
    truth = dict(zip(job.archs, losses_of(exact, job.archs), strict=True))
    rivals, bf16 = rivals_of(job), options.precision == "bf16"
    own = rivals["PyTorch bf16 autocast channels_last" if bf16 else "PyTorch fp32 contiguous"]
    max_error = check(
        ours(job), losses_of(own, job.archs), np.stack([truth[arch] for arch in job.archs]),
        options.precision, AGAINST,
    )  # fmt: skip
    check_rivals(rivals, few, np.stack([truth[arch] for arch in few]), BASELINE_TOLERANCE)
    for net in rivals.values():
        loop(net, few)
    found = contract.time_rivals(
        partial(ours, job), {name: partial(loop, net, few) for name, net in rivals.items()},
        options.repeats, our_items=len(job.archs), their_items=len(few),
    )  # fmt: skip
    about = work(job, job.archs)
    peak = peak_of(options)
    gflops = 1e-9 * about["flop_run_by_ours"] / (found["ours_s"] * len(job.archs))
    return {
        "name": "card_1shot1",
        "device": options.device,
        "precision": options.precision,
        "quick": options.quick,
        "work": {"words": space_1shot1.words(job.spec.name), "timed_of_others": len(few), **about},
        "seconds_are": "for one architecture",
        **found,
        "max_error": max_error,
        "gflops": gflops,
        "peak": peak,
        "share_of_peak": gflops / peak["gflops"],
        "environment": environment(options.threads, options.device),
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; --quick lowers what is not given."""
    parser = contract.parser(__doc__, devices=("cpu", "cuda"))
    parser.add_argument("--space", choices=("1", "2", "3"), default="3", help="search space")
    parser.add_argument("--archs", type=int, metavar="N", help=f"1 to {ARCHS}, of a fixed list")
    return contract.parse(parser, arguments, FULL, QUICK, {"archs": ARCHS})


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write one JSON object, print a short table."""
    options = parse(arguments)
    with torch.inference_mode():
        found = measure(make_job(options))
    contract.write(found, options)
    device = found["environment"]["gpu"] or found["environment"]["cpu"]
    print(f"{device}, {found['precision']}: {found['work']['archs']} architectures")
    for name, each in {"ours": found["ours_s"], **found["baselines"]}.items():
        print(f"{name:<40} {each * 1e3:9.3f} ms/arch  {each / found['ours_s']:6.2f} x ours")


if __name__ == "__main__":
    contract.restart_with(parse().threads)
    main()
