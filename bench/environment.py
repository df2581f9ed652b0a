# SPDX-License-Identifier: MIT
"""Where a number was measured: every result file of bench/ carries this."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

REPOSITORY = Path(__file__).parents[1]
# The instruction sets that a kernel may choose by, in the words of /proc/cpuinfo.
ISA_FLAGS = "fma avx2 avx512f avx512bw avx512vl avx512_vnni avx512_bf16 amx_tile amx_bf16 amx_int8"


def environment(threads: int, device: str = "cpu") -> dict[str, object]:
    """Describe the machine, the versions and the state of the sources.

    ``threads`` is the largest number of threads that the measurement used.
    """
    cpu = cpu_info()
    flags = set(cpu.get("flags", "").split())
    return {
        "cpu": cpu.get("model name", platform.processor() or platform.machine()),
        "isa": [flag for flag in ISA_FLAGS.split() if flag in flags],
        "cpus_usable": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "threads": threads,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "system": f"{platform.system()} {platform.release()}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            **{name: version_of(name) for name in ("numpy", "nasfast")},
        },
        "commit": git("rev-parse", "--verify", "--quiet", "HEAD"),
        "dirty": bool(git("status", "--porcelain")),
    }


def cpu_info() -> dict[str, str]:
    """The first processor's fields of /proc/cpuinfo; empty where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    lines = text.partition("\n\n")[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git(*arguments: str) -> str | None:
    """What git says, or nothing outside a repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
