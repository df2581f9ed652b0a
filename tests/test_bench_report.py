# SPDX-License-Identifier: MIT
"""bench/report.py: the block of bench/space_nb201.py, with and without results."""

import importlib
import json
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
RESULT = {
    "ours_s": 0.0123,
    "baselines": {"xautodl supernet, 2 threads": 0.21, "PyTorch fp32 contiguous, 1 thread": 0.2},
    "peer": "xautodl supernet, 2 threads",
    "best_pytorch": "PyTorch fp32 contiguous, 1 thread",
    "ratio_vs_peer": {"median": 17.1, "min": 15.0, "max": 19.0},
    "ratio_vs_best_pytorch": {"median": 16.3, "min": 14.0, "max": 18.0},
    "share_of_peak": 0.42,
    "peak": {"probe": "fma_f32", "gflops": 216.4},
    "repeats": 7,
    "work": {"compared": ["a", "b"]},
    "environment": {"threads": 2, "cpu": "A CPU", "versions": {"torch": "2.13.0"}},
}


@pytest.fixture
def report(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(REPOSITORY / "bench"))
    module = importlib.import_module("report")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def test_without_results_the_block_says_how_to_get_them(report):
    assert "bench/space_nb201.py --json" in report.space_block()


def test_a_row_for_each_precision_measured(report, tmp_path):
    (tmp_path / "space_nb201_fp32.json").write_text(json.dumps(RESULT), encoding="utf-8")
    lines = report.space_block().splitlines()
    assert lines[2].startswith("| fp32 | 12.3 ms | 210 ms (xautodl supernet, 2 threads) | 17.1x (")
    assert "42% of 216 (fma_f32)" in lines[2] and "A CPU" in lines[-1]
    assert len({line.count("|") for line in lines[:3]}) == 1 and lines[3] == ""


def test_a_readme_gets_the_block_where_it_marks_a_place(report, monkeypatch):
    monkeypatch.setattr(report, "rank_block", lambda: "RANK")
    monkeypatch.setattr(report, "explain_block", lambda: "EXPLAIN")
    marks = "".join(f"<!-- {name}: by a script -->\nold\n<!-- end -->\n" for name in
                    ("rank", "explain"))  # fmt: skip
    assert report.rewritten(marks).count("old") == 0
    place = "<!-- space_nb201: by a script -->\nold\n<!-- end -->\n"
    assert "Not measured yet" in report.rewritten(marks + place)


def test_the_block_of_training(report, tmp_path):
    assert "bench/train_nb201.py --json" in report.training_block()
    more = {
        "eager_pytorch": RESULT["best_pytorch"],
        "ratio_vs_eager_pytorch": RESULT["ratio_vs_peer"],
    }
    result = RESULT | more
    (tmp_path / "train_nb201_bf16.json").write_text(json.dumps(result), encoding="utf-8")
    result |= {"ours_all_s": 90.0, "baselines_all_s": {RESULT["best_pytorch"]: 1200.0}}
    result |= {"work": {"archs": 200, "steps": 100}}
    (tmp_path / "finetune_nb201_bf16.json").write_text(json.dumps(result), encoding="utf-8")
    lines = report.training_block().splitlines()
    assert lines[2].startswith("| single-path training step, bf16 | 12 ms | 210 ms, 17.1x (15.0")
    assert lines[3].startswith("| fine-tuning step, bf16 | ")
    assert len({line.count("|") for line in lines[:4]}) == 1 and lines[4] == ""
    assert lines[-1] == ("200 architectures x 100 steps, bf16: 1.5 min; best PyTorch, scaled from "
                         "fewer: 20 min.")  # fmt: skip
