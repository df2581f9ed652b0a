# SPDX-License-Identifier: MIT
"""Score architectures of NAS-Bench-201 on one minibatch: nasfast, the published code, PyTorch.

Nothing is merged: each architecture is a lane, and every edge is computed as written. Results are
checked against float64 before anything is timed; wrong ones are not timed.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

import contract
from eager_nb201 import EagerNet, compiled, rivals_of
from losses import Losses, Rival, check, check_rivals, losses_of
from nasfast import Architecture, Merge, Supernet, SupernetConfig, evaluate
from nasfast.data import Batch
from nasfast.explain import Step, explain
from pairs import spaced

CONFIG = SupernetConfig()
BATCH, SIDE, SEED = 64, 32, 0
# Of eight seeds tried, the draw whose mean arithmetic is nearest to that of the whole space (54.2
# and 55.0 million multiply-accumulates an image).
ARCHS, ARCH_SEED = 64, 1
SCREENED, QUICK_COMPARED = 8, 2  # all rivals run these; the fastest of a family runs all, or 2
FULL = {"archs": ARCHS, "repeats": 7, "compiled": 4}
QUICK = {"archs": 4, "repeats": 2, "compiled": 0}  # torch.compile takes a minute for each
WORDS = (
    f"the first `archs` of nasfast.spaces.NB201.sample({ARCHS}, seed={ARCH_SEED}, distinct=True): "
    f"forward pass and loss of each architecture on one minibatch of {BATCH} images of "
    f"3x{SIDE}x{SIDE}, C=16, five cells a stage, batch statistics everywhere, random weights and "
    "images; no architectures or edges are merged. Ours is a whole call of nasfast.evaluate, with "
    "lowering, planning and packing of weights; it computes the stem, and equal operations of the "
    "first of 15 cells, once for the lanes of a chunk (ours_unshared_s: each in its own call)"
)

AGAINST = "loss of each image in float64 (backend 'reference'), all lanes"


@dataclass(frozen=True)
class Job:
    """What is measured, and how."""

    supernet: Supernet
    archs: list[Architecture]
    batch: Batch
    options: argparse.Namespace

    @property
    def compared(self) -> list[Architecture]:
        """Architectures that ours and others are timed on in pairs."""
        return self.spaced(QUICK_COMPARED) if self.options.quick else self.archs

    def spaced(self, count: int) -> list[Architecture]:
        """Return so many architectures, evenly spaced by arithmetic."""
        return spaced(self.archs, count, lambda arch: count_work(Merge.NONE, [arch]).macs)

    def score(self, archs: Sequence[Architecture]) -> Losses:
        return ours(self.supernet, archs, self.batch, self.options.precision, self.options.threads)


def make_job(options: argparse.Namespace) -> Job:
    """Draw the fixed list (its first ``--archs``), weights and images."""
    archs = CONFIG.spec.sample(ARCHS, seed=ARCH_SEED, distinct=True)[: options.archs]
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(BATCH, CONFIG.in_channels, SIDE, SIDE, generator=generator)
    labels = torch.randint(0, CONFIG.classes, (BATCH,), generator=generator)
    return Job(Supernet.create(CONFIG, seed=SEED), archs, Batch(images, labels), options)


def ours(
    supernet: Supernet, archs: Sequence[Architecture], batch: Batch, precision: str, threads: int
) -> Losses:
    """Score on our engine, one lane for each architecture."""
    scores = evaluate(
        supernet, archs, [batch], bn="batch", precision=precision, merge=Merge.NONE,
        backend="cpu", threads=threads, keep_images=True,
    )  # fmt: skip
    assert scores.program.num_lanes == len(archs)
    return scores.lane_loss[scores.lane_of_arch]


def exact(job: Job) -> Losses:
    """Return the definition in float64.

    With merging: unmerged, a convolution of a constant is normalised rounding.
    """
    scores = evaluate(
        job.supernet, job.archs, [job.batch], bn="batch", precision="fp64", backend="reference"
    )
    return scores.lane_loss[scores.lane_of_arch]


def count_work(merge: Merge, archs: Sequence[Architecture]) -> Step:
    (step,) = explain(CONFIG.spec, archs, config=CONFIG, image=(SIDE, SIDE), merges=[merge]).steps
    return step


def work(archs: Sequence[Architecture]) -> dict[str, int]:
    """Count floating-point operations of convolutions and classifier, by nasfast's own count.

    ``flop`` is the arithmetic of the architectures as written, of which ``flop_dead`` carries
    nothing to an output; ``flop_run_by_ours`` is what is left when the first cell is shared.
    """
    flop = 2 * BATCH
    as_written = count_work(Merge.NONE, archs)
    alive = sum(count_work(Merge.DEAD, [arch]).macs for arch in archs)
    return {
        "flop": flop * as_written.macs,
        "flop_dead": flop * (as_written.macs - alive),
        "flop_run_by_ours": flop * as_written.total_macs,
        "archs": len(archs),
    }


# The measurement.


def measure(job: Job) -> dict[str, object]:
    """Check, then time."""
    options, compared = job.options, job.compared
    truth = dict(zip(job.archs, exact(job), strict=True))
    bf16 = options.precision == "bf16"
    # Each precision in the layout in which PyTorch's errors are the smaller ones.
    own = Rival(EagerNet(job.supernet, job.batch, bf16=bf16, channels_last=bf16), threads=1)
    max_error = check(
        job.score(job.archs), losses_of(own, job.archs), np.stack(list(truth.values())),
        options.precision, AGAINST,
    )  # fmt: skip
    rivals = rivals_of(job.supernet, compared, job.batch, options.precision, options.threads)
    first = compared[:1] if options.quick else job.spaced(SCREENED)
    check_rivals(rivals, first, np.stack([truth[arch] for arch in first]))
    found = time_all(job, rivals)
    found |= contract.peak_memory(__file__, options, "ours", sizes=["archs"])
    flop = work(job.archs)
    about = {
        "words": WORDS,
        **flop,
        "flop_compared": work(compared)["flop"],
        "compared": [str(arch) for arch in compared],
    }
    return contract.result(
        "space_nb201", options, about, found, max_error,
        flop["flop_run_by_ours"], found["ours_all_archs_s"]["median"],
    )  # fmt: skip


def time_all(job: Job, rivals: dict[str, Rival]) -> dict[str, Any]:
    """Time ours and the rivals in turns; all seconds but one are for one architecture."""
    options, compared = job.options, job.compared
    found = contract.time_pairs(
        job.score,
        {name: partial(losses_of, rival) for name, rival in rivals.items()},
        compared[:1] if options.quick else job.spaced(SCREENED),
        compared,
        options,
        beside={
            "ours_all_archs_s": lambda: job.score(job.archs),
            "ours_unshared_s": lambda: [job.score([arch]) for arch in compared],
        },
    )
    found["ours_unshared_s"] = found["ours_unshared_s"]["median"] / len(compared)
    if options.compiled:
        best = found["best_pytorch"]
        # A cache of its own: compile_s is what it takes the first time.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
            rows = [
                compiled(rivals[best], arch, lambda a=arch: job.score([a]), options.repeats)
                for arch in job.spaced(options.compiled)
            ]
        found["torch_compile"] = {"variant": best, "archs": rows}
    return {"seconds_are": "for one architecture, mean over those compared", **found}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; --quick lowers what is not given."""
    parser = contract.parser(__doc__, devices=("cpu", "cuda"), precisions=("bf16", "tf32", "fp32"))
    parser.add_argument("--archs", type=int, metavar="N", help=f"1 to {ARCHS}, of a fixed list")
    parser.add_argument("--compiled", type=int, metavar="N", help="archs for torch.compile")
    options = contract.parse(parser, arguments, FULL, QUICK, {"archs": ARCHS}, {"compiled": 0})
    if options.precision == "tf32" and options.device != "cuda":
        parser.error(f"--precision tf32 wants --device cuda, got {options.device}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write one JSON object."""
    options = parse(arguments)
    job = make_job(options)
    if options.memory:
        contract.print_memory(lambda: job.score(job.archs))
        return
    if options.device == "cuda":
        from card_nb201 import measure_card, publish_card

        checked = replace(job, archs=job.spaced(SCREENED))
        with torch.no_grad():
            found = measure_card(
                job.supernet, job.archs, checked.archs, exact(checked), job.batch, options,
                work(job.archs),
            )  # fmt: skip
        publish_card(found, options)
        return
    with torch.inference_mode():
        result = measure(job)
    contract.publish(result, options, "an architecture")


if __name__ == "__main__":
    contract.restart_with(parse().threads)
    main()
