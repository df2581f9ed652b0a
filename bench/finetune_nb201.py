# SPDX-License-Identifier: MIT
"""Fine-tuning of many NAS-Bench-201 architectures, each from a supernet's weights, for its losses.

Ours trains them together, each with private copies of the weights that it uses; the others
deep-copy the supernet and loop. Losses are checked against float64 before anything is timed.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

import contract
from eager_training import (
    ARCH_SEED,
    SEED,
    SGD,
    TRAINING_PASSES,
    Trainer,
    chosen_archs,
    eager_trainer,
    macs_of,
    random_batch,
    trainers_of,
    variants,
    yardsticks,
)
from nasfast import Architecture, FineTuning, Merge, Sgd, Supernet, SupernetConfig, finetune
from nasfast.data import Batch
from pairs import seconds

CONFIG = SupernetConfig()
BATCH, SIDE = 64, 32
LR = 0.01
FULL = {"archs": 200, "steps": 100, "repeats": 5}
QUICK = {"archs": 4, "steps": 3, "repeats": 1}
# Of the architectures and steps: what rivals are timed on in pairs with ours, and what is checked.
COMPARED, COMPARED_STEPS, CHECKED, CHECKED_STEPS = 8, 4, 8, 2
QUICK_COMPARED, QUICK_COMPARED_STEPS, QUICK_CHECKED = 2, 1, 2
WORDS = (
    "`archs` of nasfast.spaces.NB201.sample(archs, seed={seed}, distinct=True), each trained for "
    "`steps` steps of SGD at a constant rate from the same random supernet, losses recorded: "
    f"minibatches of {BATCH} random images of 3x{SIDE}x{SIDE}, the same for all, C=16, five cells "
    "a stage, batch statistics. Ours is one call of nasfast.finetune: no dead edges, architectures "
    "of one function trained once (`lanes`), each on private copies. The others copy the supernet "
    "for each architecture and loop, every edge as written; they are measured in turns with ours "
    "on the architectures and steps of `compared`, and their seconds for everything are those of a "
    "step there times the number of steps"
)


@dataclass(frozen=True)
class Job:
    """What is measured, and how."""

    supernet: Supernet
    archs: list[Architecture]
    batches: list[Batch]
    options: argparse.Namespace

    @property
    def compared(self) -> list[Architecture]:
        """Architectures that ours and others are timed on in pairs."""
        count = QUICK_COMPARED if self.options.quick else COMPARED
        return chosen_archs(CONFIG, min(count, len(self.archs)), SIDE)

    @property
    def compared_steps(self) -> int:
        few = QUICK_COMPARED_STEPS if self.options.quick else COMPARED_STEPS
        return min(few, self.options.steps)


def make_job(options: argparse.Namespace) -> Job:
    """Draw architectures, weights and images."""
    archs = CONFIG.spec.sample(options.archs, seed=ARCH_SEED, distinct=True)
    supernet = Supernet.create(CONFIG, seed=SEED)
    return Job(supernet, archs, [random_batch(CONFIG, BATCH, SIDE)], options)


def ours(job: Job, archs: Sequence[Architecture], steps: int, **changes: str) -> FineTuning:
    """Train on the engine of the device."""
    options = {"precision": job.options.precision, "backend": job.options.device} | changes
    return finetune(
        job.supernet, archs, job.batches, steps=steps, lr=LR, sgd=Sgd(**SGD),
        gradient_sums=False, threads=job.options.threads, **options,
    )  # fmt: skip


class Loop:
    """The loop that ours takes the place of: a copy of the supernet and fresh SGD for each.

    Args:
        make: Returns a trainer of a copy of the weights.
        steps: Steps of each architecture, on one minibatch again and again.
    """

    def __init__(self, make, steps: int) -> None:
        self.make, self.steps = make, steps

    def __call__(self, archs: Sequence[Architecture]) -> list[list[float]]:
        return [self.make()([arch] * self.steps) for arch in archs]


def own_trainer(job: Job, bf16: bool, channels_last: bool) -> Trainer:
    """Return PyTorch's way with one thread, where ours is."""
    return eager_trainer(
        job.supernet, job.batches[0], bf16=bf16, channels_last=channels_last, threads=1, lr=LR,
        device=job.options.device,
    )  # fmt: skip


def loops_of(job: Job, steps: int) -> dict[str, Loop]:
    if job.options.device == "cuda":
        makers = {
            name: partial(own_trainer, job, bf16, channels_last)
            for name, bf16, channels_last in variants(job.options.precision)
        }
    else:
        makers = trainers_of(job.supernet, job.compared, job.batches[0], job.options, LR)
    return {name: Loop(make, steps) for name, make in makers.items()}


def verify(job: Job) -> dict[str, object]:
    """Check the losses of the first steps; return the field ``max_error``."""
    options = job.options
    archs = job.compared[: QUICK_CHECKED if options.quick else CHECKED]
    truth = ours(job, archs, CHECKED_STEPS, precision="fp64", backend="reference").loss
    mine = ours(job, archs, CHECKED_STEPS).loss
    contract.check_losses("ours", options.precision, mine.ravel(), truth.ravel())
    bf16 = options.precision == "bf16"

    def off(losses: np.ndarray) -> np.ndarray:
        return np.linalg.norm(losses - truth, axis=1) / np.linalg.norm(truth, axis=1)

    torchs = [
        off(np.array(Loop(partial(own_trainer, job, bf16, last), CHECKED_STEPS)(archs)))
        for last in yardsticks(options.precision)
    ]
    errors = (off(mine).tolist(), np.max(torchs, axis=0).tolist())
    found = contract.check(*errors, options.precision)
    found["against"] = f"losses of the first {CHECKED_STEPS} steps in float64, relative"
    for name, loop in loops_of(job, 1).items():
        contract.check_baseline(name, [loop(archs[:1])[0][0]], truth[:1, 0])
    return found


def measure(job: Job) -> dict[str, object]:
    """Check, then time."""
    options, compared, steps = job.options, job.compared, job.compared_steps
    max_error = verify(job)
    loops = loops_of(job, steps)
    found = contract.time_pairs(
        lambda some: ours(job, some, steps), loops, compared[:1], compared, options
    )
    # Seconds of an architecture so far; of a step from here on.
    found["ours_s"] /= steps
    for key in ("baselines", "screened_s"):
        found[key] = {name: s / steps for name, s in found[key].items()}
    curves = []
    all_s = seconds(lambda: curves.append(ours(job, job.archs, options.steps)))
    taken = len(job.archs) * options.steps
    lanes = len(np.unique(curves[0].lane_of_training))
    found |= {
        "seconds_are": "for one step of one architecture, in calls of the size of `compared`",
        "ours_all_s": all_s,
        "ours_all_step_s": all_s / taken,
        "baselines_all_s": {name: s * taken for name, s in found["baselines"].items()},
        "baselines_all_s_are": "scaled: seconds for a step times architectures times steps",
        "lanes": lanes,
        "diverged": int((curves[0].diverged_at >= 0).sum()),
        "memory": {"ours": contract.peak_memory(__file__, options, "ours")},
    }
    found["peak_mib"] = found["memory"]["ours"]["peak_mib"]
    flop = [flop_of(archs) * n for archs, n in ((job.archs, options.steps), (compared, steps))]
    work = {
        "words": WORDS.format(seed=ARCH_SEED),
        "archs": len(job.archs),
        "steps": options.steps,
        "flop": flop[0],
        "compared": {"archs": [str(arch) for arch in compared], "steps": steps, "flop": flop[1]},
    }
    flop_of_step = flop[1] / (len(compared) * steps)
    return contract.result("finetune_nb201", options, work, found, max_error, flop_of_step)


def flop_of(archs: Sequence[Architecture]) -> int:
    """Floating-point operations of a step of each, without dead edges."""
    macs = sum(macs_of(CONFIG, arch, SIDE, Merge.DEAD) for arch in archs)
    return TRAINING_PASSES * 2 * BATCH * macs


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; --quick lowers what is not given."""
    parser = contract.parser(__doc__)
    parser.add_argument("--archs", type=int, metavar="N", help="architectures")
    parser.add_argument("--steps", type=int, metavar="N", help="steps of each")
    return contract.parse(parser, arguments, FULL, QUICK, {"archs": CONFIG.spec.num_archs})


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write one JSON object."""
    options = parse(arguments)
    job = make_job(options)
    if options.memory:
        contract.print_memory(lambda: ours(job, job.archs, 1))
        return
    result = measure(job)
    contract.publish(result, options, "a step")
    others = ", ".join(
        f"{result[who]} {result['baselines_all_s'][result[who]] / 60:.1f} min"
        for who in ("peer", "best_pytorch", "eager_pytorch")
    )
    everything = f"{options.archs} architectures x {options.steps} steps"
    each = f"{result['ours_all_step_s'] * 1e3:.1f} ms a step"
    print(f"{everything}: {result['ours_all_s']:.1f} s ({each}); scaled from fewer: {others}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    contract.restart_with(parse().threads)
    main()
