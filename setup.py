# SPDX-License-Identifier: MIT
"""The one build of the package; everything that is not compiled is described in pyproject.toml."""

import os
from glob import glob
from pathlib import Path

from setuptools import Extension, setup

try:
    import pybind11
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    raise SystemExit(
        f"cannot build nasfast: {error}. It is compiled against the torch it runs with: run "
        "`pip install torch numpy setuptools wheel pybind11 ninja`, "
        "then `pip install --no-build-isolation .`"
    ) from None

INCLUDE = str(Path("csrc").resolve())  # absolute, as ninja runs elsewhere
OPTIMISE = ["-O0", "-g"] if os.environ.get("DEBUG") == "1" else ["-O3", "-g0"]
COMPILE_ARGS = ["-std=c++20", "-fvisibility=hidden", "-Wall", "-Wextra", *OPTIMISE]


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


def ops_extension() -> Extension:
    """``nasfast._ops``: the torch operators and the engine behind them.

    Bound to torch's stable interface as of 2.10, so one build runs with later versions too.
    """
    folders = ("ops", "engine", "kernels/cpu", "program")
    return CppExtension(
        "nasfast._ops",
        sources=sorted(source for folder in folders for source in glob(f"csrc/{folder}/*.cpp")),
        include_dirs=[INCLUDE],
        extra_compile_args={"cxx": [*COMPILE_ARGS, "-DTORCH_TARGET_VERSION=0x020a000000000000"]},
        extra_link_args=["-pthread"],
        language="c++",
    )


setup(ext_modules=[host_extension(), ops_extension()], cmdclass={"build_ext": BuildExtension})
