# SPDX-License-Identifier: MIT
"""bench/space_1shot1.py and its baselines: all compute the same, and a wrong result has no time."""

import importlib
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from straight_line_1shot1 import NUM_PARENTS, logits, random_weights
from torch.utils.flop_counter import FlopCounterMode

from nasfast import SupernetConfig, spaces
from nasfast.data import Batch

REPOSITORY = Path(__file__).parents[1]
RATIO = {"median", "min", "max"}
CHANNELS, SIDE = 4, 16
# The shapes of NAS-Bench-1Shot1's supernets are written; lowering and engine may not be.
engine = pytest.mark.skipif(
    not hasattr(SupernetConfig, "published"), reason="needs SupernetConfig.published"
)


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "bench"))
    names = ("space_1shot1", "eager_1shot1", "contract")
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    torch.set_num_threads(1)


@pytest.fixture
def script(modules, monkeypatch):
    """The script at a size that takes a second or two, without the probes and the child."""
    module, contract = modules.space_1shot1, modules.contract
    for name, value in (("CHANNELS", CHANNELS), ("BATCH", 8), ("SIDE", SIDE)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(contract, "peak_gflops", lambda *_: {"probe": "fma_f32", "gflops": 1e6})
    monkeypatch.setattr(contract, "peak_memory", lambda *_, **__: {"peak_mib": 1.0})
    return module


@pytest.fixture
def straight(script, monkeypatch):
    """The script, with the straight line in the place of the engine."""

    def make_supernet(name):
        weights = random_weights(name, channels=CHANNELS, layers=9, seed=0, dtype=torch.float32)
        return SimpleNamespace(state_dict=lambda: weights)

    def count(_, archs):
        return sum(script.arithmetic(arch, "lean") for arch in archs)

    monkeypatch.setattr(script, "make_supernet", make_supernet)
    monkeypatch.setattr(script, "ours", straight_losses)
    monkeypatch.setattr(script, "program_macs", count)
    return script


def straight_losses(supernet, archs, batch, precision, threads):
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    weights = {name: t.double() for name, t in supernet.state_dict().items()}
    rounded = {name: t.to(dtype).double() if t.dim() == 4 else t for name, t in weights.items()}
    return np.stack([straight_loss(rounded, arch, batch).numpy() for arch in archs])


def straight_loss(weights, arch, batch):
    spec = arch.spec
    out = logits(
        weights, spec.name, spec.block_ops(arch), spec.parents(arch), batch.images.double(),
        channels=CHANNELS,
    )  # fmt: skip
    return F.cross_entropy(out, batch.labels, reduction="none")


def run(script, out, *arguments, archs=3):
    script.main(["--quick", f"--archs={archs}", "--threads=1", "--lanes=8", "--json", str(out),
                 *arguments])  # fmt: skip
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NUM_PARENTS)
def test_all_ways_are_the_straight_line(modules, name):
    eager = modules.eager_1shot1
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, SIDE, SIDE, generator=generator)
    batch = Batch(images, torch.randint(0, 10, (4,), generator=generator))
    weights = random_weights(name, channels=CHANNELS, layers=9, seed=1)
    scorers = [eager.Scorer(weights, batch, way, dtype=torch.float64) for way in eager.CELLS]
    assert len(scorers) == 4
    for arch in spaces.get(name).sample(8, seed=2):  # with loose ends
        exact = straight_loss(weights, arch, batch)
        for scorer in scorers:
            torch.testing.assert_close(scorer(arch), exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("way", ["published", "single path", "lean", "fused"])
def test_arithmetic_is_what_runs(modules, way):
    """Counted by the shapes of every convolution and linear layer that is called."""
    eager = modules.eager_1shot1
    batch = Batch(torch.randn(2, 3, SIDE, SIDE), torch.zeros(2, dtype=torch.int64))
    weights = random_weights("nb1shot1-3", channels=CHANNELS, layers=9, seed=1)
    scorer = eager.Scorer(weights, batch, way)
    for arch in spaces.get("nb1shot1-3").sample(6, seed=3):
        with FlopCounterMode(display=False) as counter:
            scorer(arch)
        counted = counter.get_total_flops() // (2 * len(batch.labels))
        path = eager.path_of(arch)
        assert counted == eager.macs(path, way, channels=CHANNELS, side=SIDE)


@pytest.mark.parametrize("space", ["1", "3"])
def test_writes_what_the_contract_names(straight, tmp_path, space):
    check_result(
        run(straight, tmp_path / "new" / "out.json", "--precision=fp32", f"--space={space}"), space
    )


@engine
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_runs_with_the_engine(script, tmp_path, precision):
    # The rule for bf16 is about the median: of few architectures it says little.
    result = run(script, tmp_path / "out.json", "--precision", precision, archs=15)
    check_result(result, "3", archs=15)


def check_result(result, space, archs=3):
    assert result["name"] == "space_1shot1" and result["work"]["space"] == f"nb1shot1-{space}"
    assert {"ours_s", "baselines", "peak_mib", "gflops", "share_of_peak"} <= result.keys()
    assert result["peer"].startswith("published") and result["best_pytorch"].startswith("PyTorch")
    assert result["eager_pytorch"] == "PyTorch fp32 contiguous, 1 thread"
    for rival in ("peer", "best_pytorch", "eager_pytorch"):
        assert 0 < result["baselines"][result[rival]] < math.inf
        ratio = result[f"ratio_vs_{rival}"]
        assert ratio.keys() == RATIO and 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
    work = result["work"]
    assert len(work["compared"]) == 2 and work["archs"] == archs
    assert 0 < work["flop_lean"] <= work["flop"] < work["flop_published"]
    order = result["list_order"]
    assert order["lanes"] == 8 and order["space_archs"] == {"1": 3702, "3": 135_900}[space]
    whole = order["lane_s"] * order["space_archs"] / order["flop_of_lanes_to_space"]
    assert order["space_estimate_s"] == pytest.approx(whole)
    ways = ("", " lean", " fused")
    every = {f"PyTorch fp32 {layout}{way}, 1 thread" for way in ways
             for layout in ("contiguous", "channels_last")}  # fmt: skip
    if result["precision"] == "bf16":
        every |= {name.replace("fp32", "bf16 autocast") for name in every}
    assert result["screened_s"].keys() == every | {"published one-shot model, 1 thread"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("wrong", [1.01, np.nan], ids=["off", "nan"])
def test_a_wrong_result_ends_with_1_and_writes_nothing(
    straight, tmp_path, monkeypatch, precision, wrong
):
    factor = wrong if precision == "fp32" else wrong**100
    monkeypatch.setattr(straight, "ours", lambda *given: factor * straight_losses(*given))
    with pytest.raises(SystemExit, match="ours: ") as error:
        run(straight, tmp_path / "out.json", "--precision", precision)
    assert isinstance(error.value.code, str)  # a message makes Python exit with 1
    assert not list(tmp_path.iterdir())


def test_refuses_a_baseline_that_computes_something_else(straight, modules, tmp_path, monkeypatch):
    def backwards(weight, path):
        return weight.flip(1)

    monkeypatch.setattr(modules.eager_1shot1.PublishedCell, "selected", staticmethod(backwards))
    with pytest.raises(SystemExit, match=r"baseline published one-shot model, 1 thread: .* off"):
        run(straight, tmp_path / "out.json", "--precision", "fp32")
    assert not list(tmp_path.iterdir())


def test_windows_lie_in_the_list(straight):
    job = straight.make_job(straight.parse(["--threads=1", "--lanes=64"]))
    indices = [[job.spec.to_index(arch) for arch in window] for window in job.windows()]
    assert len(indices) == straight.WINDOWS and sum(map(len, indices)) == 64
    for window in indices:
        assert window == list(range(window[0], window[0] + 16))
    assert indices[0][0] > 0 and indices[-1][-1] < job.spec.num_archs


def test_the_list_stands_for_the_space(straight, monkeypatch):
    """The seed was chosen so: mean arithmetic within two percent of a large draw, at C=16."""
    for name, value in (("CHANNELS", 16), ("SIDE", 32)):
        monkeypatch.setattr(straight, name, value)
    job = straight.make_job(straight.parse(["--threads=1"]))
    assert job.compared == job.archs and len(set(job.archs)) == straight.ARCHS
    everything = straight.mean_arithmetic(job.spec.sample(4000, seed=5, distinct=True))
    assert straight.mean_arithmetic(job.archs) == pytest.approx(everything, rel=0.02)


@pytest.mark.parametrize("flag", ["--archs=0", "--archs=65", "--threads=0", "--lanes=3"])
def test_refuses_numbers_that_make_no_sense(straight, flag, capsys):
    with pytest.raises(SystemExit, match="2"):
        straight.parse([flag])
    assert flag.partition("=")[0] in capsys.readouterr().err
