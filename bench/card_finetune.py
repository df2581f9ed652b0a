# SPDX-License-Identifier: MIT
"""Fine-tuning of many NAS-Bench-201 architectures on a card: nasfast, and PyTorch launch by launch.

The work is that of finetune_nb201.py. Losses are checked against float64 before anything is timed.
With --device cpu it measures the CPU in the same way, which shows that the script works.
"""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

import contract
import finetune_nb201
from card_nb201 import peak_of
from environment import environment
from finetune_nb201 import CONFIG, Job, flop_of, loops_of, make_job, ours, verify
from pairs import peak_memory_mib, seconds

FULL = {"archs": 200, "steps": 10, "repeats": 2}
QUICK = {"archs": 4, "steps": 2, "repeats": 1}
WORDS = (
    finetune_nb201.WORDS + ". On a card `compared` are as many architectures as there are, so that "
    "as many lanes are side by side as memory holds; PyTorch runs the first few of them, and its "
    "seconds are for a step there"
)


def time_lanes(job: Job) -> dict[str, Any]:
    """Time all of ours beside the loops over a few, in pairs; seconds are for one step of one."""
    options, few, steps = job.options, job.compared, job.compared_steps
    mine_steps, other_steps = len(job.archs) * options.steps, len(few) * steps
    all_of_ours = partial(ours, job, job.archs, options.steps)
    ours(job, job.archs, 1)
    rivals = loops_of(job, steps)
    for loop in rivals.values():
        loop(few)  # its losses are brought back, so it has ended
    found = contract.time_rivals(
        all_of_ours, {name: partial(loop, few) for name, loop in rivals.items()}, options.repeats,
        our_items=mine_steps, their_items=other_steps,
    )  # fmt: skip
    return {"seconds_are": "for one step of one architecture", **found}


def measure(job: Job) -> dict[str, Any]:
    """Check, then time."""
    options = job.options
    on_card = options.device == "cuda"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    max_error = verify(job)
    twice = [ours(job, job.compared, 2).loss for _ in range(2)]
    if not np.array_equal(*twice, equal_nan=True):
        raise SystemExit("ours: two runs differ")
    if on_card:
        torch.cuda.reset_peak_memory_stats()
    all_s = seconds(lambda: ours(job, job.archs, options.steps))
    peak_mib = torch.cuda.max_memory_reserved() / 2**20 if on_card else peak_memory_mib()
    found = time_lanes(job)
    flop = flop_of(job.archs) * options.steps
    peak = peak_of(options)
    gflops = 1e-9 * flop / (found["ours_s"] * len(job.archs) * options.steps)
    return {
        "name": "card_finetune",
        "device": options.device,
        "precision": options.precision,
        "quick": options.quick,
        "work": {
            "words": WORDS.format(seed=finetune_nb201.ARCH_SEED), "archs": len(job.archs),
            "steps": options.steps, "flop": flop, "compared": len(job.compared),
        },
        **found,
        "ours_all_s": all_s,
        "max_error": max_error,
        "peak_mib": peak_mib,
        "gflops": gflops,
        "peak": peak,
        "share_of_peak": gflops / peak["gflops"],
        "environment": environment(options.threads, options.device),
    }  # fmt: skip


def publish(result: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Write the JSON object, and print a short table."""
    contract.write(dict(result), options)
    work = result["work"]
    device = result["environment"]["gpu"] or result["environment"]["cpu"]
    everything = f"{work['archs']} architectures x {work['steps']} steps"
    print(f"{device}, {result['precision']}: {everything} in {result['ours_all_s']:.2f} s")
    for name, each in {"ours": result["ours_s"], **result["baselines"]}.items():
        print(f"{name:<40} {each * 1e3:9.3f} ms a step  {each / result['ours_s']:6.2f} x ours")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; --quick lowers what is not given."""
    parser = contract.parser(__doc__, devices=("cpu", "cuda"))
    parser.add_argument("--archs", type=int, metavar="N", help="architectures")
    parser.add_argument("--steps", type=int, metavar="N", help="steps of each")
    return contract.parse(parser, arguments, FULL, QUICK, {"archs": CONFIG.spec.num_archs})


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write one JSON object."""
    options = parse(arguments)
    publish(measure(make_job(options)), options)


if __name__ == "__main__":
    contract.restart_with(parse().threads)
    main()
