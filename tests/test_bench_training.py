# SPDX-License-Identifier: MIT
"""bench/{train,finetune}_nb201.py and mixed_op.py: what they write; a wrong result has no time."""

import importlib
import json
import math
from pathlib import Path

import pytest
import torch

from nasfast import SupernetConfig

REPOSITORY = Path(__file__).parents[1]
pytest.importorskip("xautodl", reason="needs xautodl: pip install --no-deps xautodl==1.0.0")

SCRIPTS = ["train_nb201", "finetune_nb201", "mixed_op"]
SIZES = {"train_nb201": ["--archs=2"], "finetune_nb201": ["--archs=3", "--steps=2"]}
CONTRACT = {
    "name", "work", "ours_s", "baselines", "ratio_vs_peer", "ratio_vs_best_pytorch", "max_error",
    "peak_mib", "gflops", "share_of_peak", "environment",
}  # fmt: skip


@pytest.fixture
def scripts(monkeypatch):
    """Imports a script at a size that takes a second or two, without probes and children."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "bench"))
    contract = importlib.import_module("contract")
    peak = {"probe": "fma_f32", "gflops": 1e6}
    monkeypatch.setattr(contract, "peak_gflops", lambda *_: peak)
    monkeypatch.setattr(contract, "peak_memory", lambda *_: {"peak_mib": 1.0, "peak_mib_before": 0})

    def load(name):
        module = importlib.import_module(name)
        monkeypatch.setattr(module, "CONFIG", SupernetConfig(cells_per_stage=1))
        monkeypatch.setattr(module, "BATCH", 16)
        monkeypatch.setattr(module, "SIDE", 16)
        return module

    yield load
    torch.set_num_threads(1)


def run(script, out, *arguments):
    sizes = SIZES.get(script.__name__, [])
    script.main(["--quick", "--threads=1", "--json", str(out), *sizes, *arguments])
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_writes_what_the_contract_names(scripts, tmp_path, name, precision):
    result = run(scripts(name), tmp_path / "new" / "out.json", "--precision", precision)
    assert result.keys() >= CONTRACT
    assert result["name"] == name and result["precision"] == precision
    assert result["peer"].startswith("xautodl") and result["best_pytorch"].startswith("PyTorch")
    for rival in ("peer", "best_pytorch", "eager_pytorch"):
        assert 0 < result["baselines"][result[rival]] < math.inf
        ratio = result[f"ratio_vs_{rival}"]
        assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
    assert result["work"]["flop"] > 0 and result["work"]["words"]
    assert 0 <= result["max_error"]["value"] < (0.5 if precision == "bf16" else 1e-2)
    ways = 2 if precision == "fp32" else 4
    assert len(result["screened_s"]) == 1 + ways  # --quick: with all threads alone


def test_fine_tuning_of_all_is_timed_and_that_of_others_scaled(scripts, tmp_path):
    result = run(scripts("finetune_nb201"), tmp_path / "out.json")
    taken = result["work"]["archs"] * result["work"]["steps"]
    assert taken == 6 and 1 <= result["lanes"] <= 3 and result["diverged"] == 0
    assert result["ours_all_s"] == pytest.approx(result["ours_all_step_s"] * taken)
    for name, all_s in result["baselines_all_s"].items():
        assert all_s == pytest.approx(result["baselines"][name] * taken)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("factor", [2.0, math.nan])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_wrong_result_ends_with_1_and_writes_nothing(
    scripts, tmp_path, monkeypatch, name, precision, factor
):
    script, ops = scripts(name), importlib.import_module("nasfast.ops")
    for op in ("train_paths", "train_lanes", "program_gradients"):
        right = getattr(ops, op)

        def wrong(*given, right=right, **options):
            found = right(*given, **options)  # losses; of program_gradients logits and gradients
            return tuple(
                x * factor if isinstance(x, torch.Tensor) and x.is_floating_point() else x
                for x in found
            )

        monkeypatch.setattr(ops, op, wrong)
    with pytest.raises(SystemExit, match="ours: ") as error:
        run(script, tmp_path / "out.json", "--precision", precision)
    assert isinstance(error.value.code, str)  # a message makes Python exit with 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", SCRIPTS)
def test_refuses_a_baseline_that_computes_something_else(scripts, tmp_path, monkeypatch, name):
    script, contract = scripts(name), importlib.import_module("contract")
    seen = []

    def shifted(name, losses, truth, check=contract.check_baseline):
        seen.append(name)
        check(name, [loss + 0.5 for loss in losses], truth)

    monkeypatch.setattr(contract, "check_baseline", shifted)
    with pytest.raises(SystemExit, match=r"baseline xautodl .*: .* off: it computes something"):
        run(script, tmp_path / "out.json", "--precision", "fp32")
    assert len(seen) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("flag", ["--threads=0", "--repeats=0"])
def test_refuses_numbers_that_make_no_sense(scripts, name, flag, capsys):
    with pytest.raises(SystemExit, match="2"):
        scripts(name).parse([flag])
    assert flag.partition("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--archs=0", "--archs=65"])
def test_train_takes_architectures_of_the_fixed_list(scripts, flag, capsys):
    with pytest.raises(SystemExit, match="2"):
        scripts("train_nb201").parse([flag])
    assert "--archs must be 1 to 64" in capsys.readouterr().err
