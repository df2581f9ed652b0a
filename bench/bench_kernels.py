# SPDX-License-Identifier: MIT
"""The convolution kernels of NAS-Bench-201, one by one, ours against eager PyTorch.

``OMP_NUM_THREADS=1 python -m pytest bench/bench_kernels.py``. One thread: two that spin make short
timings multiples of a scheduler's tick. Before anything is timed the result is compared with
float64: at most 4 times the error of eager in float32, 1.2 times in bfloat16.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from environment import environment

ops = pytest.importorskip("nasfast.ops", reason="needs nasfast's operators: make install")

BATCH, EPS = 64, 1e-5
SHAPES = ((16, 32), (32, 16), (64, 8))  # channels, side
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TIMES = {"fp32": 4.0, "bf16": 1.2}  # times eager's error
FLOOR = 1e-5  # of the largest value, where eager happens to be exact


@dataclass(frozen=True)
class Case:
    """One convolution."""

    kernel: int
    channels: int
    side: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.kernel}x{self.kernel} C={self.channels} {self.side}x{self.side} {self.dtype}"

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Features, channels-last, and weight."""
        generator = torch.Generator().manual_seed(0)
        shape = (BATCH, self.channels, self.side, self.side)
        features = torch.randn(shape, generator=generator)
        weight = torch.randn((self.channels, self.channels, self.kernel, self.kernel),
                             generator=generator)  # fmt: skip
        weight /= self.channels**0.5 * self.kernel
        dtype, layout = DTYPES[self.dtype], torch.channels_last
        return features.to(dtype, memory_format=layout), weight.to(dtype, memory_format=layout)

    @property
    def flop(self) -> int:
        """Two for each multiply-accumulate; those on the padding are counted too."""
        return 2 * BATCH * self.side**2 * self.channels**2 * self.kernel**2

    @property
    def num_bytes(self) -> int:
        """Features read once and written once, and the weight."""
        elements = 2 * BATCH * self.channels * self.side**2 + (self.channels * self.kernel) ** 2
        return elements * DTYPES[self.dtype].itemsize


def eager(features: Tensor, weight: Tensor) -> Tensor:
    y = F.conv2d(F.relu(features), weight, padding=weight.shape[-1] // 2)
    return F.batch_norm(y, None, None, training=True, eps=EPS)


def ours(features: Tensor, weight: Tensor) -> Tensor:
    return ops.relu_conv_bn(features, weight, stride=1, eps=EPS)


IMPLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"eager": eager, "ours": ours}
CASES = [
    Case(kernel, channels, side, dtype)
    for dtype in DTYPES
    for kernel in (3, 1)
    for channels, side in SHAPES
]


def check(result: Tensor, features: Tensor, weight: Tensor, dtype: str) -> None:
    """Compare with the same inputs in float64."""
    exact = eager(features.double(), weight.double())
    allowed = TIMES[dtype] * rms(eager(features, weight).double() - exact)
    assert result.dtype == features.dtype and result.shape == exact.shape
    assert rms(result.double() - exact) <= max(allowed, FLOOR * float(exact.abs().max()))


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_relu_conv_bn(benchmark, case, impl):
    features, weight = case.inputs()
    with torch.inference_mode():
        check(IMPLS[impl](features, weight), features, weight, case.dtype)
        benchmark.group = f"relu_conv_bn {case}"
        benchmark.extra_info |= {"flop": case.flop, "bytes": case.num_bytes, "archs": 1}
        benchmark.extra_info["environment"] = environment(threads=1)
        benchmark.pedantic(IMPLS[impl], (features, weight), rounds=50, warmup_rounds=5)
    if benchmark.stats:  # none with --benchmark-disable
        median_s = benchmark.stats.stats.median
        benchmark.extra_info |= {
            "gflop_per_s": case.flop / median_s / 1e9,
            "gbyte_per_s": case.num_bytes / median_s / 1e9,
        }
