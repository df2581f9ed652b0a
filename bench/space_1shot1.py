# SPDX-License-Identifier: MIT
"""Score architectures of NAS-Bench-1Shot1 on one minibatch: nasfast, the published way, PyTorch.

Results are checked against float64 before anything is timed; wrong ones are not timed. Lanes that
stand next to each other in the list of the space, as a ranking of the whole space has them, are
timed beside: they share more than architectures drawn at random.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

import contract
from eager_1shot1 import FAMILIES, Scorer, macs, path_of, rivals_of
from losses import Losses, Rival, check, check_rivals, losses_of
from nasfast import Architecture, Merge, Supernet, SupernetConfig, evaluate, explain, spaces
from nasfast.data import Batch
from nasfast.spaces import BlockSpec
from pairs import spaced, spread

CHANNELS, BATCH, SIDE, SEED = 16, 64, 32, 0
# Of eight seeds tried on space 3, the draw whose mean arithmetic is nearest to that of the whole
# space (75.2 and 75.3 million multiply-accumulates an image).
ARCHS, ARCH_SEED = 64, 1
SCREENED, QUICK_COMPARED = 8, 2  # all rivals run these; the fastest of a family runs all, or 2
WINDOWS = 4  # runs of consecutive lanes, evenly spaced in the list
FULL = {"archs": ARCHS, "repeats": 5, "lanes": 512}
QUICK = {"archs": 4, "repeats": 1, "lanes": 32}
# Losses of a random supernet lie close together: another architecture is 0.42 off (median; at
# least 0.17), autocast 0.01 to 0.14.
BASELINE_TOLERANCE = {"fp32": 1e-3, "bf16": 0.2}
AGAINST = "loss of each image in float64 (bench/eager_1shot1.py, single path), all lanes"


def words(space: str) -> str:
    """Say what is measured."""
    return (
        f"the first `archs` of nasfast.spaces.get({space!r}).sample({ARCHS}, seed={ARCH_SEED}, "
        f"distinct=True): forward pass and loss of each architecture on one minibatch of {BATCH} "
        f"images of 3x{SIDE}x{SIDE}, C={CHANNELS}, nine cells, batch statistics everywhere, random "
        "weights and images. Published: every operation and projection, times 0 or 1. PyTorch: "
        "what the architecture selects; 'lean' and 'fused' leave out channels that are zero, "
        "'fused' runs the projections of a cell's blocks as one convolution. Ours is a whole call "
        "of nasfast.evaluate, with lowering, planning and packing of weights; it computes once "
        "what lanes have in common (ours_unshared_s: each in its own call)"
    )


@dataclass(frozen=True)
class Job:
    """What is measured, and how."""

    supernet: Supernet
    archs: list[Architecture]
    batch: Batch
    options: argparse.Namespace

    @property
    def spec(self) -> BlockSpec:
        return self.archs[0].spec

    @cached_property
    def state(self) -> dict[str, Tensor]:
        return self.supernet.state_dict()

    @property
    def compared(self) -> list[Architecture]:
        """Architectures that ours and others are timed on in pairs."""
        return self.spaced(QUICK_COMPARED) if self.options.quick else self.archs

    def spaced(self, count: int) -> list[Architecture]:
        """Return so many architectures, evenly spaced by arithmetic."""
        return spaced(self.archs, count, lambda arch: arithmetic(arch, "single path"))

    def windows(self) -> list[list[Architecture]]:
        """Return runs of consecutive subnets of the list, ``--lanes`` in all."""
        total, length = self.spec.num_archs, self.options.lanes // WINDOWS
        middles = [(2 * k + 1) * total // (2 * WINDOWS) for k in range(WINDOWS)]
        return [
            [self.spec.from_index(middle - length // 2 + k) for k in range(length)]
            for middle in middles
        ]

    def score(self, archs: Sequence[Architecture]) -> Losses:
        return ours(self.supernet, archs, self.batch, self.options.precision, self.options.threads)


def make_job(options: argparse.Namespace) -> Job:
    """Draw the fixed list (its first ``--archs``), weights and images."""
    name = f"nb1shot1-{options.space}"
    archs = spaces.get(name).sample(ARCHS, seed=ARCH_SEED, distinct=True)[: options.archs]
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(BATCH, 3, SIDE, SIDE, generator=generator)
    labels = torch.randint(0, 10, (BATCH,), generator=generator)
    return Job(make_supernet(name), archs, Batch(images, labels), options)


def make_supernet(space: str) -> Supernet:
    return Supernet.create(SupernetConfig.published(space, channels=CHANNELS), seed=SEED)


def ours(
    supernet: Supernet, archs: Sequence[Architecture], batch: Batch, precision: str, threads: int
) -> Losses:
    """Score on our engine."""
    scores = evaluate(
        supernet, archs, [batch], bn="batch", precision=precision, backend="cpu", threads=threads,
        keep_images=True,
    )  # fmt: skip
    return scores.lane_loss[scores.lane_of_arch]


# Arithmetic.


def arithmetic(arch: Architecture, way: str) -> int:
    """Multiply-accumulates of one image, by the shapes of convolutions."""
    return macs(path_of(arch), way, channels=CHANNELS, side=SIDE)


def mean_arithmetic(archs: Sequence[Architecture]) -> float:
    return statistics.fmean(arithmetic(arch, "single path") for arch in archs)


def program_macs(supernet: Supernet, archs: Sequence[Architecture]) -> int:
    """Multiply-accumulates that ours runs for one image, by its program's count."""
    (step,) = explain(
        supernet.config.spec, archs, config=supernet.config, image=(SIDE, SIDE),
        merges=[Merge.LINEAR],
    ).steps  # fmt: skip
    return step.total_macs


def work(job: Job, archs: Sequence[Architecture]) -> dict[str, int]:
    """Count floating-point operations of convolutions and classifier.

    ``flop`` is the arithmetic of the selected paths as written, ``flop_lean`` without channels that
    are always zero, ``flop_published`` what runs when everything is multiplied by 0 and 1;
    ``flop_run_by_ours`` is that of ours, by nasfast's own count.
    """
    flop = 2 * BATCH

    def total(way: str) -> int:
        return flop * sum(arithmetic(arch, way) for arch in archs)

    return {
        "flop": total("single path"),
        "flop_lean": total("lean"),
        "flop_published": total("published"),
        "flop_run_by_ours": flop * program_macs(job.supernet, archs),
        "archs": len(archs),
    }


# The measurement.


def measure(job: Job) -> dict[str, object]:
    """Check, then time."""
    options, compared = job.options, job.compared
    exact = Scorer(job.state, job.batch, "single path", dtype=torch.float64)
    truth = dict(zip(job.archs, losses_of(exact, job.archs), strict=True))

    def truth_of(archs: Sequence[Architecture]) -> Losses:
        return np.stack([truth[arch] for arch in archs])

    bf16 = options.precision == "bf16"
    # Each precision in the layout in which PyTorch's errors are the smaller ones.
    own = Scorer(job.state, job.batch, "single path", bf16=bf16, channels_last=bf16)
    max_error = check(
        job.score(job.archs), losses_of(Rival(own, threads=1), job.archs), truth_of(job.archs),
        options.precision, AGAINST,
    )  # fmt: skip
    rivals = rivals_of(job.state, job.batch, options.precision, options.threads)
    first = compared[:1] if options.quick else job.spaced(SCREENED)
    check_rivals(rivals, first, truth_of(first), BASELINE_TOLERANCE)
    found = time_all(job, rivals, first)
    found |= contract.peak_memory(__file__, options, "ours", sizes=["archs", "space"])
    flop = work(job, job.archs)
    about = {
        "words": words(job.spec.name),
        "space": job.spec.name,
        **flop,
        "flop_compared": work(job, compared)["flop"],
        "compared": [str(arch) for arch in compared],
    }
    return contract.result(
        "space_1shot1", options, about, found, max_error,
        flop["flop_run_by_ours"], found["ours_all_archs_s"]["median"],
    )  # fmt: skip


def time_all(
    job: Job, rivals: dict[str, Rival], screened: Sequence[Architecture]
) -> dict[str, Any]:  # fmt: skip
    """Time ours and the rivals in turns, then lanes in list order."""
    compared, windows = job.compared, job.windows()
    in_windows: dict[str, Any] = {
        f"window_{k}": lambda w=window: job.score(w) for k, window in enumerate(windows)
    }
    found = contract.time_pairs(
        job.score,
        {name: lambda archs, r=rival: losses_of(r, archs) for name, rival in rivals.items()},
        screened,
        compared,
        job.options,
        beside={
            "ours_all_archs_s": lambda: job.score(job.archs),
            "ours_unshared_s": lambda: [job.score([arch]) for arch in compared],
            **in_windows,
        },
        families=FAMILIES,
    )
    found["ours_unshared_s"] = found["ours_unshared_s"]["median"] / len(compared)
    medians = [found.pop(name)["median"] for name in in_windows]
    found["list_order"] = list_order(job, windows, medians)
    return {"seconds_are": "for one architecture, mean over those compared", **found}


def list_order(
    job: Job, windows: Sequence[Sequence[Architecture]], seconds: Sequence[float]
) -> dict[str, Any]:
    """Say what a lane of the list takes, and estimate one minibatch of the whole space."""
    lanes = sum(map(len, windows))
    lane_s = sum(seconds) / lanes
    # Windows are few: their arithmetic is not quite that of the space, which a draw tells.
    drawn = job.spec.sample(min(2000, job.spec.num_archs), seed=0, distinct=True)
    share = mean_arithmetic([a for window in windows for a in window]) / mean_arithmetic(drawn)
    return {
        "words": f"{len(windows)} runs of consecutive subnets of the list, each in a call",
        "lanes": lanes,
        "lane_s": lane_s,
        "lane_s_of_windows": spread([s / len(w) for s, w in zip(seconds, windows, strict=True)]),
        "flop_of_lanes_to_space": share,
        "space_archs": job.spec.num_archs,
        "space_estimate_s": lane_s / share * job.spec.num_archs,
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; --quick lowers what is not given."""
    parser = contract.parser(__doc__)
    parser.add_argument("--space", choices=("1", "2", "3"), default="3", help="search space")
    parser.add_argument("--archs", type=int, metavar="N", help=f"1 to {ARCHS}, of a fixed list")
    parser.add_argument("--lanes", type=int, metavar="N", help="timed in the order of the list")
    least = {"lanes": WINDOWS}
    return contract.parse(parser, arguments, FULL, QUICK, {"archs": ARCHS, "lanes": 3702}, least)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write one JSON object."""
    options = parse(arguments)
    job = make_job(options)
    if options.memory:
        contract.print_memory(lambda: job.score(job.archs))
        return
    with torch.inference_mode():
        result = measure(job)
    contract.publish(result, options, "an architecture")
    order = result["list_order"]
    print(f"{order['lanes']} lanes in list order: {order['lane_s'] * 1e3:.1f} ms each, the whole "
          f"space about {order['space_estimate_s'] / 60:.0f} min a minibatch")  # fmt: skip


if __name__ == "__main__":
    contract.restart_with(parse().threads)
    main()
