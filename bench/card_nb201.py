# SPDX-License-Identifier: MIT
"""The card's part of space_nb201.py: nasfast on a CUDA device, and PyTorch on the same one.

PyTorch runs one architecture after another: launch by launch, each as a CUDA graph that was
recorded before, and a few by torch.compile. TF32 is on in precision tf32 alone: fp32 means fp32 on
both sides.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

import contract
from eager_nb201 import EagerNet
from environment import environment
from losses import Losses, check, check_rivals, losses_of, rms
from nasfast import Architecture, Merge, Supernet, compile_archs, evaluate
from nasfast.data import Batch
from nasfast.evaluate import run
from pairs import peak_gflops, ratio, timed_pair

WORDS = (
    "as on the CPU (`words` of space_nb201.py), all on one card: ours is a whole call of "
    "nasfast.evaluate with images and weights brought to the card and losses brought back; "
    "PyTorch's tensors are there already, and its losses stay there"
)
MATMUL, COPY_BYTES = 8192, 2**30


def ours(supernet: Supernet, archs: Sequence[Architecture], batch: Batch, precision: str) -> Losses:
    """Score on the card, one lane for each architecture."""
    scores = evaluate(
        supernet, archs, [batch], bn="batch", precision=precision, merge=Merge.NONE, backend="cuda"
    )
    return scores.lane_loss[scores.lane_of_arch]


def rivals_of(supernet: Supernet, batch: Batch, precision: str) -> dict[str, EagerNet]:
    """Return PyTorch's networks by name; in bfloat16 the float32 ones are among them."""
    single = "tf32" if precision == "tf32" else "fp32"
    return {
        f"PyTorch {'bf16 autocast' if bf16 else single} {layout}": EagerNet(
            supernet, batch, bf16=bf16, channels_last=layout == "channels_last", device="cuda"
        )
        for bf16 in ((False, True) if precision == "bf16" else (False,))
        for layout in ("contiguous", "channels_last")
    }


def eager_loop(net: EagerNet, archs: Sequence[Architecture]) -> Callable[[], None]:
    def loop() -> None:
        for arch in archs:
            net(arch)
        torch.cuda.synchronize()

    loop()
    return loop


def graph_loop(net: EagerNet, archs: Sequence[Architecture]) -> Callable[[], None]:
    """Record a CUDA graph of each architecture; return their replay, one after another."""
    pool, graphs = torch.cuda.graph_pool_handle(), []
    for arch in archs:
        expected = net(arch)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            losses = net(arch)
        graph.replay()
        torch.cuda.synchronize()
        wanted = expected.double().cpu().numpy()
        off = rms(losses.double().cpu().numpy(), wanted) / max(1.0, np.abs(wanted).max())
        if not off <= 1e-2:
            raise SystemExit(f"baseline CUDA graph of {arch}: {off:.3g} off")
        graphs.append(graph)

    def loop() -> None:
        for graph in graphs:
            graph.replay()
        torch.cuda.synchronize()

    loop()
    return loop


def compile_loop(net: EagerNet, archs: Sequence[Architecture]) -> tuple[Callable[[], None], float]:
    """Compile a few architectures; return their loop and what compiling one took."""
    begin = time.perf_counter()
    torch.compiler.reset()
    # The architecture is a constant of each.
    runs = [
        torch.compile(lambda images, a=arch: net.losses(a.op_indices, images)) for arch in archs
    ]

    def loop() -> None:
        with net.autocast():
            for compiled in runs:
                compiled(net.images)
        torch.cuda.synchronize()

    loop()
    return loop, (time.perf_counter() - begin) / len(archs)


def time_card(
    supernet: Supernet, archs: Sequence[Architecture], batch: Batch, options: argparse.Namespace
) -> dict[str, Any]:
    """Time ours and PyTorch in pairs; seconds are for one architecture."""
    nets = rivals_of(supernet, batch, options.precision)
    rivals = {f"{name}, eager": eager_loop(net, archs) for name, net in nets.items()}
    rivals |= {f"{name}, CUDA graph": graph_loop(net, archs) for name, net in nets.items()}

    def mine() -> Losses:
        return ours(supernet, archs, batch, options.precision)

    mine()
    count = len(archs)
    found = contract.time_rivals(mine, rivals, options.repeats, our_items=count, their_items=count)
    if options.compiled:
        few = archs[: options.compiled]
        loop, compile_s = compile_loop(nets[found["best_pytorch"].partition(", ")[0]], few)
        together = [
            timed_pair(lambda: ours(supernet, few, batch, options.precision), loop, k)
            for k in range(options.repeats)
        ]
        found["torch_compile"] = {
            "archs": len(few),
            "compile_s": compile_s,
            "compiled_s": statistics.median(s for _, s in together) / len(few),
            "ratio": ratio(together),
        }
    return found


def whole_space(supernet: Supernet, batch: Batch, precision: str, quick: bool) -> dict[str, float]:
    """Time every architecture of the space, or the first 500, with merging."""
    begin = time.perf_counter()
    archs = supernet.config.spec.enumerate()[: 500 if quick else None]
    program = compile_archs(supernet, archs)
    lowered_s = time.perf_counter() - begin
    begin, computing_s, macs = time.perf_counter(), 0.0, 0
    for chunk in run(program, [supernet], [[batch]], precision=precision, backend="cuda"):
        computing_s += chunk.elapsed_s
        macs += chunk.macs
    return {
        "archs": len(archs),
        "lanes": program.num_lanes,
        "lowering_s": lowered_s,
        "run_s": time.perf_counter() - begin,
        "computing_s": computing_s,
        "gflops": 2e-9 * macs / computing_s,
    }


def ceilings(precision: str) -> dict[str, float]:
    """Measure what the card does at best: a large matrix product, and copying."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(MATMUL, MATMUL, device="cuda", dtype=dtype) for _ in range(2))
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return {
        "matmul_gflops": 2e-9 * MATMUL**3 / _best_s(lambda: torch.matmul(a, b)),
        "copy_gb_s": 2e-9 * COPY_BYTES / _best_s(lambda: target.copy_(source)),
    }


def peak_of(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what a device, a card or the CPU, does at best."""
    if options.device == "cuda":
        best = ceilings(options.precision)
        return {"probe": "matmul", "gflops": best["matmul_gflops"], **best}
    return peak_gflops(options.precision, options.threads, options.quick)


def card_s(work: Callable[[], object]) -> float:
    """Time one run by the card's own clock."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def _best_s(work: Callable[[], object]) -> float:
    return min(card_s(work) for _ in range(10))


def measure_card(
    supernet: Supernet, archs: Sequence[Architecture], checked: Sequence[Architecture],
    truth: Losses, batch: Batch, options: argparse.Namespace, work: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Check, then time; ``truth`` is the loss of those that are checked, in float64."""
    is_tf32 = options.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = is_tf32
    torch.cuda.reset_peak_memory_stats()
    nets = rivals_of(supernet, batch, options.precision)
    bf16 = options.precision == "bf16"
    kind = "bf16 autocast channels_last" if bf16 else f"{options.precision} contiguous"
    max_error = check(
        ours(supernet, checked, batch, options.precision),
        losses_of(nets[f"PyTorch {kind}"], checked), truth, options.precision,
        "loss of each image in float64 (backend 'reference')",
    )  # fmt: skip
    check_rivals(nets, checked, truth)
    twice = [ours(supernet, checked, batch, options.precision) for _ in range(2)]
    if not np.array_equal(*twice):
        raise SystemExit("ours: two runs differ")
    best = ceilings(options.precision)
    found = time_card(supernet, archs, batch, options)
    gflops = 1e-9 * work["flop_run_by_ours"] / (found["ours_s"] * len(archs))
    return {
        "name": "space_nb201",
        "device": "cuda",
        "precision": options.precision,
        "quick": options.quick,
        "work": {"words": WORDS, **work},
        **found,
        "whole_space": whole_space(supernet, batch, options.precision, options.quick),
        "max_error": max_error,
        "peak_mib": torch.cuda.max_memory_reserved() / 2**20,
        "gflops": gflops,
        "peak": best,
        "share_of_peak": gflops / best["matmul_gflops"],
        "environment": environment(options.threads, "cuda"),
    }


def publish_card(found: dict[str, Any], options: argparse.Namespace) -> None:
    """Write the JSON object, and print a short table."""
    contract.write(found, options)
    space, peak = found["whole_space"], found["peak"]
    rows = [
        (f"ours, {found['work']['archs']} architectures unmerged", found["ours_s"], ""),
        *(
            (name, found["baselines"][name], f"{found[f'ratio_vs_{kind}']['median']:.1f} x ours")
            for kind in ("eager_pytorch", "best_pytorch")
            for name in [found[kind]]
        ),
        (f"ours, {space['archs']} architectures merged", space["run_s"] / space["archs"],
         f"{space['run_s']:.2f} s, {space['gflops']:.0f} GFLOP/s"),
    ]  # fmt: skip
    print(f"{found['environment']['gpu']}, {found['precision']}: matmul "
          f"{peak['matmul_gflops']:.0f} GFLOP/s, copy {peak['copy_gb_s']:.0f} GB/s")  # fmt: skip
    for name, seconds, note in rows:
        print(f"{name:<48} {seconds * 1e3:9.3f} ms/arch  {note}")
