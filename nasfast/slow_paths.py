# SPDX-License-Identifier: MIT
"""What is slow on this machine and why: the words of ``nasfast info`` and of the log."""

from __future__ import annotations

import functools
import logging
import os
from typing import TYPE_CHECKING

from nasfast import cuda_device, native

if TYPE_CHECKING:
    from nasfast.ops import CpuInfo

_LOG = logging.getLogger("nasfast")
_REFUSED = "the operating system refuses AMX tile state"  # said by csrc/kernels/cpu/isa.cpp
_BF16_DOT = ("avx512_bf16", "amx")  # instruction sets that multiply bfloat16
_FLOAT_KERNELS = {
    "baseline": "float32 vectors of plain x86-64, or what the compiler takes elsewhere",
    "avx2": "float32 multiply-add of AVX2",
}


def cpu_info() -> CpuInfo:
    """Return the instruction sets of the CPU engine.

    Raises:
        ValueError: If ``NASFAST_ISA`` names one that is unknown or not supported here.
        ImportError: If the engine is not built.
    """
    try:
        info: CpuInfo = native.ops().cpu_info()
        return info
    except RuntimeError as error:
        # The operator puts its place in the source before the sentence.
        reason = str(error).rpartition("instruction set")[2].removeprefix(": ").strip()
        raise ValueError(f"NASFAST_ISA: {reason}") from None


def isa_of(backend: str) -> str | None:
    """Return the instruction set that a backend computes with, or the name of its card.

    None where PyTorch chooses it.

    Raises:
        ValueError: As :func:`cpu_info`.
        ImportError: As :func:`cpu_info`.
    """
    if backend == "cuda":
        return cuda_device.name()
    return cpu_info().chosen if backend == "cpu" else None


def named(backend: str, isa: str | None) -> str:
    """Return the name of a backend with its instruction set or its card, if it has one."""
    return backend if isa is None else f"{backend} ({isa})"


def not_used(info: CpuInfo) -> dict[str, str]:
    """Return why each instruction set wider than the chosen one is not used, by name."""
    names = list(info.missing)
    wider = names[names.index(info.chosen) + 1 :]
    return {
        name: info.missing[name] or f"NASFAST_ISA asks for {info.chosen}"
        for name in reversed(wider)
    }


def kernels(info: CpuInfo) -> dict[str, str]:
    """Return what computes each precision, by precision."""
    chosen = info.chosen
    floats = _FLOAT_KERNELS.get(chosen, "float32 multiply-add of AVX-512")
    engine = named("cpu", chosen)
    return {
        "fp32": f"{engine}: {floats}; 3x3 of stride 1 by Winograd from 8 channels "
        "and a width of 8 on",
        "bf16": f"{engine}: {_bf16_kernels(chosen, floats)}",
        "fp64": "reference: plain PyTorch",
    }


def _bf16_kernels(chosen: str, floats: str) -> str:
    if chosen == "amx":
        return (
            "AMX tiles where there are 16 or a multiple of 32 input channels and a multiple of 16 "
            "output channels, dot products of AVX512_BF16 for other convolutions"
        )
    if chosen in _BF16_DOT:
        return "dot products of AVX512_BF16"
    return f"{floats}, on rounded operands"


def slow_paths(info: CpuInfo) -> dict[str, str]:
    """Return what is slow here, and why."""
    mendable = {
        name: reason
        for name, reason in not_used(info).items()
        if reason == _REFUSED or not info.missing[name]
    }
    paths = {f"without {name}": reason for name, reason in mendable.items()}
    if info.chosen not in _BF16_DOT:
        paths["bf16"] = (
            f"{info.chosen} has no bfloat16 dot product: float32 arithmetic on rounded operands"
        )
    paths["convolutions other than 1x1 and 3x3, pools other than 3x3"] = (
        "take general paths, one pixel at a time"
    )
    paths["training: gradients of maximum pools"] = "search every window again for each pixel"
    if info.chosen == "amx":
        paths["training in bf16: gradients of weights"] = "dot products of AVX512_BF16, not tiles"
    paths["nn.MixedOp of stride 2, in float64, or in evaluation with running statistics"] = (
        "plain PyTorch, one operation after another"
    )
    paths["nn.MixedOp on a card: channels or windows that a block of threads cannot hold"] = (
        "plain PyTorch, one operation after another"
    )
    paths[
        "joint supernets in fp64, with running statistics, with weights on nodes, or with a "
        "gradient of the images"
    ] = "run on the reference backend"
    paths["fp64"] = "runs on the reference backend, one lane after another on one thread"
    paths["backend reference"] = "plain PyTorch on one thread: the definition, not a fast path"
    return paths


def cuda_info() -> dict[str, str]:
    """Return what the CUDA kernels are compiled for, the card, and why it is not used, if it isn't.

    Where there are kernels, their precisions too.

    Raises:
        ImportError: As :func:`cpu_info`.
    """
    archs = native.ops().cuda_archs()
    info = {"kernels": archs or "none in this build", "card": cuda_device.card() or "none"}
    if archs:
        info["precisions"] = ", ".join(cuda_device.PRECISIONS)
    reason = cuda_device.why_not()
    return {**info, "not_used": reason} if reason else info


@functools.cache
def warn_of_reference(what: str, why: str) -> None:
    """Log once in a process that plain PyTorch runs something, and why."""
    _LOG.warning("%s: %s: plain PyTorch runs it, which is slow", what, why)


@functools.cache
def warn_of_slow_paths() -> None:
    """Log once in a process that the operating system withholds the widest instruction set.

    Who chooses one by ``NASFAST_ISA`` is told nothing.

    Raises:
        ValueError: If ``NASFAST_ISA`` names one that is unknown or not supported here.
        ImportError: If the engine is not built.
    """
    info = cpu_info()
    if info.missing.get("amx") == _REFUSED and not os.environ.get("NASFAST_ISA"):
        _LOG.warning("amx: %s; the CPU engine uses %s", _REFUSED, info.chosen)
