# SPDX-License-Identifier: MIT
"""What is said of instruction sets and slow paths, by the log and by ``nasfast info``."""

import pytest
from tiny_runs import cli, printed, refusal, tiny_run

from nasfast import slow_paths
from nasfast.ops import CpuInfo


def test_info_of_a_narrow_instruction_set(monkeypatch):
    monkeypatch.setenv("NASFAST_ISA", "baseline")
    values = printed(cli("info", "--json"))
    assert values["isa"]["chosen"] == "baseline"
    assert "avx2" in values["isa"]["not_used"]
    assert values["slow_paths"]["bf16"] == (
        "baseline has no bfloat16 dot product: float32 arithmetic on rounded operands"
    )


@pytest.mark.parametrize("name", ["sse9", "amx"])
def test_instruction_set_that_is_not_there(tmp_path, monkeypatch, name):
    if name == "amx" and not slow_paths.cpu_info().missing["amx"]:
        pytest.skip("this machine has AMX")
    run = tiny_run(tmp_path / "run")
    monkeypatch.setenv("NASFAST_ISA", name)
    values = printed(cli("info", "--json"))
    assert values["backends"] == ["reference"]
    reason = values["isa"]["error"]
    assert reason.startswith("NASFAST_ISA: amx: the " if name == "amx" else
                             "NASFAST_ISA: wanted one of baseline, avx2, ")  # fmt: skip
    assert f"isa: error: {reason}\n" in cli("info").stdout
    assert refusal(cli("rank", run)) == reason
    assert cli("rank", run, "--backend", "reference").exit_code == 0


NO_AMX = "the CPU has no AMX-BF16"
REFUSED = "the operating system refuses AMX tile state"


def cpu(chosen, **missing):
    names = ("baseline", "avx2", "avx512", "avx512_bf16", "amx")
    return CpuInfo(chosen, {name: missing.get(name, "") for name in names})


def test_words_on_slow_paths():
    assert slow_paths.not_used(cpu("amx")) == {}
    assert slow_paths.not_used(cpu("avx512", amx=NO_AMX)) == {
        "amx": NO_AMX, "avx512_bf16": "NASFAST_ISA asks for avx512",
    }  # fmt: skip
    everywhere = {
        "convolutions other than 1x1 and 3x3, pools other than 3x3",
        "fp64",
        "backend reference",
        "training: gradients of maximum pools",
        "nn.MixedOp on a card: channels or windows that a block of threads cannot hold",
        "nn.MixedOp of stride 2, in float64, or in evaluation with running statistics",
        "joint supernets in fp64, with running statistics, with weights on nodes, or with a "
        "gradient of the images",
    }
    assert set(slow_paths.slow_paths(cpu("avx512_bf16", amx=NO_AMX))) == everywhere
    refused = slow_paths.slow_paths(cpu("avx512_bf16", amx=REFUSED))
    assert set(refused) == {"without amx", *everywhere}
    assert refused["without amx"] == REFUSED
    assert set(slow_paths.slow_paths(cpu("avx2", amx=NO_AMX, avx512_bf16="no", avx512="no"))) == {
        "bf16", *everywhere,
    }  # fmt: skip
    assert "AMX tiles" in slow_paths.kernels(cpu("amx"))["bf16"]
    assert slow_paths.kernels(cpu("avx512_bf16"))["bf16"].endswith("dot products of AVX512_BF16")
    assert slow_paths.kernels(cpu("avx2"))["bf16"].endswith(", on rounded operands")


@pytest.mark.parametrize(
    ("info", "isa", "lines"),
    [
        (cpu("avx512_bf16", amx=REFUSED), None, 1),
        (cpu("avx512_bf16", amx=REFUSED), "avx512_bf16", 0),
        (cpu("avx512_bf16", amx=NO_AMX), None, 0),
        (cpu("amx"), None, 0),
    ],
    ids=["refused", "chosen by hand", "absent", "used"],
)
def test_a_refused_instruction_set_is_logged_once(monkeypatch, caplog, info, isa, lines):
    monkeypatch.setattr(slow_paths, "cpu_info", lambda: info)
    monkeypatch.setenv("NASFAST_ISA", isa or "")
    slow_paths.warn_of_slow_paths.cache_clear()
    slow_paths.warn_of_slow_paths()
    slow_paths.warn_of_slow_paths()
    slow_paths.warn_of_slow_paths.cache_clear()
    wanted = ("nasfast", 30, f"amx: {REFUSED}; the CPU engine uses avx512_bf16")
    assert caplog.record_tuples == [wanted] * lines
