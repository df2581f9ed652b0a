# SPDX-License-Identifier: MIT
"""The package builds from a clean copy of the sources, and says what to do where it cannot."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools
import torch
from torch.utils import cpp_extension

REPOSITORY = Path(__file__).parents[1]
NOT_SOURCES = (".*", "__pycache__", "bench", "build", "dist", "runs", "tests", "*.egg-info", "*.so")
INSTALLED = (".py", ".pyi", ".json", ".html.j2", ".csv.gz", "py.typed")


@pytest.fixture
def sources(tmp_path):
    return shutil.copytree(
        REPOSITORY, tmp_path / "sources", ignore=shutil.ignore_patterns(*NOT_SOURCES)
    )


@pytest.mark.slow
@pytest.mark.timeout(900)  # it compiles everything, on cores that other tests use
def test_install_from_a_clean_copy(sources, tmp_path):
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps"]
    done = subprocess.run(
        [*pip, "--no-build-isolation", "--target", str(site), str(sources)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    installed = subprocess.run(
        [sys.executable, "-c", "import nasfast._host; print(nasfast._host.__file__)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert installed.returncode == 0, installed.stderr
    assert Path(installed.stdout.strip()).parent == site / "nasfast"
    wanted = [path for path in sources.glob("nasfast/**/*") if path.name.endswith(INSTALLED)]
    missing = [path for path in wanted if not (site / path.relative_to(sources)).is_file()]
    assert missing == []


def test_isolated_build_says_what_to_do(sources):
    """An isolated build has no torch; it is hidden here, as a real one needs a package index."""
    code = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = ['setup.py', 'egg_info'];"
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=sources, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    (message,) = done.stderr.splitlines()
    assert message.startswith("cannot build nasfast")
    assert "torch" in message
    assert "pip install --no-build-isolation ." in message


# CUDA kernels: what is compiled, without compiling it.

CUDA_FOLDERS = ("csrc/engine/cuda", "csrc/kernels/cuda")


@pytest.fixture
def setup_script(monkeypatch):
    """Runs setup.py as if torch and a toolkit had CUDA, or not, and returns ``nasfast._ops``."""

    def run(wanted, torch_cuda="13.0", home="/opt/cuda", archs=None):
        monkeypatch.chdir(REPOSITORY)
        monkeypatch.setattr(torch.version, "cuda", torch_cuda)
        monkeypatch.setattr(cpp_extension, "CUDA_HOME", home)
        for name, value in (("WITH_CUDA", wanted), ("TORCH_CUDA_ARCH_LIST", archs)):
            monkeypatch.setenv(name, value or "")  # to be restored, also where setup.py sets it
            if value is None:
                monkeypatch.delenv(name)
        built = {}
        monkeypatch.setattr(setuptools, "setup", built.update)
        runpy.run_path("setup.py", run_name="__main__")
        host, ops = built["ext_modules"]
        assert (host.name, ops.name) == ("nasfast._host", "nasfast._ops")
        assert not [source for source in host.sources if "cuda" in source]
        return ops

    return run


def is_of_cuda(source):
    return source.startswith(CUDA_FOLDERS) or source.endswith("_cuda.cpp")


@pytest.mark.parametrize("wanted", [None, "auto", "1"])
def test_build_with_cuda(setup_script, wanted):
    ops = setup_script(wanted)
    everything = {
        str(path.relative_to(REPOSITORY))
        for folder in ("ops", "engine", "kernels", "program")
        for pattern in ("*.cpp", "*.cu")
        for path in (REPOSITORY / "csrc" / folder).rglob(pattern)
    }
    assert ops.sources == sorted(everything)
    assert {"cudart", "torch_cuda"} <= set(ops.libraries)
    cxx, nvcc = ops.extra_compile_args["cxx"], ops.extra_compile_args["nvcc"]
    assert {"-DUSE_CUDA", '-DNASFAST_CUDA_ARCHS="8.0;9.0+PTX"', "-O3"} <= set(cxx)
    assert {"-O3", "-std=c++20", "-lineinfo"} <= set(nvcc)
    assert not [flag for flag in nvcc if "fast" in flag]
    # With a flag of ours that has "arch" in it, torch would add none.
    assert cpp_extension._get_cuda_arch_flags(nvcc) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=compute_90",
        "-gencode=arch=compute_90,code=sm_90",
    ]


def test_build_for_chosen_architectures(setup_script):
    ops = setup_script("1", archs="9.0")
    assert '-DNASFAST_CUDA_ARCHS="9.0"' in ops.extra_compile_args["cxx"]
    nvcc = ops.extra_compile_args["nvcc"]
    assert cpp_extension._get_cuda_arch_flags(nvcc) == ["-gencode=arch=compute_90,code=sm_90"]


@pytest.mark.parametrize(
    ("wanted", "torch_cuda", "home"),
    [
        ("0", "13.0", "/opt/cuda"),
        ("auto", None, "/opt/cuda"),
        ("auto", "13.0", None),
        (None, None, None),
    ],
)
def test_build_without_cuda(setup_script, wanted, torch_cuda, home):
    ops = setup_script(wanted, torch_cuda, home)
    assert not [source for source in ops.sources if is_of_cuda(source) or source.endswith(".cu")]
    assert "csrc/ops/run_program_cpu.cpp" in ops.sources
    assert "TORCH_CUDA_ARCH_LIST" not in os.environ
    assert list(ops.extra_compile_args) == ["cxx"]
    assert not [flag for flag in ops.extra_compile_args["cxx"] if "CUDA" in flag]


@pytest.mark.parametrize(
    ("wanted", "torch_cuda", "home", "message"),
    [
        ("1", None, "/opt/cuda", f"WITH_CUDA=1: the installed torch {torch.__version__} is built "
                                 "without CUDA"),
        ("1", "13.0", None, "WITH_CUDA=1: there is no CUDA toolkit: neither is nvcc on PATH nor "
                            "CUDA_HOME set"),
        ("yes", "13.0", "/opt/cuda", "WITH_CUDA: wanted auto, 0 or 1, got 'yes'"),
        ("", None, None, "WITH_CUDA: wanted auto, 0 or 1, got ''"),
    ],
)  # fmt: skip
def test_builds_that_are_refused(setup_script, wanted, torch_cuda, home, message):
    with pytest.raises(SystemExit) as refused:
        setup_script(wanted, torch_cuda, home)
    assert str(refused.value) == message
