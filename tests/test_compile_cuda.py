# SPDX-License-Identifier: MIT
"""What .ci/compile_cuda.py reads from reports of ptxas, and what it complains of."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "compile_cuda.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("compile_cuda", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["compile_cuda"] = module  # dataclasses look for it
    spec.loader.exec_module(module)
    yield module
    del sys.modules["compile_cuda"]


ENUMERATORS = {"Precision": ["fp32", "bf16"], "Task": ["conv", "avg_pool"]}
PREFIX = "nasfast::kernels::cuda::"


@pytest.mark.parametrize(
    ("demangled", "short"),
    [
        ("plain", "plain"),
        (f"{PREFIX}norm_kernel({PREFIX}NormRow const*)", "norm_kernel"),
        (
            f"void {PREFIX}(anonymous namespace)::pass_kernel<({PREFIX}Precision)1, 64>"
            f"({PREFIX}PassLaunch)",
            "pass_kernel<bf16,64>",
        ),
        ("void (anonymous namespace)::k<(Task)1, false, -3>(float*, int)",
         "k<avg_pool,false,-3>"),
        (f"void k<{PREFIX}Tile<16>, float>(void (*)(int))", "k<Tile<16>,float>"),
    ],
)  # fmt: skip
def test_short_names(script, demangled, short):
    assert script.short_name(demangled, ENUMERATORS) == short


def test_words_of_enumerators(script):
    sources = """
    enum class Precision : int32_t { kFp32, kBf16 };
    enum class Task {
      kConv,
      kAvgPool,
    };
    enum class Declared : int32_t;
    """
    assert script.enumerators_of(sources) == ENUMERATORS


def entry(name, arch, used, frame="0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"):
    return f"""ptxas info    : Compiling entry function '{name}' for '{arch}'
ptxas info    : Function properties for {name}
    {frame}
ptxas info    : Used {used}
ptxas info    : Compile time = 1.5 ms
"""


CALLED = """ptxas info    : Function properties for slow(float const*, int)
    32 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
"""


@pytest.mark.parametrize(
    ("report", "rows"),
    [
        (
            "ptxas info    : 272 bytes gmem, 16 bytes cmem[4]\n"
            + entry("k(int)", "sm_80", "58 registers, used 1 barriers, 360 bytes cmem[0]"),
            [("k", "sm_80", 58, 0, 0, 0, 0)],
        ),
        (
            entry("k(int)", "sm_80", "8 registers, used 0 barriers, 360 bytes cmem[0]")
            + entry("k(int)", "sm_90", "9 registers, used 1 barriers, 1024 bytes smem"),
            [("k", "sm_80", 8, 0, 0, 0, 0), ("k", "sm_90", 9, 0, 0, 0, 1024)],
        ),
        (
            entry("k(int)", "sm_90", "255 registers, used 1 barriers, 512 bytes smem",
                  "16 bytes stack frame, 20 bytes spill stores, 24 bytes spill loads"),
            [("k", "sm_90", 255, 16, 20, 24, 512)],
        ),
        (
            # A call: its frame is part of the sum for the kernel, its spills are added.
            entry("void k<true>(int)", "sm_90",
                  "40 registers, used 1 barriers, 288 bytes cumulative stack size",
                  "256 bytes stack frame, 1 bytes spill stores, 2 bytes spill loads")
            + CALLED + entry("l(int)", "sm_90", "8 registers"),
            [("k<true>", "sm_90", 40, 288, 5, 10, 0), ("l", "sm_90", 8, 0, 0, 0, 0)],
        ),
    ],
    ids=["one", "two architectures", "spills", "calls"],
)  # fmt: skip
def test_reports(script, report, rows):
    kernels = script.parse_report("file", report, ENUMERATORS)
    assert kernels == [script.Kernel("file", *row) for row in rows]


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ("", "file: ptxas reports no kernel"),
        ("nvcc warning : something\n", "file: ptxas reports no kernel"),
        (entry("k(int)", "sm_80", "nothing"), "file: k for sm_80: ptxas reports no registers"),
    ],
)
def test_reports_that_are_not_understood(script, report, message):
    with pytest.raises(ValueError, match=message):
        script.parse_report("file", report, ENUMERATORS)


def kernels_of(script):
    return [
        script.Kernel("passes", "pass_kernel<bf16,16>", "sm_80", 137, 0, 0, 0, 0),
        script.Kernel("heads", "head_kernel<fp32>", "sm_90", 56, 16, 4, 8, 1024, "a cold path"),
    ]


def test_table_is_read_as_it_was_written(script):
    kernels = kernels_of(script)
    text = script.table_of(kernels, "13.0.88")
    assert script.parse_table(text) == (sorted(kernels), "13.0.88")
    row = "heads head_kernel<fp32> sm_90 56 16 4 8 1024 a cold path"
    assert " ".join(text.splitlines()[2].split()) == row


def test_what_is_as_committed_is_right(script):
    kernels = kernels_of(script)
    committed = script.table_of(kernels, "13.0.88")
    compiled = [replace(kernel, reason="") for kernel in kernels]
    assert script.complaints(compiled, "13.0.88", committed) == ""


@pytest.mark.parametrize(
    ("change", "nvcc", "wanted"),
    [
        ({"registers": 140}, "13.0.88", ["-passes", "+passes", "--update"]),
        ({"arch": "sm_90"}, "13.0.88", ["-passes", "+passes"]),
        ({"registers": 140}, "13.1.1", []),
        ({"stack": 8}, "13.1.1", ["pass_kernel<bf16,16> on sm_80: 8 bytes of stack"]),
        ({"spill_loads": 4}, "13.0.88", ["0 and 4 bytes of spill stores and loads", "+passes"]),
    ],
    ids=["registers", "another kernel", "another compiler", "stack", "spills"],
)
def test_changes_are_named(script, change, nvcc, wanted):
    first, second = kernels_of(script)
    committed = script.table_of([first, second], "13.0.88")
    wrong = script.complaints([replace(first, **change), second], nvcc, committed)
    assert bool(wrong) == bool(wanted)
    for words in wanted:
        assert words in wrong


def test_a_spill_stays_wrong_after_an_update(script):
    spilling = [replace(kernels_of(script)[0], spill_stores=4)]
    updated = script.table_of(script.with_reasons(spilling, []), "13.0.88")
    assert "no reason" in script.complaints(spilling, "13.0.88", updated)


def test_reasons_go_with_what_they_excuse(script):
    first, second = kernels_of(script)
    cured = replace(second, stack=0, spill_stores=0, spill_loads=0, reason="")
    assert script.with_reasons([first, cured], [first, second]) == [first, cured]


def test_committed_table(script):
    kernels, nvcc = script.parse_table(script.TABLE.read_text(encoding="utf-8"))
    assert script.TABLE.read_text(encoding="utf-8") == script.table_of(kernels, nvcc)
    assert all(kernel.reason for kernel in kernels if kernel.is_tight())
    sources = {path.stem for path in SCRIPT.parents[1].glob("csrc/kernels/cuda/*.cu")}
    assert {kernel.file for kernel in kernels} == sources
    assert {kernel.arch for kernel in kernels} == {"sm_80", "sm_90"}
