# SPDX-License-Identifier: MIT
"""The CUDA device that scores, or what there is in place of one."""

from __future__ import annotations

import functools
import logging
import re
import warnings

import torch

from nasfast import native

_LOG = logging.getLogger("nasfast")
PRECISIONS = ("fp32", "tf32", "bf16")
NO_KERNELS = "this build of nasfast has no CUDA kernels (build it with WITH_CUDA=1)"
_LEAST = (8, 0)  # compute capability that the kernels are compiled for


def has_kernels() -> bool:
    """Return whether this build has the CUDA kernels; not if it has no operators at all."""
    try:
        native.ops()
    except ImportError:
        return False
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key("nasfast::run_program", "CUDA"))


def why_no_card() -> str:
    """Return why no card can be used; empty where there is one."""
    with warnings.catch_warnings(record=True) as said:  # such as of a driver that is too old
        warnings.simplefilter("always")
        is_there = torch.cuda.is_available()
    if not is_there:
        reasons = "; ".join(" ".join(str(warning.message).split()) for warning in said)
        return "torch sees no CUDA device" + (f" ({reasons:.300})" if reasons else "")
    major, minor = torch.cuda.get_device_capability()
    if (major, minor) < _LEAST:
        return (
            f"{name()} has compute capability {major}.{minor}, the kernels need "
            f"{_LEAST[0]}.{_LEAST[1]} or later"
        )
    return ""


def why_not() -> str:
    """Return what is missing for scoring on a card, kernels or card; empty where nothing is."""
    if not has_kernels():
        return NO_KERNELS
    return why_no_card() or _why_no_code()


def _why_no_code() -> str:
    archs = native.ops().cuda_archs() or ""
    capability = torch.cuda.get_device_capability()
    if runs_on(archs, capability):
        return ""
    return f"the kernels are compiled for {archs}, which {card()} does not run"


def runs_on(archs: str, capability: tuple[int, int]) -> bool:
    """Return whether a card runs what is compiled for a list of architectures.

    Machine code runs on cards of the same major version and no smaller minor one, PTX on all later
    cards. Of names (such as ``Hopper``) this is taken for granted.

    Args:
        archs: As in ``TORCH_CUDA_ARCH_LIST``: ``"8.0;9.0+PTX"``.
        capability: Compute capability of the card.
    """
    for arch in re.split("[; ]+", archs):
        found = re.fullmatch(r"(\d+)\.(\d+)(\+PTX)?", arch)
        if found is None:
            return True
        least = int(found[1]), int(found[2])
        if least <= capability and (found[3] or least[0] == capability[0]):
            return True
    return False


def require() -> None:
    """Refuse to go on where no card can score.

    Raises:
        ValueError: With what is missing.
        ImportError: If the operators are not built at all.
    """
    native.ops()
    missing = why_not()
    if missing:
        raise ValueError(f"backend: 'cuda' cannot be used here: {missing}")


def name() -> str:
    """Return the name of the card."""
    return str(torch.cuda.get_device_name())


def card() -> str:
    """Return name and compute capability of the card, empty text where torch sees none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not torch.cuda.is_available():
            return ""
    major, minor = torch.cuda.get_device_capability()
    return f"{name()} (compute capability {major}.{minor})"


@functools.cache
def say_card() -> None:
    """Log once in a process that ``"auto"`` stands for the card."""
    _LOG.info("backend: cuda (%s)", name())


@functools.cache
def say_cpu(why: str) -> None:
    """Log once in a process that ``"auto"`` stands for the CPU although there are CUDA kernels."""
    _LOG.warning("backend: cpu, as %s", why)
