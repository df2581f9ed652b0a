# SPDX-License-Identifier: MIT
"""bench/card_{finetune,1shot1}.py, measuring the CPU: what they write; a wrong result has none."""

import importlib
import json
import math
from pathlib import Path

import pytest
import torch

from nasfast import SupernetConfig

pytest.importorskip("xautodl", reason="needs xautodl: pip install --no-deps xautodl==1.0.0")


@pytest.fixture
def imported(monkeypatch):
    """Imports a script, whose ceiling takes no time then."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    monkeypatch.setattr(
        importlib.import_module("card_nb201"),
        "peak_gflops",
        lambda *_: {"probe": "fma_f32", "gflops": 1e6},
    )
    yield importlib.import_module
    torch.set_num_threads(1)


@pytest.fixture
def script(imported, monkeypatch):
    """At a size that takes seconds."""
    module, work = imported("card_finetune"), imported("finetune_nb201")
    monkeypatch.setattr(work, "CONFIG", SupernetConfig(cells_per_stage=1))
    monkeypatch.setattr(work, "BATCH", 16)
    monkeypatch.setattr(work, "SIDE", 16)
    return module


@pytest.fixture
def one_shot(imported, monkeypatch):
    """The other script, at a size that takes seconds."""
    module, work = imported("card_1shot1"), imported("space_1shot1")
    monkeypatch.setattr(work, "BATCH", 8)
    monkeypatch.setattr(work, "SIDE", 16)
    return module


def run(script, out, *arguments):
    given = ["--quick", "--threads=1", "--archs=3", "--json", str(out), *arguments]
    script.main(given)
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_writes_what_was_measured(script, tmp_path, capsys, precision):
    result = run(script, tmp_path / "new" / "out.json", "--precision", precision)
    assert (result["name"], result["device"]) == ("card_finetune", "cpu")
    assert (result["work"]["archs"], result["work"]["steps"], result["work"]["compared"]) == (
        3,
        2,
        2,
    )
    assert result["work"]["flop"] > 0 and result["ours_all_s"] > 0
    assert 0 < result["baselines"][result["best_pytorch"]] < math.inf
    assert result["best_pytorch"].startswith("PyTorch")
    assert "1.00 x ours" in capsys.readouterr().out

    (tmp_path / f"card_finetune_{precision}.json").write_text(
        json.dumps(result | {"device": "cuda"}), encoding="utf-8"
    )
    (row,) = importlib.import_module("card_report").rivals(tmp_path)[2:]
    assert row.startswith(f"| a fine-tuning step of an architecture, {precision} | ")


def test_a_wrong_result_has_no_time(script, tmp_path, monkeypatch):
    ops = importlib.import_module("nasfast.ops")
    right = ops.train_lanes

    def wrong(*given, **options):
        loss, *others = right(*given, **options)
        return loss * 2, *others

    monkeypatch.setattr(ops, "train_lanes", wrong)
    with pytest.raises(SystemExit, match="ours: "):
        run(script, tmp_path / "out.json", "--precision", "fp32")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_sample_of_1shot1(one_shot, tmp_path, capsys, precision):
    result = run(one_shot, tmp_path / "out.json", "--precision", precision)
    assert (result["name"], result["work"]["archs"]) == ("card_1shot1", 3)
    assert len(result["baselines"]) == (2 if precision == "fp32" else 4)
    assert 0 < result["baselines"][result["best_pytorch"]] < math.inf
    assert "1.00 x ours" in capsys.readouterr().out


def test_a_wrong_score_has_no_time(one_shot, tmp_path, monkeypatch):
    right = one_shot.ours
    monkeypatch.setattr(one_shot, "ours", lambda job: right(job) * 1.5)
    with pytest.raises(SystemExit, match="ours"):
        run(one_shot, tmp_path / "out.json", "--precision", "fp32")
    assert not list(tmp_path.iterdir())
