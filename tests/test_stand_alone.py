import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
from tiny_runs import TABLE, changed, leftovers, lines_in, start, wait_for, write_toml

from nasfast import data, evaluate, stand_alone, tables
from nasfast.config import TableConfig, parse_config
from nasfast.data import Augmentation, TrainLoader
from nasfast.layout import SupernetConfig
from nasfast.spaces import NB201
from nasfast.stand_alone import build_table, sampled, train_stand_alone
from nasfast.supernet import Supernet
from nasfast.train import FixedSampler, TrainSettings, train

REAL_TRAIN_ALL = stand_alone._train_all


def config(**changes):
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return parse_config(changed(TABLE, dotted), TableConfig)


def group_is_left(group, limit_s=20):
    """Whether a process group still has members after some time to die."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    return True


def kill_oneself(*_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def in_process(monkeypatch):
    """Train in this process, so that a test can interrupt it; gives the keys that were trained."""
    trained = []

    def train_all(config, keys, workers):
        for key in keys:
            trained.append(key)
            yield key, train_stand_alone(config, *key)

    monkeypatch.setattr(stand_alone, "_train_all", train_all)
    return trained


def test_one_training_is_what_the_parts_give():
    tiny = config()
    splits = data.load("digits", train_images=32, test_images=40)
    shape = SupernetConfig(channels=2, cells_per_stage=1, in_channels=1, affine=True, track=True)
    network = Supernet.create(shape, 1)
    arch = NB201.from_index(5)
    loader = TrainLoader(splits.train, 16, Augmentation(), 1)
    records = train(network, loader, FixedSampler(arch), TrainSettings(epochs=1))
    wanted = evaluate(network, [arch], data.batches(splits.test, 40), bn="running")
    assert train_stand_alone(tiny, 5, 1) == (
        int(wanted.lane_correct.sum()), records[0].loss, 40
    )  # fmt: skip


def test_workers_make_no_difference(tmp_path, in_process):
    build_table(config(), tmp_path / "one.json", on_progress=None)
    assert len(in_process) == 4
    direct = (tmp_path / "one.json").read_bytes()
    results = dict(REAL_TRAIN_ALL(config(), in_process, 2))
    assert results == {key: train_stand_alone(config(), *key) for key in in_process}
    assert multiprocessing.active_children() == []
    table = tables.load(tmp_path / "one.json", NB201)
    assert table.known.tolist() == sorted({key[0] for key in in_process})
    assert sorted(f.name for f in tmp_path.iterdir()) == ["one.json"]
    content = json.loads(direct)
    assert content["settings"]["seeds"] == [0, 1]
    assert content["settings"]["train"]["epochs"] == 1
    for row in content["rows"]:
        for seed, count in enumerate(row["test_correct"]):
            assert train_stand_alone(config(), row["index"], seed)[0] == count
        assert table.truth[row["index"]] == np.mean(row["test_correct"]) / 40


def test_sample_in_official_order():
    archs = sampled(config(table__archs=20), NB201)
    indices = [NB201.to_index(arch) for arch in archs]
    assert indices == sorted(set(indices))
    assert (
        len(sampled(config(table__archs=None, train__without=["none", "skip_connect"]), NB201))
        == 729
    )


@pytest.mark.parametrize("half_line", ["", "[12", "[12, 0, 3, 1.5, 40]"])
def test_build_goes_on(tmp_path, in_process, half_line):
    """Stopped after one of four trainings; a line without its end does not count."""
    build_table(config(), tmp_path / "whole.json")
    everything = list(in_process)
    in_process.clear()

    def stop(done, total):
        if done == 1:
            raise KeyboardInterrupt

    path = tmp_path / "parts.json"
    with pytest.raises(KeyboardInterrupt):
        build_table(config(), path, on_progress=stop)
    progress = tmp_path / "parts.json.progress"
    assert lines_in(progress) == 2
    with progress.open("a") as log:
        log.write(half_line)
    seen = []
    build_table(config(), path, on_progress=lambda *counts: seen.append(counts))
    assert in_process == everything
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert path.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert not progress.exists()
    assert leftovers(tmp_path) == []


def test_finished_table_is_kept(tmp_path, in_process):
    path = tmp_path / "t.json"
    build_table(config(), path)
    before = path.read_bytes()
    in_process.clear()
    build_table(config(), path)
    assert in_process == []
    with pytest.raises(ValueError, match=r"t\.json: holds a table of another configuration") as e:
        build_table(config(train__lr=0.5), path)
    assert "settings.train.lr: 0.025 then, 0.5 now" in str(e.value)
    with pytest.raises(ValueError, match="archs: "):
        build_table(config(table__archs=3), path)
    assert path.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["t.json"]


def test_other_configuration_does_not_go_on(tmp_path, in_process):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_table(config(), tmp_path / "t.json", on_progress=stop)
    with pytest.raises(ValueError, match=r"t\.json\.progress: .*train\.lr: 0\.025 then, 0\.5 now"):
        build_table(config(train__lr=0.5), tmp_path / "t.json")


@pytest.mark.parametrize("content", ["", "{", '{"name": "tin'])
def test_progress_killed_within_its_first_line(tmp_path, in_process, content):
    (tmp_path / "t.json.progress").write_text(content)
    build_table(config(table__archs=1, table__seeds=[0]), tmp_path / "t.json")
    assert len(in_process) == 1


@pytest.mark.parametrize("line", ["[1, 2]", "{", "x"])
def test_damaged_progress(tmp_path, in_process, line):
    head = json.dumps(config().model_dump(mode="json"))
    (tmp_path / "t.json.progress").write_text(f"{head}\n{line}\n")
    with pytest.raises(ValueError, match=r"progress: damaged .*delete it to begin anew"):
        build_table(config(), tmp_path / "t.json")


def test_worker_that_dies(tmp_path, monkeypatch):
    """The whole pool of processes is gone: one message, nothing left running."""
    monkeypatch.setattr(stand_alone, "train_stand_alone", kill_oneself)
    with pytest.raises(OSError, match=r"a worker process was killed.*go on"):
        build_table(config(), tmp_path / "t.json", workers=1)
    assert multiprocessing.active_children() == []
    assert sorted(f.name for f in tmp_path.iterdir()) == ["t.json.progress"]


def test_interrupt_stops_the_workers(tmp_path):
    """Ctrl-C in a terminal reaches every process of the group: one line, and no one stays."""
    values = changed(TABLE, {"table.archs": 60, "train.epochs": 3})
    file = write_toml(tmp_path / "c.toml", values)
    arguments = ("build-table", file, "--out", "t.json", "--workers", 1)
    process = start(*arguments, cwd=tmp_path)
    wait_for(lambda: lines_in(tmp_path / "t.json.progress") >= 3, process)
    begin = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - begin < 20
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "interrupted; type the same command again to go on"
    assert "Traceback" not in errors
    assert "Warning" not in errors
    assert not group_is_left(process.pid)
    assert not (tmp_path / "t.json").exists()
    kept = (tmp_path / "t.json.progress").read_text().splitlines()
    assert 3 <= len(kept) < 120
    assert all(len(json.loads(line)) == 5 for line in kept[1:])
