# SPDX-License-Identifier: MIT
"""bench/card_kernels.py on the emulated device: kernels are right, and a wrong one has no time."""

import argparse
import importlib
import json
from dataclasses import replace
from pathlib import Path

import emulated_ops
import pytest
import torch

REPOSITORY = Path(__file__).parents[1]
PEAK = {"matmul_gflops": 1.0, "copy_gb_s": 1.0}


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPOSITORY / "bench"))
        yield importlib.import_module("card_kernels")


@pytest.fixture(scope="module")
def library(script):
    includes = [REPOSITORY / "tests/csrc/emulator"]
    return importlib.import_module("kernel_lanes").link(
        emulated_ops.engine_objects(), includes, ["-Wno-unknown-pragmas"]
    )


def small(script):
    """Every kind of kernel at a size that the emulator takes a moment for."""
    found = {}
    for case in script.CASES:
        tiny = replace(case, side=min(case.side, 6), lanes=2, images=2)
        found[(case.timed, case.operation, case.kernel, case.stride, case.channels > 32)] = tiny
    return list(found.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "tf32"])
def test_every_kernel_agrees_with_float64(script, library, precision):
    for case in small(script):
        row = script.measure(library, case, precision, "cpu", 1, PEAK)
        assert row["max_error"] <= script.TOLERANCE[precision]
        assert row["ours_s"] > 0 and (row["pytorch_s"] is None) == (case.operation == "sum")
        assert row["bytes"] > 0 and (row["flop"] > 0) == (case.operation == "convolution")


def test_a_wrong_result_has_no_time(script, library, monkeypatch):
    run = script.Lanes.run

    def wrong(lanes, kernel):
        run(lanes, kernel)
        lanes.value("result", lanes.case.lanes - 1)[0, 0, 0] += 1

    monkeypatch.setattr(script.Lanes, "run", wrong)
    case = next(case for case in small(script) if case.timed == "forward")
    with pytest.raises(SystemExit, match=r"lane 1: .* off float64"):
        script.measure(library, case, "fp32", "cpu", 1, PEAK)


def test_work_is_counted_as_by_hand(script):
    case = script.Case("forward", "convolution", 3, 16, 32, lanes=10, images=64)
    assert case.flop() == 10 * 2 * 9 * 16 * 16 * 64 * 32 * 32
    value = 10 * 64 * 32 * 32 * 16 * 2
    assert case.num_bytes(2) == 3 * value  # two terms and the result
    assert replace(case, timed="input gradient").num_bytes(2) == 5 * value
    halved = replace(case, stride=2)
    assert halved.flop() == case.flop() // 2  # a quarter of the pixels, twice the channels
    assert halved.num_bytes(4) == 2 * (2 * value + value // 2)


def test_what_does_not_fit_is_said(script, library):
    case = script.Case("forward", "convolution", 3, 4096, 8, lanes=1, images=1)
    with pytest.raises(SystemExit, match="4096 channels: more than fit the shared memory"):
        script.Lanes(library, case, "fp32", "cpu")


def test_what_is_written(script, library, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(script, "CASES", small(script)[:2])
    monkeypatch.setattr(script, "replace", lambda case, **_: case)
    out = tmp_path / "new" / "kernels.json"
    options = argparse.Namespace(
        precision="bf16", device="cpu", quick=True, repeats=1, threads=1, json=out
    )
    script.publish(script.measure_all(library, options, PEAK), options)
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [row["bound"] for row in found["kernels"]] == ["arithmetic"] * 2
    row = found["kernels"][0]
    assert row["share_of_ceiling"] == pytest.approx(row["flop"] / row["ours_s"] / 1e9)
    assert capsys.readouterr().out.count("GB/s") == 3

    report = importlib.import_module("card_report")
    found["device"] = "cuda"
    (tmp_path / "card_kernels_bf16.json").write_text(json.dumps(found), encoding="utf-8")
    tables = report.report(tmp_path).splitlines()
    assert tables[2].startswith(f"| {row['kernel']}, bf16 | ") and "% of arithmetic" in tables[2]
    assert tables[-1].endswith("a large matrix product 0 TFLOP/s, a large copy 1 GB/s.")


def test_without_a_card_it_is_refused(script):
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    with pytest.raises(SystemExit, match="torch sees none"):
        script.main(["--quick"])
