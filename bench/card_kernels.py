# SPDX-License-Identifier: MIT
"""Kernels of the CUDA engine, one by one, on many lanes: time, TFLOP/s, GB/s, share of a ceiling.

The least time of a kernel is that of its arithmetic at the rate of a large matrix product, or that
of its memory traffic (every value read and written once) at the rate of a large copy, whichever
is longer; both rates are measured in the same run. Before a kernel is timed its result is compared
with PyTorch in float64. Beside it runs what PyTorch has for the same sizes: one convolution with
one weight for all lanes, without the sums, batch statistics and ReLU that ours includes.
"""

import argparse
import ctypes
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import contract
from card_nb201 import card_s, ceilings
from environment import environment
from kernel_lanes import Case, Lanes, cuda_library, lanes_of
from pairs import seconds

FULL, QUICK = {"repeats": 15}, {"repeats": 3}
QUICK_LANES = 16
WARMUP, RUNS = 3, 4  # runs before, and in, a timing
EPS = 1e-5
# Relative error (root of the sum of squares) to float64.
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2, "tf32": 2e-3}

STAGES = ((16, 32), (32, 16), (64, 8))  # channels, side
CASES = [
    *(Case("forward", "convolution", 3, *stage) for stage in STAGES),
    *(Case("forward", "convolution", 1, *stage) for stage in STAGES),
    *(Case("forward", "convolution", 3, *stage, stride=2) for stage in STAGES[:2]),
    *(Case(kind, "convolution", 3, *stage)
      for kind in ("input gradient", "weight gradient") for stage in STAGES),
    *(Case("forward", "average pool", 3, *stage) for stage in STAGES),
    Case("forward", "maximum pool", 3, *STAGES[0]),
    *(Case("forward", "sum", 1, *stage, terms=3) for stage in STAGES),
]  # fmt: skip


def truth_of(lanes: Lanes, lane: int) -> Tensor:
    """Compute with PyTorch in float64, from the numbers in its memory, what a lane should.

    Gradients are of the sum of the reader's gradient times the result behind its batch norm.
    """
    case = lanes.case
    affine = [lanes.affine(lane, term).double() for term in range(case.terms)]
    terms = [lanes.value("term", lane, term).double() for term in range(case.terms)]
    value = sum((x * a[0] + a[1] for x, a in zip(terms, affine, strict=True)), torch.zeros(()))
    value = value.permute(0, 3, 1, 2).contiguous().requires_grad_()
    weight = lanes.weights[lane].double().requires_grad_()
    if case.operation == "convolution":
        result = F.conv2d(F.relu(value), weight, stride=case.stride, padding=case.kernel // 2)
    elif case.operation == "average pool":
        result = F.avg_pool2d(value, case.kernel, 1, case.kernel // 2, count_include_pad=False)
    elif case.operation == "maximum pool":
        result = F.max_pool2d(value, case.kernel, 1, case.kernel // 2)
    else:
        result = value
    if case.timed == "forward":
        return result.detach()
    gradient = lanes.value("reader gradient", lane).double().permute(0, 3, 1, 2)
    normalised = F.batch_norm(result, None, None, training=True, eps=EPS)
    of = value if case.timed == "input gradient" else weight
    return torch.autograd.grad((normalised * gradient).sum(), of)[0]


def prepare(lanes: Lanes) -> None:
    """Run what comes before the kernel that is timed."""
    if lanes.case.timed == "forward":
        return
    lanes.run("forward")
    lanes.run("norms")
    for lane in range(lanes.case.lanes):  # as the reader's own way back leaves them
        gradient = lanes.value("reader gradient", lane).double()
        result = lanes.value("result", lane).double()
        centred = result - result.mean((0, 1, 2))
        lanes.totals(lane)[0] = gradient.sum((0, 1, 2))
        lanes.totals(lane)[1] = (gradient * centred).sum((0, 1, 2))


def check(lanes: Lanes, lane: int) -> float:
    """Return how far a lane's result is off float64, relative.

    Raises:
        SystemExit: If that is more than the tolerance.
    """
    if lanes.case.timed == "weight gradient":
        got = lanes.weight_gradients[lane]
    else:
        what = "result" if lanes.case.timed == "forward" else "gradient"
        got = lanes.value(what, lane).permute(0, 3, 1, 2)
    expected = truth_of(lanes, lane)
    error = float((got.double() - expected).norm() / expected.norm())
    if not error <= TOLERANCE[lanes.precision]:  # NaN is wrong too
        raise SystemExit(
            f"ours: {lanes.case.name}, {lanes.precision}, lane {lane}: {error:.3g} off float64, "
            f"allowed {TOLERANCE[lanes.precision]:g}"
        )
    return error


def median_s(work: Callable[[], object], repeats: int, device: str) -> float:
    """Time runs back to back; return the median for one, in seconds."""
    timed = card_s if device == "cuda" else seconds

    def runs(count: int) -> None:
        for _ in range(count):
            work()

    runs(WARMUP)
    return statistics.median(timed(lambda: runs(RUNS)) / RUNS for _ in range(repeats))


def of_pytorch(lanes: Lanes) -> Callable[[], object] | None:
    """Return PyTorch's own operation on as many images, channels-last, with one weight for all."""
    case, options = lanes.case, {"device": lanes.device, "dtype": lanes.dtype}
    if case.operation == "sum":
        return None

    def images(channels: int, side: int) -> Tensor:
        x = torch.randn((case.lanes * case.images, channels, side, side), **options)
        return x.contiguous(memory_format=torch.channels_last)

    x, weight = images(case.channels, case.side), torch.randn(case.weight_shape, **options)
    weight = weight.contiguous(memory_format=torch.channels_last)
    padding = case.kernel // 2
    if case.operation == "average pool":
        return lambda: F.avg_pool2d(x, case.kernel, 1, padding, count_include_pad=False)
    if case.operation == "maximum pool":
        return lambda: F.max_pool2d(x, case.kernel, 1, padding)
    if case.timed == "forward":
        return lambda: F.conv2d(x, weight, stride=case.stride, padding=padding)
    gradient = images(case.out_channels, case.out_side)
    wanted = [case.timed == "input gradient", case.timed == "weight gradient", False]
    return lambda: torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [case.stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1,
        wanted,
    )  # fmt: skip


def measure(
    library: ctypes.CDLL, case: Case, precision: str, device: str, repeats: int,
    peak: dict[str, float],
) -> dict[str, Any]:  # fmt: skip
    """Check a kernel, then time it."""
    with lanes_of(library, case, precision, device) as lanes:
        prepare(lanes)
        lanes.run(case.timed)
        error = max(check(lanes, lane) for lane in {0, case.lanes - 1})
        ours_s = median_s(lambda: lanes.run(case.timed), repeats, device)
        others = of_pytorch(lanes)
        pytorch_s = median_s(others, repeats, device) if others is not None else None
        flop, traffic = case.flop(), case.num_bytes(lanes.dtype.itemsize)
    arithmetic_s = flop / peak["matmul_gflops"] / 1e9
    memory_s = traffic / peak["copy_gb_s"] / 1e9
    return {
        "kernel": case.name,
        "case": asdict(case),
        "ours_s": ours_s,
        "pytorch_s": pytorch_s,
        "flop": flop,
        "bytes": traffic,
        "tflops": flop / ours_s / 1e12,
        "gb_s": traffic / ours_s / 1e9,
        "bound": "arithmetic" if arithmetic_s > memory_s else "memory",
        "share_of_ceiling": max(arithmetic_s, memory_s) / ours_s,
        "max_error": error,
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; --quick lowers what is not given."""
    parser = contract.parser(__doc__, devices=("cuda",), precisions=("bf16", "fp32", "tf32"))
    parser.set_defaults(device="cuda")
    return contract.parse(parser, arguments, FULL, QUICK, {})


def measure_all(
    library: ctypes.CDLL, options: argparse.Namespace, peak: dict[str, float]
) -> dict[str, Any]:
    """Measure every kernel; a wrong result has no time."""
    cases = [replace(case, lanes=QUICK_LANES) if options.quick else case for case in CASES]
    return {
        "name": "card_kernels",
        "device": options.device,
        "precision": options.precision,
        "quick": options.quick,
        "kernels": [
            measure(library, case, options.precision, options.device, options.repeats, peak)
            for case in cases
        ],
        "max_error_against": "PyTorch in float64, relative, of the first and the last lane",
        "tolerance": TOLERANCE[options.precision],
        "peak": peak,
        "repeats": options.repeats,
        "environment": environment(options.threads, options.device),
    }


def publish(found: dict[str, Any], options: argparse.Namespace) -> None:
    """Write the JSON object, and print a short table."""
    contract.write(found, options)
    device = found["environment"]["gpu"] or found["environment"]["cpu"]
    peak = found["peak"]
    print(f"{device}, {found['precision']}: matmul {peak['matmul_gflops'] / 1e3:.1f} TFLOP/s, "
          f"copy {peak['copy_gb_s']:.0f} GB/s")  # fmt: skip
    for row in found["kernels"]:
        others = f"{row['pytorch_s'] / row['ours_s']:5.2f} x" if row["pytorch_s"] else "      -"
        print(f"{row['kernel']:<58} {row['ours_s'] * 1e3:8.3f} ms {row['tflops']:7.1f} TFLOP/s "
              f"{row['gb_s']:6.0f} GB/s {row['share_of_ceiling']:4.0%} of {row['bound']:<10} "
              f"PyTorch {others}")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write one JSON object, print a short table."""
    options = parse(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("--device cuda: wanted a CUDA device, torch sees none")
    is_tf32 = options.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = is_tf32
    torch.backends.cudnn.benchmark = True  # its best kernel for each size
    publish(measure_all(cuda_library(), options, ceilings(options.precision)), options)


if __name__ == "__main__":
    main()
