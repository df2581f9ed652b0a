import importlib.util
import json
import os
import re
import resource
import signal
import sqlite3
import subprocess
import sys
import types

import numpy as np
import pytest
import typer.main
from tiny_runs import (
    REPOSITORY,
    RUN,
    TABLE,
    changed,
    cli,
    edit_config,
    leftovers,
    lines_in,
    printed,
    refusal,
    start,
    tiny_run,
    wait_for,
    write_toml,
)

import nasfast
from nasfast import cli as module
from nasfast import slow_paths, tables
from nasfast.spaces import NB201

COMMANDS = sorted(typer.main.get_command(module.app).commands)
ARCH = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|"


def write_truth(path, count=6):
    """Values for every second of the 12 architectures of the tiny run, or the first of these."""
    indices = sorted(NB201.to_index(arch) for arch in NB201.sample(12, 0, distinct=True))
    truth = np.full(15625, np.nan)
    truth[indices[::2][:count]] = [n * 7 % 40 / 40 for n in range(count)]
    np.savez(path, toy_accuracy=truth)
    assert len(tables.load(path, NB201, "toy_accuracy").known) == count
    return {"truth.table": str(path), "truth.column": "toy_accuracy"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command):
    result = cli(command, "--help")
    assert result.exit_code == 0
    assert "Example" in result.stdout
    assert f"nasfast {command}" in " ".join(result.stdout.split())


def test_help_of_all():
    result = cli("--help")
    assert result.exit_code == 0
    assert all(command in result.stdout for command in COMMANDS)
    assert "Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted." in " ".join(
        result.stdout.split()
    )
    assert COMMANDS == [
        "build-table", "compare", "enumerate", "experiment", "explain", "finetune", "import",
        "info", "rank", "report", "table", "train", "verify",
    ]  # fmt: skip


def test_version():
    assert cli("--version").stdout == f"{nasfast.__version__}\n"


def test_train_rank_report(tmp_path, monkeypatch):
    """The two commands of the first page, and the report, on a run that takes no time."""
    monkeypatch.chdir(tmp_path)
    write_toml(tmp_path / "c.toml", changed(RUN, write_truth(tmp_path / "truth.npz")))
    train = cli("train", "c.toml")
    assert train.exit_code == 0, train.stderr
    assert "trained: runs/tiny/supernet.safetensors, 6,504 parameters, last epoch: loss " in (
        train.stdout
    )
    assert "next: nasfast rank runs/tiny" in train.stdout
    rank = cli("rank", "runs/tiny")
    assert rank.exit_code == 0, rank.stderr
    lines = rank.stdout.splitlines()
    assert lines[0].startswith("Of 12 architectures in NAS-Bench-201, number ")
    names = [
        "Supernet loss, negated", "Supernet accuracy", "parameter count", "FLOPs",
        "untrained supernet, -loss", "Supernet loss, parameter count held fixed",
    ]  # fmt: skip
    head = "agreement with the ground truth Kendall tau-b 95 % interval Spearman n ties"
    assert " ".join(lines[1].split()) == head
    for line, name in zip(lines[2:-2], names, strict=True):
        assert line.startswith(f"  {name} ") and len(line) == len(lines[1])
        assert line.split()[-2] == "6"
    assert re.fullmatch(
        r"this call: 12 architectures in \d+\.\d\d s \([\d,.]+ architectures/s, "
        r"[\d,.]+ GFLOP/s\), \d+\.\d s in all",
        lines[-2],
    )
    assert lines[-1] == "report: runs/tiny/report.html"
    page = (tmp_path / "runs/tiny/report.html").read_text()
    assert "toy_accuracy" in page
    values = printed(cli("report", "runs/tiny", "--json"))
    assert (tmp_path / "runs/tiny/report.html").read_text() == page
    assert values["headline"] == lines[0]
    assert [row["score"] for row in values["correlations"]] == names
    assert all(row["n"] == 6 for row in values["correlations"])
    assert values["report"] == "runs/tiny/report.html"
    assert values["against_fp32"] is None
    assert "this_call" not in values
    again = printed(cli("train", "c.toml", "--json"))
    assert again["run"] == "runs/tiny"
    assert (again["parameters"], again["epochs"]) == (6504, 2)
    assert leftovers(tmp_path) == []


def test_rank_json_without_truth(tmp_path):
    run = tiny_run(tmp_path / "run", ranked=True)
    values = printed(cli("rank", run, "--json"))
    assert values["correlations"] == []
    assert values["headline"].startswith("Of 12 architectures")
    this_call = values["this_call"]
    assert this_call.pop("elapsed_s") > 0
    assert this_call == {
        "architectures": 0, "architectures_per_s": None, "gflops": None, "computing_s": 0.0,
    }  # fmt: skip
    text = cli("rank", run).stdout.splitlines()[-2]
    assert text.startswith("this call: every architecture had its score, ")


def test_undefined_correlations(tmp_path):
    """A truth of one architecture: no correlation, and still proper output."""
    run, truth = tiny_run(tmp_path / "run"), write_truth(tmp_path / "t.npz", count=1)
    edit_config(run, **{key.replace(".", "__"): value for key, value in truth.items()})
    values = printed(cli("rank", run, "--json"))
    assert values["correlations"][0]["kendall_tau_b"] is None
    assert values["correlations"][0]["interval"] is None
    text = cli("report", run)
    row = text.stdout.splitlines()[2].split()
    assert row == ["Supernet", "loss,", "negated", "undefined", "undefined", "1", "0"]
    assert "nan" not in text.stdout


def test_report_of_a_ranking_that_is_not_complete(tmp_path):
    run = tiny_run(tmp_path / "run", ranked=True)
    with sqlite3.connect(run / "scores.sqlite") as db:
        db.execute("DELETE FROM scores WHERE arch > 8000")
    db.close()
    assert cli("report", run).exit_code == 0
    assert "of 12 architectures are scored so far" in (run / "report.html").read_text()
    assert cli("rank", run).exit_code == 0
    assert "scored so far" not in (run / "report.html").read_text()


# explain, build-table, info.


def test_explain():
    whole = printed(cli("explain", "nb201", "--without", "none", "--without", "avg_pool_3x3",
                        "--channels", 2, "--cells", 1, "--json"))  # fmt: skip
    assert whole["networks"] == 729
    assert [step["merge"] for step in whole["steps"]] == [
        "none", "dead", "identity", "value", "flatten", "sort", "linear",
    ]  # fmt: skip
    assert whole["steps"][0]["lanes"] == 729
    one = cli("explain", "nb201", ARCH, "13", "--image", 8)
    assert one.exit_code == 0, one.stderr
    assert "2 networks, one image of 8x8" in one.stdout
    running = cli("explain", "nb201", 0, "--bn", "running", "--affine")
    assert "cells with running statistics, affine" in running.stdout


def test_explain_agrees_with_the_api():
    values = printed(cli("explain", "nb201", 0, 1, "--json"))
    direct = nasfast.explain(NB201, [NB201.from_index(0), NB201.from_index(1)])
    assert values["title"] == direct.title
    assert values["steps"][-1]["macs"] == direct.steps[-1].macs


def test_build_table(tmp_path):
    file = write_toml(tmp_path / "c.toml", changed(TABLE, {"table.archs": 1, "table.seeds": [3]}))
    out = tmp_path / "t.npz"
    values = printed(cli("build-table", file, "--out", out, "--json"))
    seconds = values.pop("seconds")
    wanted = {"table": str(out), "architectures": 1, "networks": 1, "trainings": 1}
    assert values == wanted
    assert len(tables.load(out, NB201).known) == 1
    again = cli("build-table", file, "--out", out, "--threads", 1, "--memory", 64)
    words = "1 architectures, 1 distinct networks, 1 trainings in"
    assert (again.exit_code, again.stdout) == (0, f"written: {out}: {words} {seconds:.1f} s\n")


def test_options_of_build_table(tmp_path):
    file = write_toml(tmp_path / "c.toml", changed(TABLE, {"table.archs": 1, "table.seeds": [3]}))
    out = tmp_path / "t.npz"
    assert cli("build-table", file, "--out", out, "--precision", "fp64").exit_code == 0
    settings = tables.load(out, NB201).settings
    assert (settings["precision"], settings["backend"]) == ("fp64", "reference")
    other = refusal(cli("build-table", file, "--out", out))
    assert "settings.precision: 'fp64' then, 'fp32' now" in other
    for option, value, message in (
        ("--precision", "fp8", "option: table.precision: Input should be 'fp32', 'tf32', 'bf16'"),
        ("--backend", "gpu", "option: table.backend: Input should be 'auto', 'cpu' or 'reference'"),
        ("--threads", 0, "threads: wanted 1.."),
    ):
        assert refusal(cli("build-table", file, "--out", out, option, value)).startswith(message)


def test_info():
    values = printed(cli("info", "--json"))
    assert values["nasfast"] == nasfast.__version__
    assert values["extensions"] == {"_host": "built", "_ops": "built"}
    assert values["backends"] == ["cpu", "reference"]
    assert values["spaces"] == {
        "nb201": 15_625,
        "nb1shot1-1": 3_702,
        "nb1shot1-2": 12_474,
        "nb1shot1-3": 135_900,
        "nats-sss": 32_768,
    }
    assert values["tables"] == list(tables.shipped())
    cpu = slow_paths.cpu_info()
    assert values["isa"] == {"chosen": cpu.chosen, "not_used": slow_paths.not_used(cpu)}
    assert list(values["kernels"]) == ["fp32", "bf16", "fp64"]
    assert values["kernels"]["fp32"].startswith(f"cpu ({cpu.chosen}): float32 ")
    text = cli("info")
    assert "extensions: _host: built" in text.stdout
    assert f"isa: chosen: {cpu.chosen}; not_used: " in text.stdout
    for name, reason in values["slow_paths"].items():
        assert f"  {name}: {reason}" in text.stdout


def test_info_says_what_is_not_built(monkeypatch):
    def broken(name):
        raise ImportError("undefined symbol: f")

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "nasfast._host", None)
        assert "extensions: _host: not built; run 'make install'" in cli("info").stdout
    stand_in = types.SimpleNamespace(util=importlib.util, import_module=broken)
    monkeypatch.setattr(module.tools, "importlib", stand_in)
    wanted = "\n  _host: built, but cannot be imported (undefined symbol: f)\n"
    assert wanted in cli("info").stdout


# Ctrl-C, a full disk, progress.


def test_interrupt_in_process(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("nasfast.steps.rank_run", interrupt)
    result = cli("rank", tiny_run(tmp_path / "run"))
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "interrupted; type the same command again to go on"
    assert result.stdout == ""


def test_interrupt_of_what_begins_anew(monkeypatch):
    """No command is promised to go on that cannot."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("nasfast.cli.tables.import_table", interrupt)
    result = cli("import", "table", "source")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, "interrupted")


def test_interrupt(tmp_path):
    """Ctrl-C during training: 130, one line, and the epochs so far are kept."""
    file = write_toml(tmp_path / "c.toml", changed(RUN, {"train.epochs": 100_000}))
    process = start("train", file, "--run", "run", cwd=tmp_path)
    wait_for(lambda: lines_in(tmp_path / "run" / "training.jsonl") >= 2, process)
    os.killpg(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert out == ""
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "interrupted; type the same command again to go on"
    assert (tmp_path / "run" / "training.safetensors").exists()
    assert leftovers(tmp_path) == []


def test_full_disk_while_training(tmp_path):
    """A limit on the size of files stands for a full disk: the state after an epoch is too big."""
    file = write_toml(tmp_path / "c.toml", RUN)

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    # -B: under such a limit Python would leave half-written byte code beside the package.
    done = subprocess.run(
        [sys.executable, "-B", "-m", "nasfast", "train", str(file), "--run", "run"],
        cwd=tmp_path, preexec_fn=limit, capture_output=True, text=True,
        env={"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "training.safetensors: not written (" in done.stderr
    assert not (tmp_path / "run" / "training.safetensors").exists()


def test_train_takes_backend_precision_and_threads(tmp_path):
    """Backend and precision become part of the run's configuration, threads do not."""
    file, run = write_toml(tmp_path / "c.toml", RUN), tmp_path / "run"
    options = ("--precision", "bf16", "--backend", "cpu", "--threads", "1")
    assert cli("train", file, "--run", run, *options).exit_code == 0
    config = json.loads((run / "config.json").read_text())
    assert (config["train"]["precision"], config["train"]["backend"]) == ("bf16", "cpu")
    (entry,) = json.loads((run / "environment.json").read_text())
    assert (entry["command"], entry["backend"], entry["precision"]) == ("train", "cpu", "bf16")
    assert entry["isa"] and entry["threads"] == 1
    again = refusal(cli("train", file, "--run", run))
    assert "train.precision: 'bf16' then, 'fp32' now" in again
    assert cli("rank", run).exit_code == 0
    assert f"bf16 by cpu ({entry['isa']})" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--backend", "gpu"), "option: train.backend: Input should be 'auto', 'cpu', 'cuda' or"),
        (("--precision", "bf16", "--backend", "reference"), "option: train.precision: no training"),
        (("--threads", "4096"), "--threads takes another number for this command"),
    ],
)
def test_train_options_that_do_not_fit(tmp_path, option, message):
    file = write_toml(tmp_path / "c.toml", RUN)
    assert message in refusal(cli("train", file, "--run", tmp_path / "run", *option))
