# SPDX-License-Identifier: MIT
"""bench/rank_1shot1.py: the truth of a subnet, and how agreement is counted."""

import importlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from nasfast import SupernetConfig, spaces

REPOSITORY = Path(__file__).parents[1]
DATA = Path(os.environ.get("NASFAST_DATA", REPOSITORY.parent / "shared" / "data"))
SPACE = "nb1shot1-1"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "bench"))
    module = importlib.import_module("rank_1shot1")
    monkeypatch.setattr(module, "RESAMPLES", 50)
    yield module
    torch.set_num_threads(1)


def hashes_of(archs):
    return [arch.spec.to_nb101(arch).hash for arch in archs]


def write_table(file, hashes):
    """Write a table in the form of the published one; a cell's truth is its place among them."""
    rows = sorted(set(hashes))
    count = len(rows)
    np.savez(
        file,
        hash=np.array([list(bytes.fromhex(one)) for one in rows], dtype=np.uint8),
        test_108=np.linspace(0.5, 0.9, count).astype(np.float32),
        params=np.arange(count)[::-1].astype(np.int32),
        flops=np.arange(count).astype(np.int64),
    )
    return {one: k for k, one in enumerate(rows)}


def test_each_subnet_has_the_row_of_its_cell(script, tmp_path):
    hashes = hashes_of(spaces.get(SPACE).sample(300, seed=0, distinct=True))
    place = write_table(tmp_path / "table.npz", hashes)
    table = script.published(tmp_path / "table.npz", hashes)
    expected = np.array([place[one] for one in hashes])
    assert (table.network == expected).all() and len(place) < len(hashes)
    assert (table.columns["flops"] == expected).all()
    assert (table.columns["params"] == len(place) - 1 - expected).all()
    absent = "00" * 16
    with pytest.raises(SystemExit, match=f"no cell with hash {absent}"):
        script.published(tmp_path / "table.npz", [*hashes, absent])


@pytest.mark.skipif(not (DATA / "nb101_accuracy.npz").is_file(), reason="needs NASFAST_DATA")
def test_the_published_table_has_every_subnet(script):
    archs = spaces.get(SPACE).enumerate()
    table = script.published(DATA / "nb101_accuracy.npz", hashes_of(archs))
    assert len(archs) == 3702 and table.network.max() + 1 == 2685
    # The published code names the smallest test error of any run in this space.
    best = 1 - 0.05448716878890991
    assert best - 0.005 < table.columns["test_108"].max() < best + 1e-6
    # More operations of 3x3 convolutions mean more parameters.
    convolutions = np.array([arch.spec.to_nb101(arch).ops.count("conv3x3-bn-relu")
                             for arch in archs])  # fmt: skip
    means = [table.columns["params"][convolutions == k].mean() for k in range(5)]
    assert means == sorted(means)


def test_a_network_counts_once_with_the_mean_of_its_subnets(script):
    truth = np.array([0.1, 0.2, 0.2, 0.3])
    table = script.Table(np.array([0, 1, 1, 2]), {"test_108": truth})
    (row,) = script.agreement({"mine": np.array([1.0, 0.0, 4.0, 3.0])}, table)
    assert row["networks"]["n"] == 3 and row["subnets"]["n"] == 4
    assert row["networks"]["kendall_tau_b"] == pytest.approx(1.0)  # 1, 2, 3
    # Five pairs differ in truth, four of them are ordered like it or not: 3 - 2 of sqrt(6 * 5).
    assert row["subnets"]["kendall_tau_b"] == pytest.approx(1 / np.sqrt(30))
    assert "| mine | +0.183 (" in script.text([row])


def write_images(folder):
    draw = np.random.default_rng(0)
    for part, count in (("train", 192), ("test", 96)):
        np.savez(
            folder / f"cifar10_{part}.npz",
            images=draw.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8),
            labels=np.arange(count) % 10,
        )


@pytest.mark.skipif(
    not hasattr(SupernetConfig, "published"), reason="needs SupernetConfig.published"
)
def test_trains_once_and_ranks(script, tmp_path, monkeypatch, capsys):
    write_images(tmp_path)
    write_table(tmp_path / "nb101_accuracy.npz", hashes_of(spaces.get(SPACE).enumerate()))
    monkeypatch.setenv("NASFAST_DATA", str(tmp_path))
    monkeypatch.setattr(script, "CHANNELS", 4)
    out, work = tmp_path / "out.json", tmp_path / "work"

    def run(*more):
        script.main(["--work", str(work), "--json", str(out), "--archs=20", "--images=64",
                     "--batch=32", "--epochs=1", "--threads=1", "--precision=fp32",
                     *more])  # fmt: skip
        return json.loads(out.read_text(encoding="utf-8")), capsys.readouterr().out

    first, printed = run()
    assert "epoch 0: loss" in printed and "| FLOPs |" in printed
    assert first["archs"] == 20 and 0 < first["networks"] <= 20
    assert first["training"]["images"] == 192
    scores = [row["score"] for row in first["correlations"]]
    assert scores[0] == "supernet loss, negated" and len(scores) == 5
    flops = first["correlations"][3]["networks"]
    assert flops["kendall_tau_b"] == pytest.approx(1.0) and flops["n"] == first["networks"]
    again, printed = run()
    assert "epoch" not in printed and again["correlations"] == first["correlations"]
    _, printed = run("--clip=5")  # other settings: trained anew
    assert "epoch 0" in printed
