# SPDX-License-Identifier: MIT
"""A single-path training step of the NAS-Bench-201 supernet: nasfast, published code, PyTorch.

Losses and gradients are checked against float64 before anything is timed; wrong ones are not.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

import contract
from eager_training import (
    ARCH_SEED,
    ARCHS,
    LR,
    SEED,
    SGD,
    Trainer,
    chosen_archs,
    eager_trainer,
    exact_gradients,
    gradient_error,
    random_batch,
    trainers_of,
    training_flop,
    yardsticks,
)
from nasfast import Architecture, Merge, Sgd, Supernet, SupernetConfig, TrainSettings
from nasfast.data import Batch
from nasfast.lane_engine import EngineLanes
from nasfast.lower import Mode
from nasfast.plan import UNBOUNDED, plan
from nasfast.program import Program, build, request_array
from nasfast.train import TrainState
from nasfast.train.steppers import EngineStepper
from pairs import seconds, spread

CONFIG = SupernetConfig()
BATCH, SIDE = 64, 32
SCREENED, QUICK_SCREENED, MEMORY_ARCHS = 4, 1, 2
FULL = {"archs": 16, "repeats": 5}
QUICK = {"archs": 2, "repeats": 1}
WORDS = (
    f"`archs` of nasfast.spaces.NB201.sample({ARCHS}, seed={ARCH_SEED}, distinct=True), evenly "
    "spaced by arithmetic: one step of SGD on each (forward, backward, momentum, decay; shared "
    f"weights), a minibatch of {BATCH} images of 3x{SIDE}x{SIDE}, C=16, five cells a stage, batch "
    "statistics, random weights and images. Every edge is computed as written, dead or not. Ours "
    "is one call for all steps, with lowering, planning and packing of weights; its threads share "
    "each step; it updates running statistics, which the others do not. ours_as_trained_s: "
    "without dead edges and merged, as nasfast.train does; ours_lanes_s: a thread a step, each on "
    "a copy of the weights made before. FLOP: three times those of the forward pass"
)


Result = tuple[float, dict[str, torch.Tensor]]  # loss, gradients


@dataclass(frozen=True)
class Job:
    """What is measured, and how."""

    supernet: Supernet
    archs: list[Architecture]
    batch: Batch
    options: argparse.Namespace

    def program(self, archs: Sequence[Architecture], merge: Merge = Merge.NONE) -> Program:
        layout = self.supernet.layout
        requests = request_array(layout, archs)
        return build(layout, requests, mode=Mode("batch", False), merge=merge)

    def stepper(self, settings: TrainSettings) -> EngineStepper:
        """Return what trains a copy of the weights."""
        return EngineStepper(
            self.supernet.copy(), settings, TrainState(), precision=self.options.precision,
            threads=self.options.threads,
        )  # fmt: skip

    def take(
        self, stepper: EngineStepper, archs: Sequence[Architecture], merge: Merge = Merge.NONE
    ) -> list[float]:
        """Take one step on each architecture; return the losses before them."""
        program = self.program(archs, merge)
        stepper.begin(program, SIDE, SIDE, len(self.batch.labels))
        lanes = program.lane_of_request.tolist()
        return stepper.take(lanes, [self.batch] * len(archs), LR).loss[:, 0].tolist()


def make_job(options: argparse.Namespace) -> Job:
    """Choose architectures, draw weights and images."""
    archs = chosen_archs(CONFIG, options.archs, SIDE)
    supernet = Supernet.create(CONFIG, seed=SEED)
    return Job(supernet, archs, random_batch(CONFIG, BATCH, SIDE), options)


def ours(job: Job, arch: Architecture) -> Result:
    """Return loss and gradients on the engine: the momentum of a first step is the gradient."""
    settings = TrainSettings(epochs=1, lr=LR, momentum=0.9, nesterov=False, weight_decay=0.0)
    stepper = job.stepper(settings)
    (loss,) = job.take(stepper, [arch])
    return loss, stepper.momentum()


def verify(job: Job, rivals: Mapping[str, Trainer]) -> dict[str, object]:
    """Check ours and the baselines; return the field ``max_error``."""
    options, losses, errors, torchs = job.options, [], [], []
    truth = exact_gradients(job.supernet, job.archs, job.batch)
    bf16 = options.precision == "bf16"
    own = [
        eager_trainer(job.supernet, job.batch, bf16=bf16, channels_last=last, threads=1)
        for last in yardsticks(options.precision)
    ]

    def off(found: Result, wanted: Result) -> float:
        loss = abs(found[0] - wanted[0]) / max(1.0, abs(wanted[0]))
        return float(np.hypot(gradient_error(found[1], wanted[1]), loss))

    for arch, wanted in zip(job.archs, truth, strict=True):
        mine = ours(job, arch)
        losses.append(mine[0])
        errors.append(off(mine, wanted))
        torchs.append(max(off(trainer.gradients(arch), wanted) for trainer in own))
    wanted_losses = [loss for loss, _ in truth]
    contract.check_losses("ours", options.precision, losses, wanted_losses)
    max_error = contract.check(errors, torchs, options.precision)
    few = QUICK_SCREENED if options.quick else SCREENED
    for name, trainer in rivals.items():
        got = [trainer.gradients(arch)[0] for arch in job.archs[:few]]
        contract.check_baseline(name, got, wanted_losses[:few])
    return max_error


def measure(job: Job) -> dict[str, object]:
    """Check, then time."""
    options, archs = job.options, job.archs
    makers = trainers_of(job.supernet, archs, job.batch, options)
    rivals = {name: make() for name, make in makers.items()}
    max_error = verify(job, rivals)
    stepper = job.stepper(TrainSettings(epochs=1, lr=LR, **SGD))
    few = min(len(archs), QUICK_SCREENED if options.quick else SCREENED)
    screened = [archs[(2 * k + 1) * len(archs) // (2 * few)] for k in range(few)]
    found = contract.time_pairs(
        lambda some: job.take(stepper, some), rivals, screened, archs, options
    )
    each, repeats = len(archs), options.repeats
    lanes = lanes_of(job)
    found |= {
        "seconds_are": "for one step, mean over architectures",
        "ours_as_trained_s": spread(
            [seconds(lambda: job.take(stepper, archs, Merge.LINEAR)) / each for _ in range(repeats)]
        ),
        "ours_lanes_s": spread([seconds(lanes) / each for _ in range(repeats)]),
        "memory": {
            who: contract.peak_memory(__file__, options, who)
            for who in ("ours", found["peer"], found["best_pytorch"])[: 1 if options.quick else 3]
        },
    }
    found["peak_mib"] = found["memory"]["ours"]["peak_mib"]
    flop = training_flop(CONFIG, archs, BATCH, SIDE, Merge.NONE)
    work = {
        "words": WORDS,
        "flop": flop,
        "flop_alive": training_flop(CONFIG, archs, BATCH, SIDE, Merge.DEAD),
        "archs": [str(arch) for arch in archs],
    }
    return contract.result("train_nb201", options, work, found, max_error, flop / each)


def lanes_of(job: Job):
    """Return a function that takes one step on every architecture, each on its own weights."""
    program = job.program(job.archs)
    cut = plan(program, batch=BATCH, height=SIDE, width=SIDE, memory=UNBOUNDED)
    options = job.options
    trainer = EngineLanes(
        cut, [job.supernet], Sgd(**SGD), precision=options.precision, threads=options.threads
    )
    state = trainer.start(0)
    rates = np.full((len(state.weights), 1), LR)
    return lambda: trainer.step(0, state, [job.batch], rates)


def run_alone(job: Job, who: str) -> None:
    """Train a few architectures, for a measurement of memory."""
    few = job.archs[:MEMORY_ARCHS]
    if who == "ours":
        job.take(job.stepper(TrainSettings(epochs=1, lr=LR, **SGD)), few)
        return
    trainers_of(job.supernet, few, job.batch, job.options)[who]()(few)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; --quick lowers what is not given."""
    parser = contract.parser(__doc__)
    parser.add_argument("--archs", type=int, metavar="N", help=f"1 to {ARCHS}, of a fixed list")
    return contract.parse(parser, arguments, FULL, QUICK, {"archs": ARCHS})


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write one JSON object."""
    options = parse(arguments)
    job = make_job(options)
    if options.memory:
        contract.print_memory(lambda: run_alone(job, options.memory))
        return
    result = measure(job)
    contract.publish(result, options, "a step")
    print(f"a thread a step: {result['ours_lanes_s']['median'] * 1e3:.1f} ms; merged: "
          f"{result['ours_as_trained_s']['median'] * 1e3:.1f} ms")  # fmt: skip


if __name__ == "__main__":
    contract.restart_with(parse().threads)
    main()
