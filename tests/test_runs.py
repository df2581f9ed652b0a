"""Run folders: training and ranking, interrupted anywhere, end as if nothing had happened."""

import json
import signal
import sys

import numpy as np
import pytest
import torch
from tiny_runs import (
    RUN,
    changed,
    cli,
    edit_config,
    leftovers,
    lines_in,
    run_config,
    scores,
    start,
    tiny_run,
    wait_for,
    write_toml,
)

from nasfast import data
from nasfast.runs import Run, RunError
from nasfast.spaces import NB201
from nasfast.steps import rank_run, train_run
from nasfast.store import ScoreStore, StoreError
from nasfast.supernet import Supernet


class Stop(Exception):
    pass


def trained(folder, config):
    return train_run(Run.create(config, folder))


def same_weights(one, other):
    a, b = (Supernet.load(folder / "supernet.safetensors") for folder in (one, other))
    return a.config == b.config and a.arena.numpy().tobytes() == b.arena.numpy().tobytes()


def truth_table(path, indices):
    """A table with a value for some architectures."""
    accuracy = np.full(NB201.num_archs, np.nan)
    accuracy[indices] = np.arange(len(indices)) / 100
    np.savez(path, accuracy=accuracy)
    return path


# The folder.


def test_files_of_a_run(tmp_path):
    folder = tiny_run(tmp_path / "run", ranked=True)
    assert sorted(f.name for f in folder.iterdir()) == [
        "config.json", "environment.json", "lock", "scores.bits", "scores.sqlite",
        "supernet.safetensors", "training.jsonl",
    ]  # fmt: skip
    run = Run.open(folder)
    assert run.config == run_config()
    assert [r.epoch for r in run.records()] == [0, 1]
    entries = run.environments()
    assert [entry["command"] for entry in entries] == ["train", "rank"]
    assert entries[0]["torch"] == torch.__version__


def test_another_configuration_is_refused_once_trained(tmp_path):
    folder = tiny_run(tmp_path / "run")
    with pytest.raises(RunError, match="another configuration") as caught:
        Run.create(run_config(seed=1, train__lr=0.1, rank__archs=5), folder)
    assert "seed: 0 then, 1 now" in str(caught.value)
    assert "train.lr: 0.05 then, 0.1 now" in str(caught.value)
    assert "rank.archs: 12 then, 5 now" in str(caught.value)
    assert "threads" not in str(caught.value)
    assert Run.create(run_config(), folder).config == run_config()


def test_another_configuration_may_replace_one_that_never_trained(tmp_path):
    Run.create(run_config(seed=1), tmp_path / "run")
    Run.create(run_config(seed=2), tmp_path / "run")
    assert Run.open(tmp_path / "run").config.seed == 2


def test_what_a_kill_leaves_of_the_first_file_does_not_matter(tmp_path):
    (tmp_path / "config.json.partial").write_text("{")
    Run.create(run_config(), tmp_path)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "other folder"])
def test_something_else_is_no_run(tmp_path, kind):
    place = tmp_path / "place"
    if kind == "file":
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="place: exists and is no run folder"):
        Run.create(run_config(), place)
    with pytest.raises(RunError, match="place: not a run folder"):
        Run.open(place)


# Training.


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_training_goes_on(tmp_path, stop_after):
    config = run_config(train__epochs=3, train__cutout=2, train__crop_padding=1, train__clip=1.0)
    trained(tmp_path / "whole", config)

    def stop(record, epochs):
        assert epochs == 3
        if record.epoch + 1 == stop_after:
            raise Stop

    run = Run.create(config, tmp_path / "parts")
    with pytest.raises(Stop):
        train_run(run, on_epoch=stop)
    assert not run.supernet_file.exists()
    run.log_file.unlink()  # as if killed between the state and the log
    seen = []
    train_run(run, on_epoch=lambda record, epochs: seen.append(record.epoch))
    assert seen == list(range(stop_after, 3))
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    assert not run.state_file.exists()
    assert [r.epoch for r in run.records()] == [0, 1, 2]
    whole = Run.open(tmp_path / "whole")
    assert [r.loss for r in run.records()] == [r.loss for r in whole.records()]


def test_trained_run_is_not_trained_again(tmp_path):
    folder = tiny_run(tmp_path / "run")
    before = (folder / "supernet.safetensors").read_bytes()
    train_run(Run.open(folder), on_epoch=lambda *_: pytest.fail("trained again"))
    assert (folder / "supernet.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: f.write_bytes(f.read_bytes()[:-10]),
        lambda f: f.write_bytes(b""),
        lambda f: f.write_bytes(f.read_bytes().replace(b'"epoch":"1"', b'"epoch":"x"')),
        lambda f: f.write_bytes(f.read_bytes().replace(b"momentum.stem.0.", b"momentum.atem.0.")),
    ],
    ids=["truncated", "empty", "epoch", "name"],
)
def test_damaged_training_state(tmp_path, damage):
    run = stopped(tmp_path / "run", run_config())
    before = run.state_file.read_bytes()
    damage(run.state_file)
    assert run.state_file.read_bytes() != before
    with pytest.raises(RunError, match=r"training\.safetensors: damaged .*delete it to begin anew"):
        train_run(run)


def stopped(folder, config):
    """A run that was stopped after its first epoch."""

    def stop(record, epochs):
        raise Stop

    run = Run.create(config, folder)
    with pytest.raises(Stop):
        train_run(run, on_epoch=stop)
    return run


@pytest.mark.parametrize("how", [{"backend": "reference"}, {"backend": "cpu", "paths": 2}], ids=str)
def test_training_killed(tmp_path, how):
    """SIGKILL between epochs; the same command again gives the weights of an unbroken run."""
    values = changed(RUN, {"train.epochs": 30, **{f"train.{k}": v for k, v in how.items()}})
    file = write_toml(tmp_path / "c.toml", values)
    process = start("train", file, "--run", tmp_path / "killed", cwd=tmp_path)
    wait_for(lambda: lines_in(tmp_path / "killed" / "training.jsonl") >= 3, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / "supernet.safetensors").exists()
    again = cli("train", file, "--run", tmp_path / "killed")
    assert again.exit_code == 0, again.stderr
    trained(tmp_path / "whole", Run.open(tmp_path / "killed").config)
    assert same_weights(tmp_path / "whole", tmp_path / "killed")
    assert leftovers(tmp_path) == []
    log = (tmp_path / "killed" / "training.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in log] == list(range(30))


# Ranking.


def test_ranking_goes_on(tmp_path, monkeypatch):
    """One failure after every chunk: each run adds one chunk, the scores end up the same."""
    evaluate = sys.modules["nasfast.evaluate"]  # the name in the package is the function
    monkeypatch.setattr(evaluate, "MAX_CHUNK_LANES", 4)
    monkeypatch.setattr(evaluate, "_MIN_CHUNK_LANES", 4)
    known = NB201.mask(["none", "skip_connect", "avg_pool_3x3"])
    known = [NB201.to_index(arch) for arch in NB201.enumerate(known)[::9]]
    changes = {
        "rank__archs": None,
        "rank__without": ["none", "skip_connect", "avg_pool_3x3"],
        "truth__table": str(truth_table(tmp_path / "t.npz", [*known, 0, 1, 2])),
        "truth__column": "accuracy",
    }
    for name in ("whole", "parts"):
        edit_config(tiny_run(tmp_path / name), **changes)
    whole = Run.open(tmp_path / "whole")
    rank_run(whole)
    assert len(scores(whole.folder)[0]) == 64
    add, calls = ScoreStore.add, []

    def add_then_fail(self, *arguments, **options):
        if calls:
            raise OSError("disk gone")
        calls.append(add(self, *arguments, **options))

    monkeypatch.setattr(ScoreStore, "add", add_then_fail)
    run = Run.open(tmp_path / "parts")
    for attempt in range(1, 16):
        calls.clear()
        with pytest.raises(OSError, match="disk gone"):
            rank_run(run)
        assert len(scores(run.folder)[0]) == 4 * attempt
    monkeypatch.setattr(ScoreStore, "add", add)
    rank_run(run)
    for weights in ("supernet", "untrained"):
        assert scores(run.folder, weights) == scores(whole.folder, weights)
    wanted = [run.config.supernet.spec.to_index(arch) for arch in run.archs()]
    assert scores(run.folder)[0] == wanted
    assert scores(run.folder, "untrained")[0] == sorted(known)
    seen = []
    rank_run(run, on_progress=lambda what, done, total, _: seen.append(done == total))
    assert seen == [True, True]  # nothing is scored again


def test_ranking_killed(tmp_path):
    for name in ("killed", "whole"):
        edit_config(tiny_run(tmp_path / name), rank__archs=1000)
    process = start("rank", "killed", cwd=tmp_path)
    log = tmp_path / "killed" / "scores.sqlite-wal"
    # The chunk of 256 lanes makes the log grow well beyond the pages of an empty file.
    empty = 60_000
    wait_for(lambda: log.exists() and log.stat().st_size > empty, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = len(scores(tmp_path / "killed")[0])
    assert 0 < done < 1000
    again = cli("rank", tmp_path / "killed", "--json")
    assert again.exit_code == 0, again.stderr
    rank_run(Run.open(tmp_path / "whole"))
    assert scores(tmp_path / "killed") == scores(tmp_path / "whole")
    assert len(scores(tmp_path / "killed")[0]) == 1000
    assert leftovers(tmp_path) == []


def test_no_control_without_truth(tmp_path):
    seen = []
    rank_run(Run.open(tiny_run(tmp_path / "run")), on_progress=lambda what, *_: seen.append(what))
    assert set(seen) == {"supernet"}
    assert scores(tmp_path / "run", "untrained")[0] == []


def test_other_rank_settings_or_weights_need_new_scores(tmp_path):
    folder = tiny_run(tmp_path / "run", ranked=True)
    before = scores(folder)
    edit_config(folder, rank__bn="batch/running")
    with pytest.raises(StoreError, match=r"rank\.bn: 'batch' then, 'batch/running' now"):
        rank_run(Run.open(folder))
    edit_config(folder, rank__bn="batch", rank__memory_mib=64)
    rank_run(Run.open(folder))  # the memory budget changes no score
    edit_config(folder, rank__memory_mib=2048)
    assert scores(folder) == before
    supernet = Supernet.load(folder / "supernet.safetensors")
    supernet.arena[0] += 1
    supernet.save(folder / "supernet.safetensors")
    with pytest.raises(StoreError, match=r"supernet: 'sha256 .*' then, 'sha256 .*' now"):
        rank_run(Run.open(folder))


def test_scores_by_hand(tmp_path):
    """The stored rows are those of the public API on the same minibatches."""
    import nasfast

    run = Run.open(tiny_run(tmp_path / "run", ranked=True))
    splits = run.splits()
    stream = data.batches(splits.valid, 24, seed=0)
    direct = nasfast.evaluate(run.supernet(splits), run.archs(), stream)
    _, loss, accuracy = scores(run.folder)
    assert loss == direct.loss.tolist()
    assert accuracy == direct.accuracy.tolist()


# Every value of the configuration reaches what it is meant for.


def arena(tmp_path, **changes):
    return trained(tmp_path / "other", run_config(**changes)).arena.numpy().tobytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"data__train_images": 96},
        {"train__epochs": 3},
        {"train__batch_size": 16},
        {"train__lr": 0.04},
        {"train__lr_min": 0.01},
        {"train__momentum": 0.5},
        {"train__nesterov": False},
        {"train__weight_decay": 0.1},
        {"train__clip": 0.01},
        {"train__schedule": "constant"},
        {"train__crop_padding": 1},
        {"train__flip": True},
        {"train__cutout": 4},
        {"train__scope": "cell"},
        {"train__without": ["none"]},
        {"train__paths": 2},
        {"train__precision": "bf16"},
        {"train__backend": "reference"},
        {"supernet__channels": 3},
        {"supernet__cells_per_stage": 2},
        {"supernet__affine": True},
        {"supernet__track": True},
        {"supernet__fixed_affine": False},
        {"supernet__fixed_track": False},
        {"supernet__last_affine": False},
        {"supernet__last_track": False},
        {"supernet__weights_on": "node"},
    ],
    ids=str,
)
def test_training_keys_have_an_effect(tmp_path, changes):
    plain = Supernet.load(tiny_run(tmp_path / "run") / "supernet.safetensors")
    assert arena(tmp_path, **changes) != plain.arena.numpy().tobytes()


@pytest.mark.parametrize(
    "changes",
    [{"rank__batch_size": 16}, {"rank__bn": "recalibrate"}, {"name": "x"}],
    ids=str,
)
def test_other_keys_leave_the_weights_alone(tmp_path, changes):
    plain = Supernet.load(tiny_run(tmp_path / "run") / "supernet.safetensors")
    assert arena(tmp_path, **changes) == plain.arena.numpy().tobytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"data__valid_images": 24},
        {"rank__images": "test"},
        {"rank__batch_size": 16},
        {"rank__batch_size": 32, "rank__last_batch": "keep"},
        {"rank__bn": "batch/running"},
        {"rank__bn": "recalibrate"},
        {"rank__precision": "fp64"},
        {"rank__precision": "bf16"},
        {"rank__backend": "reference"},
        {"rank__archs": 11},
        {"rank__without": ["none"]},
    ],
    ids=str,
)
def test_ranking_keys_have_an_effect(tmp_path, changes):
    plain = scores(tiny_run(tmp_path / "plain", ranked=True))
    folder = tiny_run(tmp_path / "other")
    edit_config(folder, **changes)
    rank_run(Run.open(folder))
    other = scores(folder)
    assert other[1] != plain[1]
    if changes.keys() & {"rank__precision", "rank__backend"}:
        tolerance = 0.1 if changes.get("rank__precision") == "bf16" else 1e-4
        assert np.allclose(other[1], plain[1], rtol=tolerance)


def test_ranking_by_running_statistics_of_cells(tmp_path):
    config = run_config(supernet__track=True, supernet__affine=True, rank__bn="running")
    trained(tmp_path / "run", config)
    rank_run(Run.open(tmp_path / "run"))
    assert len(scores(tmp_path / "run")[0]) == 12


@pytest.mark.parametrize(("last", "images"), [("drop", 32), ("keep", 48)])
def test_partial_minibatches(tmp_path, last, images):
    """48 images in minibatches of 32: 32 count when the rest is dropped, all when it is kept."""
    folder = tiny_run(tmp_path / "run")
    edit_config(folder, rank__batch_size=32, rank__last_batch=last)
    rank_run(Run.open(folder))
    correct = np.array(scores(folder)[2]) * images
    assert np.allclose(correct, correct.round(), atol=1e-9)
