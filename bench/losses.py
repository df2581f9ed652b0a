# SPDX-License-Identifier: MIT
"""What the scripts that measure scoring share: rivals, their losses, and whether results are equal.

A network is a function that takes an architecture and returns the loss of each image.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from contract import BF16_TIMES, FP32_SHARE, FP32_TIMES
from nasfast import Architecture
from pairs import spread

Losses = npt.NDArray[np.float64]  # [archs, images]
Network = Callable[[Architecture], Tensor]

# A baseline this far off (root mean square, median over lanes) computes something else.
BASELINE_TOLERANCE = {"fp32": 1e-3, "tf32": 2.5e-2, "bf16": 0.1}


@dataclass(frozen=True)
class Rival:
    """What is timed against ours."""

    network: Network
    threads: int

    def __call__(self, arch: Architecture) -> Tensor:
        torch.set_num_threads(self.threads)
        return self.network(arch)


def with_threads(networks: Mapping[str, Network], threads: int) -> dict[str, Rival]:
    """Return each network with one thread and with all, by name."""
    return {
        f"{name}, {count} thread{'s' if count > 1 else ''}": Rival(network, count)
        for name, network in networks.items()
        for count in sorted({1, threads})
    }


def losses_of(network: Network, archs: Sequence[Architecture]) -> Losses:
    """Return what a network or a rival computes."""
    return np.stack([network(arch).double().cpu().numpy() for arch in archs])


def rms(losses: Losses, truth: Losses) -> Losses:
    """Root mean square over images of the error of each lane."""
    return np.sqrt(((losses - truth) ** 2).mean(axis=-1))


# Equality, by the tolerances of contract.py. float32: the largest error of a lane, which may be the
# share of its largest loss. bfloat16 and tf32: the root mean square over its images.


def check(
    mine: Losses, torchs: Losses, truth: Losses, precision: str, against: str
) -> dict[str, object]:
    """Compare losses with float64 lane by lane, and that with what PyTorch's own errors are.

    ``against`` says in words what ``truth`` is.

    Returns:
        The field ``max_error``.

    Raises:
        SystemExit: If the results are off by more than the tolerance.
    """
    if not np.isfinite(mine).all():
        raise SystemExit("ours: a loss is not finite")
    largest, theirs = np.abs(mine - truth).max(axis=1), np.abs(torchs - truth).max(axis=1)
    floor = FP32_SHARE * np.maximum(1, np.abs(truth).max(axis=1))
    found = {
        "value": float(largest.max()),
        "against": against,
        "pytorch": float(theirs.max()),
        "lanes": len(mine),
    }
    if precision == "fp32":
        allowed = np.maximum(FP32_TIMES * theirs, floor)
        lane = int((largest / allowed).argmax())
        if largest[lane] > allowed[lane]:
            raise SystemExit(
                f"ours: lane {lane} is {largest[lane]:.3g} off, allowed {allowed[lane]:.3g}"
            )
        return found | {"tolerance": "4 x PyTorch's fp32 on the lane, or 1e-5 of its largest loss"}
    # What is exact on both sides, an architecture that carries nothing, counts as 1.
    times = (rms(mine, truth) + floor) / (rms(torchs, truth) + floor)
    median = float(np.median(times))
    rounding = "bf16 autocast" if precision == "bf16" else precision
    if median > BF16_TIMES:
        raise SystemExit(f"ours: {median:.3g} times the error of PyTorch's {rounding} (median)")
    return found | {
        "tolerance": f"root mean square at most {BF16_TIMES} x PyTorch's {rounding}, in the "
        "median over lanes",
        "times_autocast" if precision == "bf16" else "times_pytorch": spread(times.tolist()),
        "lanes_above": int((times > BF16_TIMES).sum()),
    }


def check_rivals(
    rivals: Mapping[str, Rival], archs: Sequence[Architecture], truth: Losses,
    tolerance: Mapping[str, float] = BASELINE_TOLERANCE,
) -> None:  # fmt: skip
    """Refuse to be compared with something else.

    Raises:
        SystemExit: If a baseline is off by more than its tolerance.
    """
    for name, rival in rivals.items():
        error = float(np.median(rms(losses_of(rival, archs), truth)))
        if not error <= tolerance[next((p for p in ("bf16", "tf32") if p in name), "fp32")]:
            raise SystemExit(f"baseline {name}: {error:.3g} off: it computes something else")
