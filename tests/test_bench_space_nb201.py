# SPDX-License-Identifier: MIT
"""bench/space_nb201.py: what it writes, and that a wrong result has no time."""

import importlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from nasfast import SupernetConfig, evaluate

REPOSITORY = Path(__file__).parents[1]
pytest.importorskip("xautodl", reason="needs xautodl: pip install --no-deps xautodl==1.0.0")

RATIO = {"median", "min", "max"}


def reference(supernet, archs, batch, precision, threads):
    """Stands in for the engine."""
    scores = evaluate(supernet, archs, [batch], precision="fp32", backend="reference")
    return scores.lane_loss[scores.lane_of_arch]


@pytest.fixture
def script(monkeypatch):
    """The script at a size that takes a second or two, without the probes and the child."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "bench"))
    module, contract = map(importlib.import_module, ("space_nb201", "contract"))
    monkeypatch.setattr(module, "CONFIG", SupernetConfig(cells_per_stage=1))
    monkeypatch.setattr(module, "BATCH", 8)
    monkeypatch.setattr(contract, "peak_gflops", lambda *_: {"probe": "fma_f32", "gflops": 1e6})
    monkeypatch.setattr(contract, "peak_memory", lambda *_, **__: {"peak_mib": 1.0})
    yield module
    torch.set_num_threads(1)


def run(script, out, *arguments):
    script.main(["--quick", "--archs=3", "--threads=1", "--json", str(out), *arguments])
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_writes_what_the_contract_names(script, tmp_path, precision):
    result = run(script, tmp_path / "new" / "out.json", "--precision", precision)
    assert result["name"] == "space_nb201" and result["precision"] == precision
    assert {"ours_s", "baselines", "peak_mib", "gflops", "share_of_peak"} <= result.keys()
    assert result["peer"].startswith("xautodl") and result["best_pytorch"].startswith("PyTorch")
    for rival in ("peer", "best_pytorch"):
        assert 0 < result["baselines"][result[rival]] < math.inf
        ratio = result[f"ratio_vs_{rival}"]
        assert ratio.keys() == RATIO and 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
    work = result["work"]
    assert len(work["compared"]) == 2 and work["archs"] == 3
    assert 0 <= work["flop_dead"] < work["flop_run_by_ours"] < work["flop"]
    assert result["environment"]["threads"] == 1
    every = {f"xautodl {kind}, 1 thread" for kind in ("supernet", "stand-alone")}
    for name in ("fp32", "bf16 autocast")[: 1 + (precision == "bf16")]:
        every |= {f"PyTorch {name} {way}, 1 thread" for way in ("contiguous", "channels_last")}
    assert result["screened_s"].keys() == every


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("wrong", [1.01, np.nan], ids=["off", "nan"])
def test_a_wrong_result_ends_with_1_and_writes_nothing(
    script, tmp_path, monkeypatch, precision, wrong
):
    monkeypatch.setattr(script, "ours", lambda *given: wrong * reference(*given))
    with pytest.raises(SystemExit, match="ours: ") as error:
        run(script, tmp_path / "out.json", "--precision", precision)
    assert isinstance(error.value.code, str)  # a message makes Python exit with 1
    assert not list(tmp_path.iterdir())


def test_refuses_a_baseline_that_computes_something_else(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "ours", reference)
    monkeypatch.setattr("eager_nb201.AVG_POOL", 1)  # pooling becomes the identity
    monkeypatch.setattr(script, "check", lambda *_: {})
    with pytest.raises(SystemExit, match=r"baseline PyTorch fp32 contiguous, 1 thread: .* off"):
        run(script, tmp_path / "out.json", "--precision", "fp32")
    assert not list(tmp_path.iterdir())


def test_screened_architectures_spread_over_the_costs(script):
    job = script.make_job(script.parse(["--threads=1"]))
    assert job.compared == job.archs
    screened = job.spaced(script.SCREENED)
    macs = [script.count_work(script.Merge.NONE, [arch]).macs for arch in screened]
    everything = [script.count_work(script.Merge.NONE, [arch]).macs for arch in job.archs]
    assert macs == sorted(macs) and len(set(screened)) == len(macs) == script.SCREENED
    assert np.mean(macs) == pytest.approx(np.mean(everything), rel=0.1)


@pytest.mark.parametrize(
    "flag", ["--archs=0", "--archs=65", "--threads=0", "--repeats=0", "--compiled=-1"]
)
def test_refuses_numbers_that_make_no_sense(script, flag, capsys):
    with pytest.raises(SystemExit, match="2"):
        script.parse([flag])
    assert flag.partition("=")[0] in capsys.readouterr().err


def test_a_card_alone_is_measured_in_tf32(script, capsys):
    options = script.parse(["--threads=1", "--precision=tf32", "--device=cuda"])
    assert (options.precision, options.device) == ("tf32", "cuda")
    with pytest.raises(SystemExit, match="2"):
        script.parse(["--threads=1", "--precision=tf32"])
    assert "--precision tf32 wants --device cuda, got cpu" in capsys.readouterr().err
