# SPDX-License-Identifier: MIT
"""The joint NAS-Bench-201 supernet, every edge the weighted sum of its operations: there and back.

Loss, and gradients of all weights and of the mixing weights, are checked against float64 before
anything is timed.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import contract
from eager_nb201 import published_models, use_statistics_of_the_minibatch
from eager_training import (
    SEED,
    TRAINING_PASSES,
    gradient_error,
    random_batch,
    threaded,
    variants,
    yardsticks,
)
from nasfast import Supernet, SupernetConfig, joint_forward, native
from nasfast.compat.xautodl import to_xautodl
from nasfast.data import Batch
from nasfast.layout import halved
from nasfast.lower import Mode
from nasfast.plan import UNBOUNDED, plan
from nasfast.program import build_joint

CONFIG = SupernetConfig()
BATCH, SIDE = 64, 32
FULL = {"repeats": 7}
QUICK = {"repeats": 1}
WORDS = (
    f"forward and backward pass of the joint supernet on a minibatch of {BATCH} random images of "
    f"3x{SIDE}x{SIDE}, C=16, five cells a stage, batch statistics, one set of mixing weights for "
    "all cells: gradients of the mean cross-entropy to all weights and mixing weights; no step of "
    "an optimiser. FLOP: three times those of the convolutions and the classifier, forward"
)

Gradients = tuple[float, dict[str, Tensor], Tensor]  # loss, of weights, of mixing weights


@dataclass(frozen=True)
class Job:
    """What is measured, and how."""

    supernet: Supernet
    alphas: Tensor
    batch: Batch
    options: argparse.Namespace

    @property
    def mixing(self) -> Tensor:
        """Mixing weights, ``[num_edges, num_ops]``."""
        return self.alphas.softmax(dim=-1)


def make_job(options: argparse.Namespace) -> Job:
    """Draw weights and images."""
    spec, generator = CONFIG.spec, torch.Generator().manual_seed(SEED)
    alphas = torch.randn(spec.num_edges, spec.num_ops, generator=generator)
    supernet = Supernet.create(CONFIG, seed=SEED)
    return Job(supernet, alphas, random_batch(CONFIG, BATCH, SIDE), options)


def engine(job: Job) -> Callable[[], Gradients]:
    """Return ours; the table is made once, as for all steps of a training."""
    layout, options = job.supernet.layout, job.options
    program = build_joint(layout, mode=Mode("batch", CONFIG.affine))
    cut = plan(program, batch=BATCH, height=SIDE, width=SIDE, memory=UNBOUNDED)
    table, names = torch.from_numpy(cut.table()), [p for p in layout.params if not p.is_buffer]
    mixing = job.mixing.flatten()[: program.mixing_width].expand(layout.num_cells, -1).contiguous()
    arena = job.supernet.arena

    def run() -> Gradients:
        logits, grads, grad_mixing = native.ops().program_gradients(
            table, arena, job.batch.images, labels=job.batch.labels, mixing=mixing,
            classes=CONFIG.classes, precision=options.precision, threads=options.threads,
        )  # fmt: skip
        loss = F.cross_entropy(logits, job.batch.labels).item()
        own = Supernet(CONFIG, grads, layout)
        missing = job.mixing.numel() - grad_mixing.shape[1]
        total = F.pad(grad_mixing.sum(dim=0), (0, missing)).reshape(job.mixing.shape)
        return loss, {p.name: own.view(p) for p in names}, total

    return run


def eager(
    job: Job, *, bf16: bool, channels_last: bool, threads: int, dtype: torch.dtype = torch.float32
) -> Callable[[], Gradients]:
    """Return plain PyTorch: nasfast.joint_forward on its reference backend."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    supernet = job.supernet.copy(dtype)
    leaves = {}
    for name, leaf in supernet.leaves().items():
        wanted = leaf.requires_grad
        copied = leaf.detach().clone()
        if copied.dim() == 4:
            copied = copied.contiguous(memory_format=layout)
        leaves[name] = copied.requires_grad_(wanted)
    images = job.batch.images.to(dtype).contiguous(memory_format=layout)
    mixing = job.mixing.to(dtype).requires_grad_()

    def run() -> Gradients:
        torch.set_num_threads(threads)
        for leaf in (*leaves.values(), mixing):
            leaf.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = joint_forward(supernet, images, mixing, tensors=leaves, backend="reference")
            loss = F.cross_entropy(logits.to(dtype), job.batch.labels)
        loss.backward()
        grads = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        return loss.item(), grads, mixing.grad

    return run


def published(job: Job, threads: int) -> Callable[[], Gradients]:
    """Return the published DARTS supernet (xautodl 1.0.0) with our weights and mixing weights."""
    models = published_models()
    net = models.get_cell_based_tiny_net(
        {
            "name": "DARTS-V1", "max_nodes": 4, "affine": False, "track_running_stats": False,
            "space": models.get_search_spaces("cell", "nas-bench-201"),
            "C": CONFIG.channels, "N": CONFIG.cells_per_stage, "num_classes": CONFIG.classes,
        }
    )  # fmt: skip
    # Its rows are edges by name, "1<-0", "2<-0", ...: the order of ours.
    net.load_state_dict(to_xautodl(job.supernet), strict=False)
    with torch.no_grad():
        net.arch_parameters.copy_(job.alphas)
    use_statistics_of_the_minibatch(net)

    def run() -> Gradients:
        torch.set_num_threads(threads)
        net.zero_grad(set_to_none=True)
        loss = F.cross_entropy(net(job.batch.images)[1], job.batch.labels)
        loss.backward()
        grads = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        return loss.item(), grads, grads.pop("arch_parameters")  # of the logits of the weights

    return run


def makers_of(job: Job) -> dict[str, Callable[[], Callable[[], Gradients]]]:
    """Return what makes each baseline, by name; with one thread too, but for --quick."""
    options = job.options
    makers: dict[str, Callable[[], Callable[[], Gradients]]] = {}
    for count in sorted({options.threads if options.quick else 1, options.threads}):
        makers[threaded("xautodl joint", count)] = partial(published, job, count)
        for name, bf16, channels_last in variants(options.precision):
            makers[threaded(name, count)] = partial(
                eager, job, bf16=bf16, channels_last=channels_last, threads=count
            )
    return makers


def error_of(found: Gradients, truth: Gradients) -> float:
    """Return the relative errors of loss, gradients and mixing gradients together."""
    loss = abs(found[0] - truth[0]) / max(1.0, abs(truth[0]))
    mixing = gradient_error({"": found[2]}, {"": truth[2]})
    return float(np.sqrt(loss**2 + gradient_error(found[1], truth[1]) ** 2 + mixing**2))


def verify(job: Job, ours: Callable[[], Gradients], rivals) -> dict[str, object]:
    """Check ours and the baselines; return the field ``max_error``."""
    truth = eager(job, bf16=False, channels_last=False, threads=1, dtype=torch.float64)()
    mine, bf16 = ours(), job.options.precision == "bf16"
    contract.check_losses("ours", job.options.precision, [mine[0]], [truth[0]])
    own = max(
        error_of(eager(job, bf16=bf16, channels_last=last, threads=1)(), truth)
        for last in yardsticks(job.options.precision)
    )
    max_error = contract.check([error_of(mine, truth)], [own], job.options.precision)
    max_error["against"] = "loss, gradients of weights and of mixing weights in float64, relative"
    for name, rival in rivals.items():
        contract.check_baseline(name, [rival()[0]], [truth[0]])
    return max_error


def measure(job: Job) -> dict[str, object]:
    """Check, then time."""
    options, ours = job.options, engine(job)
    rivals = {name: make() for name, make in makers_of(job).items()}
    max_error = verify(job, ours, rivals)
    once = [None]
    runs = {name: lambda _, r=rival: r() for name, rival in rivals.items()}
    found = contract.time_pairs(lambda _: ours(), runs, once, once, options)
    others = dict.fromkeys((found["peer"], found["best_pytorch"], found["eager_pytorch"]))
    whom = ("ours",) if options.quick else ("ours", *others)
    found |= {
        "seconds_are": "for one forward and backward pass",
        "memory": {who: contract.peak_memory(__file__, options, who) for who in whom},
    }
    found["peak_mib"] = found["memory"]["ours"]["peak_mib"]
    flop = TRAINING_PASSES * 2 * BATCH * joint_macs(job.supernet)
    work = {"words": WORDS, "flop": flop}
    return contract.result("mixed_op", options, work, found, max_error, flop)


def joint_macs(supernet: Supernet) -> int:
    """Count multiply-accumulates of one image, forward: every convolution once."""
    layout, macs = supernet.layout, 0
    for param in layout.params:
        if param.field != "weight":
            continue
        position = max((p for p in layout.positions if p.unit <= param.unit), key=lambda p: p.unit)
        side = halved(SIDE, position.halvings + (position.kind == "reduction"))
        macs += param.size * (1 if position.kind == "head" else side * side)
    return macs


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; --quick lowers what is not given."""
    return contract.parse(contract.parser(__doc__), arguments, FULL, QUICK, {})


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write one JSON object."""
    options = parse(arguments)
    job = make_job(options)
    if options.memory:
        who = options.memory
        contract.print_memory(engine(job) if who == "ours" else makers_of(job)[who]())
        return
    result = measure(job)
    contract.publish(result, options, "there and back")
    for who, memory in result["memory"].items():
        own = memory["peak_mib"] - memory["peak_mib_before"]
        print(f"{who}: {memory['peak_mib']:.0f} MiB at most, of these {own:.0f} for the work")


if __name__ == "__main__":
    contract.restart_with(parse().threads)
    main()
