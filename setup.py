# SPDX-License-Identifier: MIT
"""The one build of the package; everything that is not compiled is described in pyproject.toml."""

import os
from glob import glob
from pathlib import Path

from setuptools import Extension, setup

try:
    import pybind11
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
except ImportError as error:
    raise SystemExit(
        f"cannot build nasfast: {error}. It is compiled against the torch it runs with: run "
        "`pip install torch numpy setuptools wheel pybind11 ninja`, "
        "then `pip install --no-build-isolation .`"
    ) from None

INCLUDE = str(Path("csrc").resolve())  # absolute, as ninja runs elsewhere
DEBUG = os.environ.get("DEBUG") == "1"
OPTIMISE = ["-O0", "-g"] if DEBUG else ["-O3", "-g0"]
COMPILE_ARGS = ["-std=c++20", "-fvisibility=hidden", "-Wall", "-Wextra", *OPTIMISE]
OPS_ARGS = [*COMPILE_ARGS, "-DTORCH_TARGET_VERSION=0x020a000000000000"]
NVCC_ARGS = ["-std=c++20", "-lineinfo", "-Xcompiler", "-fvisibility=hidden,-Wall,-Wextra"]
NVCC_ARGS += ["-O0", "-g"] if DEBUG else ["-O3"]
CUDA_ARCHS = "8.0;9.0+PTX"  # unless TORCH_CUDA_ARCH_LIST names others


def with_cuda(wanted: str, cuda_home: str | None, torch_cuda: str | None) -> bool:
    """Whether CUDA kernels are built: ``auto`` builds them where torch and a toolkit have CUDA.

    Cards play no part: a machine without one can build for those that have one.
    """
    if wanted not in ("auto", "0", "1"):
        raise SystemExit(f"WITH_CUDA: wanted auto, 0 or 1, got {wanted!r}")
    missing = ""
    if torch_cuda is None:
        missing = f"the installed torch {torch.__version__} is built without CUDA"
    elif cuda_home is None:
        missing = "there is no CUDA toolkit: neither is nvcc on PATH nor CUDA_HOME set"
    if wanted == "1" and missing:
        raise SystemExit(f"WITH_CUDA=1: {missing}")
    return wanted != "0" and not missing


def host_extension() -> Extension:
    """``nasfast._host``: pybind11 only, neither linked to torch nor compiled with its headers."""
    return Extension(
        "nasfast._host",
        sources=sorted(glob("csrc/host/*.cpp")),
        include_dirs=[INCLUDE, pybind11.get_include()],
        extra_compile_args=COMPILE_ARGS,
        extra_link_args=["-pthread"],
        language="c++",
    )


def ops_extension(cuda: bool) -> Extension:
    """``nasfast._ops``: the torch operators and the engines behind them.

    Bound to torch's stable interface as of 2.10, so one build runs with later versions too.
    """
    folders = ("ops", "engine", "kernels/cpu", "program")
    sources = {source for folder in folders for source in glob(f"csrc/{folder}/*.cpp")}
    compile_args = {"cxx": OPS_ARGS}
    if cuda:
        sources.update(glob("csrc/engine/cuda/*.cpp"), glob("csrc/kernels/cuda/*.cu"))
        # torch turns the list into flags of nvcc; without one it would ask the cards that it sees.
        archs = os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHS
        os.environ["TORCH_CUDA_ARCH_LIST"] = archs
        defines = ["-DUSE_CUDA", f'-DNASFAST_CUDA_ARCHS="{archs}"']
        compile_args = {"cxx": [*OPS_ARGS, *defines], "nvcc": NVCC_ARGS}
    else:
        sources.difference_update(glob("csrc/ops/*_cuda.cpp"))
    return (CUDAExtension if cuda else CppExtension)(
        "nasfast._ops",
        sources=sorted(sources),
        include_dirs=[INCLUDE],
        extra_compile_args=compile_args,
        extra_link_args=["-pthread"],
        language="c++",
    )


setup(
    ext_modules=[
        host_extension(),
        ops_extension(
            with_cuda(os.environ.get("WITH_CUDA", "auto"), CUDA_HOME, torch.version.cuda)
        ),
    ],
    cmdclass={"build_ext": BuildExtension},
)
