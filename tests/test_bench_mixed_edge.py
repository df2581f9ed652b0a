# SPDX-License-Identifier: MIT
"""bench/mixed_edge.py: what it writes; a wrong result has no time."""

import importlib
import json
import math
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parents[1]
CONTRACT = {
    "name", "work", "ours_s", "baselines", "ratio_vs_best_pytorch", "max_error", "peak_mib",
    "gflops", "share_of_peak", "environment",
}  # fmt: skip


@pytest.fixture
def script(monkeypatch):
    """Imports it at a size that takes a second."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "bench"))
    module = importlib.import_module("mixed_edge")
    monkeypatch.setattr(module, "SHAPES", [(8, 8, 6, 6), (16, 16, 4, 4)])
    monkeypatch.setattr(
        importlib.import_module("card_nb201"),
        "peak_gflops",
        lambda *_: {"probe": "fma_f32", "gflops": 1e6},
    )
    yield module
    torch.set_num_threads(1)


def run(script, out, *arguments):
    script.main(["--quick", "--threads=1", "--json", str(out), *arguments])
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_writes_what_the_contract_names(script, tmp_path, capsys, precision):
    result = run(script, tmp_path / "new" / "out.json", "--precision", precision)
    assert result.keys() >= CONTRACT
    assert (result["name"], result["device"]) == ("mixed_edge", "cpu")
    assert (result["precision"], result["environment"]["gpu"]) == (precision, None)
    assert len(result["baselines"]) == (2 if precision == "fp32" else 4)
    for rival in ("best_pytorch", "eager_pytorch"):
        assert 0 < result["baselines"][result[rival]] < math.inf
    assert result["max_error"]["items"] == 2
    printed = capsys.readouterr().out
    assert "ours " in printed and "1.00 x ours" in printed


@pytest.mark.parametrize("who", ["cpu", "eager"])
def test_a_wrong_result_has_no_time(script, tmp_path, monkeypatch, who):
    right = script.Edge.found

    def wrong(edge):
        found = right(edge)
        is_meant = edge.backend == who and edge.dtype == torch.float32
        return found | {"x": found["x"] * 1.1} if is_meant else found

    monkeypatch.setattr(script.Edge, "found", wrong)
    message = "ours: item 0 is" if who == "cpu" else "baseline PyTorch fp32 contiguous: 0.1 off"
    with pytest.raises(SystemExit, match=message):
        run(script, tmp_path / "out.json", "--precision", "fp32")
    assert not (tmp_path / "out.json").exists()
