import os
import re
import signal
import zipfile

import numpy as np
import pytest
import torch
from tiny_runs import TABLE, changed, cli, leftovers, lines_in, printed, start, wait_for, write_toml

from nasfast import data, evaluate, tables
from nasfast.config import TableConfig, parse_config
from nasfast.from_scratch import FromScratch
from nasfast.lane_backends import plan_lanes
from nasfast.lane_training import ReferenceLanes
from nasfast.layout import Layout, SupernetConfig
from nasfast.program import build_training
from nasfast.spaces import NB201
from nasfast.stand_alone import Work, build_table, network_shape, sampled
from nasfast.supernet import Supernet
from nasfast.train import FixedSampler, train

SHAPE = SupernetConfig(channels=2, cells_per_stage=1, in_channels=1, affine=True, track=True)
# 64 architectures of five functions: sums of skip connections.
FEW = {"train__without": ["nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"], "table__archs": None}


def config(**changes):
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return parse_config(changed(TABLE, dotted), TableConfig)


def from_scratch(tiny, **options):
    splits = tiny.data.load()
    return FromScratch(
        network_shape(tiny, splits), tiny.train.loader(splits.train, 9), tiny.train.settings(),
        splits.valid, splits.test, backend="reference", **options,
    )  # fmt: skip


def contents(path):
    """Every byte of a table but for the measured ones, by member."""
    with zipfile.ZipFile(path) as archive:
        found = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    assert found.pop("measured.npy")
    return found


@pytest.fixture
def trained(monkeypatch):
    """The number of lanes of each chunk that was trained."""
    lanes = []
    real = ReferenceLanes.start

    def counted(self, chunk):
        state = real(self, chunk)
        lanes.append(len(state.weights))
        return state

    monkeypatch.setattr(ReferenceLanes, "start", counted)
    return lanes


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of two lanes."""

    def cut(*program, **options):
        return plan_lanes(*program, **{**options, "images": 2**13})

    with monkeypatch.context() as patch:
        patch.setattr("nasfast.from_scratch.plan_lanes", cut)
        yield patch


def stop_after(trainings):
    def on_progress(done, total):
        if done >= trainings:
            raise KeyboardInterrupt

    return on_progress


# Trainings.


@pytest.mark.parametrize("affine", [True, False])
def test_trainings_are_those_of_train(affine, monkeypatch):
    """Losses, weights and accuracies are what the driver for one network gives."""
    tiny = config(train__crop_padding=1, train__clip=1.0, supernet__affine=affine)
    archs = NB201.sample(6, seed=3, distinct=True)
    weights = []
    real = ReferenceLanes.evaluate

    def noted(self, chunk, state, *rest):
        weights.append(state.weights)
        return real(self, chunk, state, *rest)

    monkeypatch.setattr(ReferenceLanes, "evaluate", noted)
    trainer = from_scratch(tiny)
    splits = tiny.data.load()
    seen = 0
    for chunk in trainer.train(archs, seed=1):
        for row, position in enumerate(chunk.lanes):
            arch = archs[position]
            network = Supernet.create(trainer.shape, 1)
            records = train(
                network, tiny.train.loader(splits.train, 1), FixedSampler(arch),
                tiny.train.settings(),
            )  # fmt: skip
            wanted = [record.loss for record in records]
            np.testing.assert_allclose(chunk.train_loss[row], wanted, rtol=1e-4)
            torch.testing.assert_close(weights[-1][row], network.arena, rtol=1e-3, atol=1e-4)
            assert chunk.diverged_at[row] == -1
            if affine or "none" not in str(arch):
                for part, got in (("valid", chunk.valid_correct), ("test", chunk.test_correct)):
                    images = getattr(splits, part)
                    stream = data.batches(images, len(images))
                    scores = evaluate(network, [arch], stream, bn="running", backend="reference")
                    assert got[row] == scores.lane_correct.sum()
            seen += 1
    assert seen == 6


def test_a_training_is_the_same_alone_and_in_any_chunk(small_chunks):
    tiny = config()
    archs = NB201.sample(5, seed=3, distinct=True)

    def results(archs):
        chunks = list(from_scratch(tiny).train(archs, seed=4))
        return len(chunks), {
            str(archs[position]): (c.train_loss[row].tolist(), c.test_correct[row])
            for c in chunks
            for row, position in enumerate(c.lanes.tolist())
        }

    parts, parted = results(archs[::-1])
    small_chunks.undo()
    whole, together = results(archs)
    assert (parts, whole) == (3, 1) and parted == together
    assert together == {name: r for arch in archs for name, r in results([arch])[1].items()}


def test_two_of_one_function():
    archs = [NB201.arch([1, 0, 0, 0, 0, 0]), NB201.arch([0] * 6)]
    with pytest.raises(ValueError, match=r"archs: wanted no two of the same function, got 2"):
        next(from_scratch(config()).train(archs, seed=0))


def test_a_lane_that_diverges_stops_no_other():
    tiny = config(train__lr=1e30, train__lr_min=0.0, train__epochs=3)
    archs = NB201.sample(3, seed=1, distinct=True)
    for chunk in from_scratch(tiny).train(archs, seed=0):
        assert (chunk.diverged_at > 0).all()
        assert np.isnan(chunk.train_loss[:, -1]).all()
        assert np.isfinite(chunk.test_correct).all()


def test_whole_space():
    """What is to be trained of NAS-Bench-201, with and without a shift in the cells."""
    archs = NB201.enumerate()
    assert build_training(Layout(SHAPE), archs).num_lanes == 8452
    plain = SupernetConfig(channels=2, cells_per_stage=1, in_channels=1, affine=False, track=True)
    assert build_training(Layout(plain), archs).num_lanes == 7548


@pytest.mark.parametrize(
    ("shape", "options", "wanted"),
    [
        ({"track": False}, {}, "shape: wanted running statistics in every part and weights on"),
        ({"weights_on": "node"}, {}, "weights_on='node'"),
        ({}, {"precision": "fp8"}, "precision: wanted one of"),
        ({}, {"threads": 0}, "threads: wanted 1.."),
    ],
    ids=str,
)
def test_bad_options(shape, options, wanted):
    base = from_scratch(config())
    shape = SupernetConfig(**{**base.shape.to_dict(), **shape})
    with pytest.raises(ValueError, match=wanted):
        FromScratch(shape, base.loader, base.settings, base.valid, base.test, **options)


def test_memory_too_small_for_one_lane(tmp_path):
    with pytest.raises(ValueError, match=r"memory: training one lane needs \d+ MiB"):
        build_table(config(), tmp_path / "t.npz", memory=1000)


# Tables.


def test_table(tmp_path, trained):
    """The rows are the trainings, in official order; architectures of one function share them."""
    tiny = config(**FEW)
    seen = []
    table = build_table(tiny, tmp_path / "t.npz", on_progress=lambda *c: seen.append(c))
    assert sum(trained) == 2 * 5
    assert seen[0] == (0, 10) and seen[-1] == (10, 10)
    assert [a for a, _ in seen] == sorted(a for a, _ in seen)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["t.npz"]
    archs = sampled(tiny)
    assert table.index.tolist() == [NB201.to_index(arch) for arch in archs]
    assert len(archs) == 64 and table.network.max() == 4 and table.merging == "linear"
    first = {int(n): k for k, n in reversed(list(enumerate(table.network)))}
    for column, seed in enumerate(table.seeds):
        chosen = [archs[k] for k in first.values()]
        for chunk in from_scratch(tiny).train(chosen, seed):
            for row, position in enumerate(chunk.lanes):
                members = table.network == list(first)[position]
                assert (table.test_accuracy[members, column] == chunk.test_correct[row] / 40).all()
                assert (
                    table.valid_accuracy[members, column] == chunk.valid_correct[row] / 24
                ).all()
                np.testing.assert_allclose(
                    table.train_loss[members, column],
                    np.tile(chunk.train_loss[row], (members.sum(), 1)), rtol=1e-3,
                )  # fmt: skip
    assert (table.truth[table.index] == table.test_accuracy.mean(axis=1)).all()
    assert table.settings["supernet"]["affine"] is True
    assert table.settings["backend"] == "reference"
    assert table.measured["trainings"] == 10
    assert table.measured["computed_by"][0].startswith("reference, nasfast ")


def test_copies_with_their_own_noise(tmp_path, trained):
    """Copy 0 of a function has the seed itself, whatever else is in the table."""
    shared = build_table(config(**FEW, table__seeds=[1]), tmp_path / "l.npz")
    trained.clear()
    own = build_table(
        config(**FEW, table__seeds=[1], table__merging="none"), tmp_path / "n.npz"
    )  # fmt: skip
    assert sum(trained) == 64
    assert own.merging == "none" and own.network.tolist() == shared.network.tolist()
    for network in range(5):
        losses = own.train_loss[own.network == network]
        assert len(np.unique(losses, axis=0)) > len(losses) / 2  # in three digits
    tiny, splits = config(table__merging="none"), config().data.load()
    whole = Work.of(tiny, network_shape(tiny, splits), NB201.enumerate())
    assert len(whole.archs) == 15625 and whole.copies.count(0) == 8452
    copy_of = dict(zip(whole.indices, whole.copies, strict=True))
    firsts = [row for row, index in enumerate(own.index.tolist()) if copy_of[index] == 0]
    assert (own.train_loss[firsts] == shared.train_loss[firsts]).all()
    some = Work.of(tiny, network_shape(tiny, splits), sampled(tiny))
    assert some.copies == [copy_of[index] for index in some.indices]


def test_sample_in_official_order():
    indices = [NB201.to_index(arch) for arch in sampled(config(table__archs=20))]
    assert indices == sorted(set(indices))
    without = config(table__archs=None, train__without=["none", "skip_connect"])
    assert len(sampled(without)) == 729


def test_diverged_trainings_have_no_accuracy(tmp_path):
    table = build_table(config(train__lr=1e30, train__lr_min=0.0), tmp_path / "t.npz")
    assert (table.diverged_at >= 0).all()
    assert len(table.known) == 0 and np.isnan(table.test_accuracy).all()


# Going on.


@pytest.mark.parametrize("changes", [FEW, FEW | {"table__merging": "none"}], ids=["linear", "none"])
def test_build_goes_on(tmp_path, trained, small_chunks, changes):
    tiny = config(**changes, table__seeds=[0])
    build_table(tiny, tmp_path / "whole.npz")
    everything = sum(trained)
    trained.clear()
    with pytest.raises(KeyboardInterrupt):
        build_table(tiny, tmp_path / "parts.npz", on_progress=stop_after(everything - 0.9))
    progress = tmp_path / "parts.npz.progress"
    with progress.open("ab") as log:
        log.write(b'00000000 {"seed": 0')
    trained.clear()
    seen = []
    build_table(tiny, tmp_path / "parts.npz", on_progress=lambda *c: seen.append(c))
    assert 0 < sum(trained) < everything
    assert seen[0] == (everything - sum(trained), everything)
    assert contents(tmp_path / "parts.npz") == contents(tmp_path / "whole.npz")
    assert not progress.exists()
    assert leftovers(tmp_path) == []


def test_other_words_go_on(tmp_path, trained):
    """Names are for people: no training depends on them."""
    with pytest.raises(KeyboardInterrupt):
        build_table(config(), tmp_path / "t.npz", on_progress=stop_after(3))
    before = sum(trained)
    table = build_table(config(table__truth_name="better words"), tmp_path / "t.npz")
    assert table.truth_name == "better words"
    assert sum(trained) < 2 * before + 4


def test_finished_table_is_kept(tmp_path, trained):
    path = tmp_path / "t.npz"
    build_table(config(), path)
    before = path.read_bytes()
    trained.clear()
    seen = []
    (tmp_path / "t.npz.progress").write_text("left by a kill")
    again = build_table(config(), path, on_progress=lambda *c: seen.append(c))
    assert (trained, seen, len(again.index)) == ([], [(4, 4)], 2)
    for changes, wanted in (
        ({"train__lr": 0.5}, "settings.train.lr: 0.025 then, 0.5 now"),
        ({"supernet__affine": False}, "settings.supernet.affine: True then, False now"),
        ({"table__merging": "none"}, "settings.merging: 'linear' then, 'none' now"),
        ({"table__precision": "fp64"}, "settings.precision: 'fp32' then, 'fp64' now"),
        ({"data__valid_images": 25}, "settings.data.images: 'sha256 "),
        ({"table__archs": 3}, "archs: "),
        ({"name": "other"}, "name: 'tiny-table' then, 'other' now"),
    ):
        with pytest.raises(ValueError, match=r"t\.npz: holds a table of another config") as error:
            build_table(config(**changes), path)
        assert wanted in str(error.value)
    assert path.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["t.npz"]


def test_other_configuration_does_not_go_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        build_table(config(), tmp_path / "t.npz", on_progress=stop_after(0))
    with pytest.raises(ValueError, match=r"t\.npz\.progress: .*train\.lr: 0\.025 then, 0\.5 now"):
        build_table(config(train__lr=0.5), tmp_path / "t.npz")


def test_damaged_progress(tmp_path):
    tiny = config()
    with pytest.raises(KeyboardInterrupt):
        build_table(tiny, tmp_path / "t.npz", on_progress=stop_after(3))  # of 4, in two chunks
    progress = tmp_path / "t.npz.progress"
    lines = progress.read_bytes().split(b"\n")
    assert len(lines) == 3
    wrong = re.sub(rb"\.(\d)", lambda m: b".%d" % (9 - int(m[1])), lines[1], count=1)
    progress.write_bytes(b"\n".join([lines[0], wrong, b""]))
    with pytest.raises(ValueError, match=r"progress: damaged \(line 2\); delete it to begin anew"):
        build_table(tiny, tmp_path / "t.npz")
    progress.write_bytes(b"\n".join([*lines[:2], lines[1], b""]))  # the same trainings twice
    with pytest.raises(ValueError, match=r"progress: damaged \(record 1\); delete it"):
        build_table(tiny, tmp_path / "t.npz")


def test_name_of_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"t\.json: wanted the name of a table to end in \.npz"):
        build_table(config(), tmp_path / "t.json")


def test_kill(tmp_path):
    """Killed, and typed again: the bytes of the table that nobody killed, but for the seconds."""
    file = write_toml(tmp_path / "c.toml", changed(TABLE, {"table.archs": 24}))
    process = start("build-table", file, "--out", "t.npz", "--memory", 1, cwd=tmp_path)
    wait_for(lambda: lines_in(tmp_path / "t.npz.progress") > 3, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "t.npz").exists()
    resumed = printed(cli("build-table", file, "--out", tmp_path / "t.npz", "--json"))
    whole = printed(cli("build-table", file, "--out", tmp_path / "w.npz", "--json"))
    assert resumed["trainings"] == whole["trainings"] == 2 * resumed["networks"]
    assert contents(tmp_path / "t.npz") == contents(tmp_path / "w.npz")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["c.toml", "t.npz", "w.npz"]


def test_interrupt(tmp_path):
    file = write_toml(tmp_path / "c.toml", changed(TABLE, {"table.archs": 400}))
    process = start("build-table", file, "--out", "t.npz", "--memory", 1, cwd=tmp_path)
    wait_for(lambda: lines_in(tmp_path / "t.npz.progress") >= 3, process)
    second = cli("build-table", file, "--out", tmp_path / "t.npz")
    assert second.exit_code == 1
    assert "t.npz.progress: another process is writing it" in second.stderr
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "interrupted; type the same command again to go on"
    assert "Traceback" not in errors
    assert not (tmp_path / "t.npz").exists()


def test_a_run_takes_a_table_as_truth(tmp_path):
    build_table(config(table__archs=6), tmp_path / "t.npz")
    table = tables.load(tmp_path / "t.npz", NB201, "valid/1")
    assert isinstance(table, tables.TrainingTable)
    assert table.truth_name == "validation accuracy of tiny-table, seed 1"
    assert (table.truth[table.index] == table.valid_accuracy[:, 1]).all()
