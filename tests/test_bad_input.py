"""Bad input at the command line: one clear message, exit code not 0, nothing half-written."""

import sqlite3

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_runs import (
    RUN,
    TABLE,
    changed,
    cli,
    edit_config,
    leftovers,
    refusal,
    tiny_run,
    write_toml,
)

from nasfast.layout import SupernetConfig
from nasfast.store import ScoreStore
from nasfast.supernet import Supernet

ARCH = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|"

SEARCHED = "nb201, nb1shot1-1, nb1shot1-2, nb1shot1-3"


@pytest.fixture(autouse=True)
def nothing_half_written(tmp_path):
    yield
    assert leftovers(tmp_path) == []


def content(folder):
    return {f.name: f.read_bytes() for f in folder.rglob("*") if f.is_file()}


# Architectures.


@pytest.mark.parametrize(
    ("arch", "wanted"),
    [
        ("nonsense", "wanted 3 groups joined by '+' (one for each node after the input), got 1"),
        (ARCH.replace("|none~0|skip", "none~0|skip"), "node 2: wanted '|op~source|...|', got"),
        (ARCH.replace("|none~0|skip", "|skip"), "node 2: wanted 2 edges, got 1"),
        (ARCH.replace("nor_conv_3x3", "nor_conv_5x5"), "node 1: unknown operation 'nor_conv_5x5'"),
        (ARCH.replace("skip_connect~1", "skip_connect~0"), "node 2: wanted an edge from node 1"),
        ("15625", "index: wanted 0..15624 in nb201, got 15625"),
        ("", "wanted 3 groups"),
    ],
)
def test_architecture(arch, wanted):
    message = refusal(cli("explain", "nb201", arch))
    assert wanted in message
    assert "\n" not in message
    if "unknown" in wanted:
        assert "nearest: nor_conv_3x3" in message


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["nb202"], f"space: wanted one of {SEARCHED}, got 'nb202'; nearest: nb201"),
        (["nb201", "0", "--bn", "batsh"], "batch-norm mode: wanted one of batch, running"),
        (["nb201", "0", "--channels", "0"], "channels: wanted a positive integer, got 0"),
        (["nb201", "0", "--image", "0"], "image: wanted a height and width of at least 1"),
        (["nb201", "--without", "pool"], "without: unknown operation 'pool', wanted some of none"),
        (["nb201", "0", "--without", "none"], "--without: narrows the whole space"),
    ],
)
def test_explain_options(arguments, wanted):
    assert refusal(cli("explain", *arguments)).startswith(wanted)


def test_unknown_option():
    result = cli("train", "--epohcs", 3)
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr


# Configurations.


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"train.epocs": 3}, "c.toml: unknown key 'train.epocs', wanted one of backend, "),
        ({"train.epochs": 0}, "c.toml: train.epochs: Input should be greater than or equal to 1"),
        (
            {"supernet.space": "nb101"},
            f"c.toml: supernet.space: wanted one of {SEARCHED}, got 'nb101'",
        ),
    ],
)
def test_config(tmp_path, monkeypatch, changes, wanted):
    monkeypatch.chdir(tmp_path)
    write_toml(tmp_path / "c.toml", changed(RUN, changes))
    assert refusal(cli("train", "c.toml")).startswith(wanted)
    assert list(content(tmp_path)) == ["c.toml"]


def test_config_syntax(tmp_path):
    (tmp_path / "c.toml").write_text("name = 'x\n")
    assert "c.toml: not valid TOML: " in refusal(cli("train", tmp_path / "c.toml"))
    assert "config file not found: " in refusal(cli("train", tmp_path / "d.toml"))
    message = refusal(cli("build-table", tmp_path / "c.toml", "--out", tmp_path / "t.npz"))
    assert "c.toml: not valid TOML: " in message


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"rank.bn": "running"}, "bn: running statistics asked for cells, but this supernet keeps"),
        ({"rank.batch_size": 49}, "rank.batch_size: wanted at most the 48 valid images of digits"),
        (
            {"rank.batch_size": 36, "rank.last_batch": "error"},
            "rank.batch_size: wanted a divisor of the 48 valid images of digits, got 36",
        ),
        ({"train.batch_size": 65}, "batch_size must be at most the 64 images of digits/train"),
        ({"train.momentum": 0}, "nesterov: needs a momentum above 0, got 0"),
        ({"data.train_images": 1078}, "train_images must be at most the 1077 images"),
        ({"data.path": "x"}, "path must be None for digits, got 'x'"),
        ({"data.name": "cifar10"}, "path must say where the files of cifar10 are, got None"),
        ({"truth.table": "nothing"}, "table: 'nothing' is neither a file nor a shipped table"),
    ],
    ids=str,
)
def test_found_before_training_starts(tmp_path, changes, wanted):
    """What would only fail in ranking is refused before the first epoch, and can be mended."""
    file = write_toml(tmp_path / "c.toml", changed(RUN, changes))
    assert refusal(cli("train", file, "--run", tmp_path / "run")).startswith(wanted)
    assert {f.name for f in (tmp_path / "run").iterdir()} <= {"config.json", "lock"}
    write_toml(file, changed(RUN, {"train.epochs": 1}))
    assert cli("train", file, "--run", tmp_path / "run").exit_code == 0


def test_changed_config(tmp_path):
    run = tiny_run(tmp_path / "run", ranked=True)
    before = content(run)
    file = write_toml(tmp_path / "c.toml", changed(RUN, {"train.lr": 0.2}))
    message = refusal(cli("train", file, "--run", run))
    assert message.endswith(
        "run: holds a run of another configuration (train.lr: 0.05 then, 0.2 now); "
        "give another folder with --run"
    )
    assert content(run) == before


def test_changed_rank_section(tmp_path):
    run = tiny_run(tmp_path / "run", ranked=True)
    edit_config(run, rank__images="test")
    message = refusal(cli("rank", run))
    assert "scores.sqlite: holds scores made under other settings" in message
    assert "rank.images: 'valid' then, 'test' now" in message
    edit_config(run, rank__images="valid")
    assert cli("rank", run).exit_code == 0


def test_diverging_training(tmp_path):
    file = write_toml(tmp_path / "c.toml", changed(RUN, {"train.lr": 1e30, "train.epochs": 9}))
    message = refusal(cli("train", file, "--run", tmp_path / "run"), code=1)
    assert message.startswith("training loss is ")
    assert "at epoch " in message
    assert not (tmp_path / "run" / "supernet.safetensors").exists()


# Run folders.


def test_order_of_commands(tmp_path):
    for command in ("rank", "report"):
        assert "none: not a run folder" in refusal(cli(command, tmp_path / "none"))
    run = tiny_run(tmp_path / "run")
    assert "nothing scored yet; run 'nasfast rank' first" in refusal(cli("report", run))
    (run / "supernet.safetensors").unlink()
    for command in ("rank", "report"):
        assert "not trained yet; run 'nasfast train' first" in refusal(cli(command, run))


def test_report_before_any_score(tmp_path):
    run = tiny_run(tmp_path / "run", ranked=True)
    with sqlite3.connect(run / "scores.sqlite") as db:
        db.execute("DELETE FROM scores")
    db.close()
    assert "nothing scored yet" in refusal(cli("report", run))


@pytest.mark.parametrize("damage", ["{", "", "[]", '{"name": 3}', "\0"])
def test_damaged_config_of_a_run(tmp_path, damage):
    run = tiny_run(tmp_path / "run")
    (run / "config.json").write_text(damage)
    assert "config.json: " in refusal(cli("rank", run))
    file = write_toml(tmp_path / "c.toml", RUN)
    assert "config.json: " in refusal(cli("train", file, "--run", run))


@pytest.mark.parametrize("name", ["environment.json", "training.jsonl"])
def test_other_damaged_files(tmp_path, name):
    run = tiny_run(tmp_path / "run", ranked=True)
    (run / name).write_text("[1")
    assert f"{name}: damaged" in refusal(cli("report", run))
    (run / name).unlink()
    assert cli("report", run).exit_code == 0


# Checkpoints.


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"channels": 3}, "wanted channels=2, got 3"),
        ({"cells_per_stage": 2}, "wanted cells_per_stage=1, got 2"),
        ({"classes": 9, "in_channels": 3}, "wanted classes=10, got 9; wanted in_channels=1, got 3"),
        ({"affine": True}, "wanted affine=False, got True"),
        ({"weights_on": "node"}, "wanted weights_on='edge', got 'node'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("command", ["rank", "report", "train"])
def test_checkpoint_of_another_shape(tmp_path, command, changes, wanted):
    run = tiny_run(tmp_path / "run", ranked=True)
    file = run / "supernet.safetensors"
    shape = {"channels": 2, "cells_per_stage": 1, "in_channels": 1, **changes}
    Supernet.create(SupernetConfig(**shape), 0).save(file)
    arguments = [run]
    if command == "train":
        arguments = [write_toml(tmp_path / "c.toml", RUN), "--run", run]
    message = refusal(cli(command, *arguments))
    assert f"{file}: not the supernet of this run: {wanted}" in message


def rewrite_header(file, old, new):
    """Replace bytes of a safetensors header by as many others."""
    raw = file.read_bytes()
    assert raw.count(old) == 1
    assert len(old) == len(new)
    file.write_bytes(raw.replace(old, new))


def test_checkpoint_of_another_space(tmp_path):
    run = tiny_run(tmp_path / "run")
    rewrite_header(run / "supernet.safetensors", b'\\"nb201\\"', b'\\"nb101\\"')
    message = refusal(cli("rank", run))
    wanted = f"wanted one of {SEARCHED}, got 'nb101'; nearest: nb201"
    assert f"supernet.safetensors: damaged header: space: {wanted}" in message


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_truncated_checkpoint(tmp_path, keep):
    run = tiny_run(tmp_path / "run", ranked=True)
    file = run / "supernet.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    for command in ("rank", "report"):
        assert "supernet.safetensors: not a readable safetensors" in refusal(cli(command, run))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_checkpoint_with_nan(tmp_path, value):
    run = tiny_run(tmp_path / "run")
    supernet = Supernet.load(run / "supernet.safetensors")
    name, tensor = list(supernet.named_tensors())[3]
    with torch.no_grad():
        tensor.view(-1)[0] = value
    supernet.save(run / "supernet.safetensors")
    message = refusal(cli("rank", run))
    assert f"supernet.safetensors: state[{name!r}]: holds NaN or infinity" in message


def test_foreign_checkpoint(tmp_path):
    run = tiny_run(tmp_path / "run")
    save_file({"x": torch.zeros(1)}, str(run / "supernet.safetensors"))
    assert "wanted a supernet written by nasfast" in refusal(cli("rank", run))


# Scores.


@pytest.mark.parametrize(
    "damage",
    [lambda raw: b"\xff" * 64 + raw[64:], lambda raw: raw[:5000], lambda raw: b"scores" * 99],
    ids=["header", "truncated", "other"],
)
@pytest.mark.parametrize("command", ["rank", "report"])
def test_damaged_scores(tmp_path, damage, command):
    run = tiny_run(tmp_path / "run", ranked=True)
    file = run / "scores.sqlite"
    file.write_bytes(damage(file.read_bytes()))
    assert "scores.sqlite: " in refusal(cli(command, run))


def test_disk_error_while_ranking(tmp_path, monkeypatch):
    run = tiny_run(tmp_path / "run")
    make = ScoreStore.__init__

    def on_a_full_disk(self, *arguments):
        make(self, *arguments)
        pages = self._db.execute("PRAGMA page_count").fetchone()[0]
        self._db.execute(f"PRAGMA max_page_count = {pages}")

    edit_config(run, rank__archs=300)
    monkeypatch.setattr(ScoreStore, "__init__", on_a_full_disk)
    message = refusal(cli("rank", run), code=1)
    assert "scores not written (database or disk is full)" in message
    monkeypatch.undo()
    assert cli("rank", run).exit_code == 0


# Truth.


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda f: npz(f, cifar=np.zeros(15625)), "got 'cifar10'; nearest: cifar"),
        (lambda f: npz(f, cifar10=np.zeros(99)), "wanted numbers [15625] in column 'cifar10'"),
        (lambda f: npz(f, cifar10=np.array([{}] * 9)), "not a usable table"),
        (lambda f: f.write_bytes(npz(f, cifar10=np.zeros(15625)).read_bytes()[:900]), "not a usab"),
    ],
    ids=["column", "space", "pickled", "truncated"],
)
def test_truth(tmp_path, make, wanted):
    file = tmp_path / "truth.npz"
    make(file)
    config = write_toml(
        tmp_path / "c.toml",
        changed(RUN, {"truth.table": str(file), "truth.column": "cifar10"}),
    )
    message = refusal(cli("train", config, "--run", tmp_path / "run"))
    assert "truth.npz: " in message
    assert wanted in message
    run = tiny_run(tmp_path / "trained")
    edit_config(run, truth__table=str(file), truth__column="cifar10")
    assert wanted in refusal(cli("rank", run))
    assert not (run / "scores.sqlite").exists()


# What the machine refuses.


def test_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "runs").write_text("mine")
    file = write_toml(tmp_path / "c.toml", RUN)
    message = refusal(cli("train", file, "--run", tmp_path / "runs" / "tiny"), code=1)
    assert message == f"{tmp_path / 'runs' / 'tiny'}: Not a directory"
    assert "exists and is no run folder" in refusal(cli("train", file, "--run", tmp_path / "runs"))
    table = write_toml(tmp_path / "t.toml", TABLE)
    message = refusal(cli("build-table", table, "--out", tmp_path / "runs" / "t.npz"), code=1)
    assert "Not a directory" in message
    message = refusal(cli("build-table", table, "--out", tmp_path / "no" / "t.npz"))
    assert "t.npz.progress" in message
    assert (tmp_path / "runs").read_text() == "mine"


def test_read_only_folder(tmp_path, monkeypatch):
    """As root every folder can be written, so the refusal is made here."""
    run = tiny_run(tmp_path / "run", ranked=True)
    before = content(run)

    def refuse(source, target):
        raise PermissionError(13, "Permission denied", str(target))

    monkeypatch.setattr("nasfast.files.os.replace", refuse)
    file = write_toml(tmp_path / "c.toml", RUN)
    for arguments in (["train", file, "--run", tmp_path / "new"], ["rank", run]):
        message = refusal(cli(*arguments), code=1)
        assert message.endswith(".json: Permission denied")
    message = refusal(cli("report", run), code=1)
    assert message.endswith("Permission denied")
    assert content(run) == before
