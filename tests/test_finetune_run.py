# SPDX-License-Identifier: MIT
"""nasfast finetune: on a run folder, interrupted anywhere, with its report and bad input."""

import dataclasses
import json
import logging
import math
import os
import signal
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from tiny_runs import (
    REPOSITORY,
    cli,
    edit_config,
    leftovers,
    printed,
    refusal,
    tiny_run,
    wait_for,
)

from nasfast import Trainings, finetune, lane_backends
from nasfast.curve_store import CurveStore
from nasfast.curves import Curves
from nasfast.data import batches
from nasfast.finetune_run import curve_settings, finetune_run, minibatches, sampled
from nasfast.runs import Run
from nasfast.spaces import NB201
from nasfast.store import StoreError

OPTIONS = ("--archs", 6, "--steps", 4, "--batch-size", 16, "--lr", 0.02)
SETTINGS = dict(archs=6, steps=4, batch_size=16, lr=0.02, backend="reference")


def opened(folder, **options):
    return Run.open(folder).with_options("finetune", **{**SETTINGS, **options})


def give_truth(folder, indices, **section):
    """Ground truth of some architectures, beside the run."""
    truth = np.full(NB201.num_archs, np.nan)
    truth[indices] = np.linspace(0.5, 0.9, len(indices))
    file = folder.with_suffix(".npz")
    np.savez(file, truth=truth)
    edit_config(folder, truth={"table": str(file), "column": "truth"}, **section)


def with_truth(place, count=40, *, ranked=False):
    place.mkdir(exist_ok=True)
    folder = tiny_run(place / "run", ranked=ranked)
    archs = NB201.sample(count, seed=3, distinct=True)
    give_truth(folder, sorted(NB201.to_index(arch) for arch in archs))
    return folder


def curves_of(folder, weights="supernet", **options):
    run = opened(folder, **options)
    with CurveStore(run.curve_file, curve_settings(run, run.supernet(run.splits()))) as store:
        return store.read(weights)


def rows_of(folder):
    """Every byte of every row."""
    with sqlite3.connect(folder / "finetune.sqlite") as db:
        rows = db.execute("SELECT * FROM curves ORDER BY weights, arch").fetchall()
    db.close()
    return rows


# The store.


def some_curves(rows, steps=3):
    curves = Curves.empty(rows, steps, 2, 1)
    curves.loss[:] = np.arange(rows * steps).reshape(rows, steps)
    curves.loss[0, -1] = math.inf
    curves.diverged_at[0] = 2
    return curves


def test_curves_come_back_bit_for_bit(tmp_path):
    curves = some_curves(2)
    with CurveStore(tmp_path / "f.sqlite", {}) as store:
        store.add("supernet", [9, 4], curves)
        assert store.done("supernet") == {4, 9}
    with CurveStore(tmp_path / "f.sqlite", {}) as store:
        archs, read = store.read("supernet")
        assert len(store.read("untrained")[0]) == 0
    assert archs.tolist() == [4, 9]
    for name in dataclasses.asdict(curves):
        assert getattr(read, name).tobytes() == getattr(curves, name)[::-1].tobytes()


def test_curve_store_says_what_is_wrong(tmp_path):
    file = tmp_path / "f.sqlite"
    with CurveStore(file, {"lr": 0.1}) as store:
        store.add("supernet", [1], some_curves(1))
        with pytest.raises(StoreError, match="1 curves not written"):
            store.add("supernet", [1], some_curves(1))
        store.add("supernet", [2], some_curves(1, steps=2))
        with pytest.raises(StoreError, match=r"damaged .*; delete it to fine-tune anew"):
            store.read("supernet")
    with pytest.raises(StoreError, match=r"curves made under other settings \(lr: 0.1 then, 0.2"):
        CurveStore(file, {"lr": 0.2})


# The run.


def test_curves_are_those_of_finetune(tmp_path):
    folder = with_truth(tmp_path)
    run = opened(folder)
    work = finetune_run(run)
    archs, curves = curves_of(folder)
    assert archs.tolist() == sampled(run, run.truth()).tolist()
    assert set(archs.tolist()) <= set(run.truth().known.tolist())
    assert work.archs == 12 and work.steps <= 48  # the control too
    stream, validation = minibatches(run, run.splits())
    wanted = finetune(
        run.supernet(run.splits()), [NB201.from_index(int(k)) for k in archs], stream, steps=4,
        lr=0.02, validation=validation, mini_at=(0,), backend="reference",
    )  # fmt: skip
    for name in dataclasses.asdict(curves):
        np.testing.assert_array_equal(getattr(curves, name), getattr(wanted.curves, name))
    assert len(stream) == 4
    assert all(len(b.labels) == 16 for b in [*stream, *validation])
    assert isinstance(wanted.trainings, Trainings)
    images = batches(run.splits().valid, 16, seed=0)
    assert np.array_equal(images[0].images.numpy(), validation[0].images.numpy())
    untrained_archs, untrained = curves_of(folder, "untrained")
    assert untrained_archs.tolist() == archs.tolist()
    assert not np.array_equal(untrained.loss, curves.loss)


def test_more_steps_go_through_the_images_again_shuffled_anew(tmp_path, caplog):
    run = opened(tiny_run(tmp_path / "run"), steps=10)
    with caplog.at_level(logging.INFO):
        stream, _ = minibatches(run, run.splits())
    assert "10 steps go through the 4 training minibatches more than once" in caplog.text
    assert len(stream) == 10
    first, again = stream[0].images.numpy(), stream[4].images.numpy()
    assert not np.array_equal(first, again)


class Stop(Exception):
    pass


def test_more_architectures_later_and_nothing_twice(tmp_path):
    folder = with_truth(tmp_path, 9)
    finetune_run(opened(folder, archs=40, control=False))
    other = with_truth(tmp_path / "other", 9)
    finetune_run(opened(other, archs=3, control=False))
    before = rows_of(other)
    seen = []
    finetune_run(
        opened(other, archs=40, control=False, memory_mib=512),
        on_progress=lambda *a: seen.append(a[:3]),
    )
    assert seen[0] == ("supernet", 3, 9)
    assert set(before) < set(rows_of(other))
    assert rows_of(other) == rows_of(folder)
    assert finetune_run(opened(other, archs=40, control=False)).archs == 0


def test_interrupted_between_chunks(tmp_path, monkeypatch):
    monkeypatch.setitem(lane_backends._CHUNK_IMAGES, "reference", 64)
    whole, parts = with_truth(tmp_path / "a"), with_truth(tmp_path / "b")
    finetune_run(opened(whole))

    def stop(name, done, total, work):
        if work.archs >= 2:
            raise Stop

    for _ in range(9):
        try:
            finetune_run(opened(parts), on_progress=stop)
            break
        except Stop:
            pass
    assert rows_of(parts) == rows_of(whole)


# The command in a process of its own, with a chunk for every lane.
ONE_BY_ONE = """
from nasfast import lane_backends
lane_backends._CHUNK_IMAGES["reference"] = 1
from nasfast.cli import main
main()
"""


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    """SIGKILL while chunks are being written; then the same command, with other chunks."""
    folder, whole = with_truth(tmp_path / "a"), with_truth(tmp_path / "b")
    arguments = ["--archs", 8, "--steps", 20, "--batch-size", 48, "--backend", "reference"]
    command = [sys.executable, "-c", ONE_BY_ONE, "finetune", folder, *arguments]
    process = subprocess.Popen(
        [str(part) for part in command], cwd=REPOSITORY, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip

    def two_rows():
        try:
            return (folder / "finetune.sqlite").is_file() and len(rows_of(folder)) >= 2
        except sqlite3.Error:  # not made yet
            return False

    wait_for(two_rows, process, limit_s=120)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert 2 <= len(rows_of(folder)) < 16
    for place in (folder, whole):
        done = cli("finetune", place, *arguments)
        assert done.exit_code == 0, done.stderr
    assert len(rows_of(folder)) == 16
    assert rows_of(folder) == rows_of(whole)
    assert leftovers(folder) == []


# The command and the report.


def test_command_and_report(tmp_path):
    folder = with_truth(tmp_path, ranked=True)
    before = (folder / "config.json").read_bytes()
    said = printed(cli("finetune", folder, *OPTIONS, "--json"))
    assert (folder / "config.json").read_bytes() == before
    names = [row["estimator"] for row in said["estimators"]]
    assert names[:2] == ["SoTL, 4 steps", "TLMini, before fine-tuning"]
    assert "Untrained supernet, SoTL, 4 steps" in names and "FLOPs" in names
    assert all(row["n"] == 6 for row in said["estimators"])
    assert said["this_call"]["architectures"] == 12 and said["diverged"] == []
    page = (folder / "report.html").read_text()
    assert "<h2>Fine-tuning</h2>" in page and "TSE-EMA, weights of its code" in page
    assert "No architecture diverged." in page
    assert {"finetuning_correlation.png", "finetuning_top.png"} <= {
        f.name for f in (folder / "plots").iterdir()
    }
    # The report keeps to the settings of the curves, not to those of the config.
    again = cli("report", folder)
    assert again.exit_code == 0, again.stderr
    assert (folder / "report.html").read_text() == page
    text = cli("finetune", folder, *OPTIONS)
    assert "every architecture had its curves" in text.stdout
    assert "SoTL, 4 steps" in text.stdout


def test_without_truth_or_ranking(tmp_path):
    folder = tiny_run(tmp_path / "run")
    said = printed(cli("finetune", folder, *OPTIONS, "--json"))
    assert said["estimators"] == [] and said["report"] is None
    assert {row[0] for row in rows_of(folder)} == {"supernet"}
    assert f"next: nasfast rank {folder}" in cli("finetune", folder, *OPTIONS).stdout
    assert cli("rank", folder).exit_code == 0
    page = (folder / "report.html").read_text()
    assert "<h2>Fine-tuning</h2>" in page and "No ground truth was given" in page


def test_diverged_lanes_are_shown(tmp_path):
    folder = with_truth(tmp_path, ranked=True)
    options = [*OPTIONS[:-1], 1e30]
    said = printed(cli("finetune", folder, *options, "--json"))
    assert len(said["diverged"]) >= 5
    assert all(1 <= entry["step"] <= 3 for entry in said["diverged"])
    page = (folder / "report.html").read_text()
    assert f"{len(said['diverged'])} architectures diverged (number" in page
    assert "diverged: architecture" in cli("finetune", folder, *options).stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lr", 0], "finetune.lr: Input should be greater than 0, got 0.0"),
        (["--lr", -0.1], "finetune.lr: Input should be greater than 0, got -0.1"),
        (["--archs", 0], "finetune.archs: Input should be greater than or equal to 1, got 0"),
        (["--steps", 0], "finetune.steps: Input should be greater than or equal to 1, got 0"),
        (["--batch-size", 65], "finetune.batch_size: wanted at most the 64 train images"),
        (["--batch-size", 50], "finetune.batch_size: wanted at most the 48 valid images"),
        (["--memory", 1, "--batch-size", 48], "memory: training one lane needs"),
        (["--precision", "fp16"], "finetune.precision: Input should be"),
        (["--threads", 4096], "threads: wanted 1.."),
    ],
)
def test_bad_options(tmp_path, options, message):
    folder = tiny_run(tmp_path / "run")
    assert message in refusal(cli("finetune", folder, *options))
    if (folder / "finetune.sqlite").is_file():
        assert rows_of(folder) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"validate_at": [0, 101]}, "finetune: validate_at: wanted 0..100 (steps taken), got 101"),
        ({"bn": "x"}, "finetune: bn: wanted cells[/others]"),
        ({"without": ["x"]}, "finetune.without"),
        ({"momentum": 0.0}, "finetune: nesterov: needs a momentum above 0, got 0"),
        ({"stepps": 3}, "unknown key 'finetune.stepps'"),
    ],
)
def test_bad_section(tmp_path, values, message):
    folder = tiny_run(tmp_path / "run")
    edit_config(folder, **{f"finetune__{key}": value for key, value in values.items()})
    assert message in refusal(cli("finetune", folder))


def test_other_settings_and_other_folders_are_refused(tmp_path):
    folder = tiny_run(tmp_path / "run")
    assert cli("finetune", folder, *OPTIONS).exit_code == 0
    other = refusal(cli("finetune", folder, *OPTIONS[:-1], 0.5))
    assert "finetune.lr: 0.02 then, 0.5 now" in other
    (tmp_path / "empty").mkdir()
    assert "not a run folder" in refusal(cli("finetune", tmp_path / "empty", *OPTIONS))
    (folder / "supernet.safetensors").unlink()
    assert "not trained yet" in refusal(cli("finetune", folder, *OPTIONS))


def test_a_truth_that_knows_nothing_allowed(tmp_path):
    folder = tiny_run(tmp_path / "run")
    name = NB201.ops[NB201.from_index(0).op_indices[0]].name
    give_truth(folder, [0], finetune={"without": [name]})
    assert "the ground truth knows no architecture to fine-tune" in refusal(cli("finetune", folder))


def test_settings_are_all_that_curves_depend_on(tmp_path):
    run = opened(tiny_run(tmp_path / "run"))
    supernet = run.supernet(run.splits())
    settings = curve_settings(run, supernet)
    assert json.loads(json.dumps(settings)) == settings
    for same in (dict(archs=3), dict(memory_mib=5), dict(control=False), dict(epoch_steps=2)):
        assert curve_settings(opened(run.folder, **same), supernet) == settings
    for other in (dict(lr=0.5), dict(clip=1.0), dict(mini_every=3), dict(precision="fp64")):
        assert curve_settings(opened(run.folder, **other), supernet) != settings
