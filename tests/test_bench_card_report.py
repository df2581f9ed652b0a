# SPDX-License-Identifier: MIT
"""bench/card_report.py: tables of what a card did, and of nothing else."""

import importlib
import json
from pathlib import Path

import pytest

WHERE = {"gpu": "A card", "versions": {"torch": "2.11.0", "cuda": "13.0"}}
RATIO = {"median": 12.04, "min": 11.0, "max": 13.0}
SPACE = {
    "device": "cuda",
    "precision": "bf16",
    "ours_s": 0.00025,
    "baselines": {"PyTorch bf16 autocast channels_last, CUDA graph": 0.003},
    "best_pytorch": "PyTorch bf16 autocast channels_last, CUDA graph",
    "ratio_vs_best_pytorch": RATIO,
    "ratio_vs_eager_pytorch": {"median": 30.0, "min": 29.0, "max": 31.0},
    "share_of_peak": 0.123,
    "environment": WHERE,
    "whole_space": {
        "archs": 15625,
        "lanes": 6466,
        "lowering_s": 1.0,
        "run_s": 1.25,
        "computing_s": 1.2,
        "gflops": 54321.0,
    },
}


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    return importlib.import_module("card_report")


def put(folder, name, result):
    (folder / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")


def test_nothing_measured(report, tmp_path):
    assert report.report(tmp_path) == ""


def test_what_a_cpu_did_is_not_a_card_s(report, tmp_path):
    put(tmp_path, "card_finetune_bf16", SPACE | {"device": "cpu"})
    assert report.report(tmp_path) == ""


def test_a_space(report, tmp_path):
    put(tmp_path, "space_nb201_cuda_bf16", SPACE)
    spaces, rivals = report.report(tmp_path).split("\n\n")
    row = spaces.splitlines()[2]
    assert row == (
        "| bf16 | 15,625 | 6,466 | 1.00 s | 1.25 s | 7.8 min | 54.3 TFLOP/s |"  # 391 * 1.2 s
    )
    assert rivals.splitlines()[2] == (
        "| an architecture of NAS-Bench-201, bf16 | 0.250 ms | 3.000 ms, 12.0x (11.0 to 13.0) "
        "(bf16 autocast channels_last, CUDA graph) | 30.0x (29.0 to 31.0) | 12.3% |"
    )
    for lines in (spaces.splitlines(), rivals.splitlines()):
        assert len({line.count("|") for line in lines}) == 1


def test_a_readme_gets_the_tables(report, monkeypatch, tmp_path):
    readme = importlib.import_module("report")
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    assert readme.card_block() == "Not measured yet: `bench/gpu_check.sh`."
    put(tmp_path, "space_nb201_cuda_bf16", SPACE)
    assert readme.card_block() == report.report(tmp_path)


def test_precisions_come_in_one_order(report, tmp_path):
    for precision in ("fp32", "bf16", "tf32"):
        put(tmp_path, f"space_nb201_cuda_{precision}", SPACE | {"precision": precision})
    rows = report.spaces(tmp_path)[2:]
    assert [row.split()[1] for row in rows] == ["bf16", "tf32", "fp32"]
