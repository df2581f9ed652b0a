# SPDX-License-Identifier: MIT
"""The operators' CUDA files, compiled for the emulated device: ``torch.ops.nasfast_emulated``.

They take CPU tensors. Everything of a call on a card runs but the hardware: checks of arguments,
engine, kernels.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils import cpp_extension

_ROOT = Path(__file__).resolve().parents[1]
_BUILD = _ROOT / "build" / "emulated_ops"
# What the CUDA engine needs beside its own files; none of it computes on the CPU.
_SHARED = ("checks", "mixed_schedule", "trained_spans")  # of csrc/engine
_FLAGS = [
    "-std=c++20", "-O1", "-g0", "-fvisibility=hidden", "-Wno-unknown-pragmas",
    "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DUSE_CUDA",
    "-include", str(_ROOT / "tests/csrc/emulator/torch_side.h"),
]  # fmt: skip


def _sources() -> list[Path]:
    kernels = sorted((_ROOT / "csrc/kernels/cuda").glob("*.cu"))
    sources = [_as_cpp(kernel) for kernel in kernels]
    for folder in ("csrc/engine/cuda", "csrc/program"):
        sources += sorted((_ROOT / folder).glob("*.cpp"))
    operators = sorted((_ROOT / "csrc/ops").glob("*_cuda.cpp"))
    sources += [source for source in operators if source.name != "info_cuda.cpp"]
    sources += [_ROOT / "csrc/engine" / f"{name}.cpp" for name in _SHARED]
    sources += [
        _ROOT / "tests/csrc/emulator" / f"{name}.cpp" for name in ("emulator", "fiber", "streams")
    ]
    return [*sources, _ROOT / "csrc/ops/schema.cpp"]


def _as_cpp(kernel: Path) -> Path:
    """Return a file that a C++ compiler takes the kernels from."""
    path = _BUILD / f"kernels_{kernel.stem}.cpp"
    text = f'#include "{kernel}"\n'
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)
    return path


def engine_objects() -> list[Path]:
    """Return the object files of everything but the operators."""
    operators()
    folders = ("csrc/engine", "csrc/kernels", "csrc/program", "tests/csrc", "build")
    return [
        _BUILD / f"{source.stem}.o"
        for source in _sources()
        if str(source.relative_to(_ROOT)).startswith(folders)
    ]


@functools.cache
def operators() -> Any:
    """Compile what has changed, load the library and return its operators."""
    _BUILD.mkdir(parents=True, exist_ok=True)
    own = str(Path(sys.executable).parent)  # of the environment's ninja
    if own not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = own + os.pathsep + os.environ["PATH"]
    os.environ.setdefault("MAX_JOBS", "2")
    library = cpp_extension.load(
        name="nasfast_emulated",
        sources=[str(source) for source in _sources()],
        extra_cflags=_FLAGS,
        extra_include_paths=[str(_ROOT / "tests/csrc/emulator"), str(_ROOT / "csrc")],
        build_directory=str(_BUILD),
        is_python_module=False,
    )
    assert library is None or library
    return torch.ops.nasfast_emulated
