"""Experiments: every configuration checked first, every run resumable, every number as by hand."""

import csv
import json
import math
import signal

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr
from tiny_runs import (
    REPOSITORY,
    RUN,
    changed,
    cli,
    leftovers,
    lines_in,
    printed,
    refusal,
    scores,
    start,
    wait_for,
    write_toml,
)

from nasfast import experiment as driver
from nasfast.config import ConfigError
from nasfast.experiment import run_experiment
from nasfast.experiment_config import load_experiment
from nasfast.run_metrics import METRICS
from nasfast.runs import Run, RunError
from nasfast.spaces import NB201
from nasfast.steps import rank_run

WITHOUT = ["none", "avg_pool_3x3", "nor_conv_1x1"]  # leaves 2^6 architectures
BASE = changed(
    {key: value for key, value in RUN.items() if key != "name"},
    {
        "rank.archs": None, "rank.without": WITHOUT, "finetune.without": WITHOUT,
        "finetune.archs": 6, "finetune.steps": 2, "finetune.batch_size": 24,
        "finetune.control": False,
    },
)  # fmt: skip
GRID = '"train.lr" = [0.02, 0.05]'


def write(path, experiment='name = "tiny"\nseeds = [0, 1]', grid=GRID, **changes):
    """A file of an experiment; changes as of ``tiny_runs.changed``, with __ for a point."""
    write_toml(path, changed(BASE, {k.replace("__", "."): v for k, v in changes.items()}))
    tables = [f"[experiment]\n{experiment}"] if experiment is not None else []
    tables += [f"[experiment.grid]\n{grid}"] if grid is not None else []
    path.write_text("\n".join([path.read_text(), *tables]) + "\n")
    return path


def truth_file(path):
    truth = np.random.default_rng(0).random(NB201.num_archs)
    np.savez(path, accuracy=truth)
    return {"truth__table": str(path), "truth__column": "accuracy"}, truth


def read_csv(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def tables(folder):
    names = ("experiment.md", "experiment.csv", "experiment_points.csv")
    return [(folder / name).read_text() for name in names]


def test_plan(tmp_path):
    path = write(tmp_path / "e.toml", grid='"train.lr" = [0.02, 0.05]\nsupernet.channels = [2, 3]')
    plan = load_experiment(path, tmp_path / "runs")
    assert plan.keys == ("train.lr", "supernet.channels")
    assert plan.steps == ("rank",)
    assert [run.label for run in plan.runs] == [
        f"lr={lr},channels={channels}/seed-{seed}"
        for seed in (0, 1) for lr in (0.02, 0.05) for channels in (2, 3)
    ]  # fmt: skip
    run = plan.runs[-1]
    assert (run.config.train.lr, run.config.supernet.channels, run.config.seed) == (0.05, 3, 1)
    assert run.config.name == "tiny-lr-0.05-channels-3-seed-1"
    assert run.folder == tmp_path / "runs" / "lr=0.05,channels=3" / "seed-1"
    assert load_experiment(path).folder.as_posix() == "runs/tiny"


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "configs").glob("experiment_*.toml")), ids=lambda p: p.name
)
def test_shipped_experiments_are_valid(path):
    assert load_experiment(path).name == path.stem


SEEDS = 'name = "tiny"\nseeds = [0]'


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"experiment": None, "grid": None}, ["key 'experiment.name' is missing"]),
        ({"experiment": 'name = "tiny"'}, ["key 'experiment.seeds' is missing"]),
        ({"experiment": 'name = "a/b"\nseeds = [0]'}, ["experiment.name", "got 'a/b'"]),
        ({"experiment": 'name = "tiny"\nseeds = []'}, ["experiment.seeds", "at least 1 item"]),
        ({"experiment": 'name = "tiny"\nseeds = [0, 1, 0]'},
         ["experiment.seeds: wanted distinct values, got [0, 1, 0]"]),
        ({"experiment": 'name = "tiny"\nseeds = [-1]'}, ["experiment.seeds.0", "got -1"]),
        ({"experiment": f"{SEEDS}\nsteps = []"}, ["experiment.steps", "at least 1 item"]),
        ({"experiment": f'{SEEDS}\nsteps = ["rang"]'}, ["experiment.steps.0", "got 'rang'"]),
        ({"experiment": f'{SEEDS}\nsteps = ["rank", "rank"]'}, ["experiment.steps", "distinct"]),
        ({"experiment": f"{SEEDS}\nsead = 1"}, ["unknown key 'experiment.sead'", "nearest: seeds"]),
        ({"grid": ""}, ["experiment.grid: wanted at least one key"]),
        ({"grid": '"train.lr" = []'}, ["experiment.grid: 'train.lr': wanted a list", "got []"]),
        ({"grid": '"train.lr" = 0.1'}, ["'train.lr': wanted a list", "got 0.1"]),
        ({"grid": '"train.lr" = [0.1, 0.2, 0.1]'}, ["'train.lr': wanted distinct", "0.1 twice"]),
        ({"grid": '"train.lr" = [0.1]\ntrain.lr = [0.2]'}, ["wanted each key once", "'train.lr'"]),
        ({"grid": '"train" = [{lr = 0.1}]'}, ["'train': wanted values of one key, got a section"]),
        ({"grid": '"seed" = [1]'}, ["'seed' is set by experiment.seeds"]),
        ({"grid": '"threads.x" = [1]', "threads": 1},
         ["experiment.grid: 'threads.x': wanted a key of a section"]),
        ({"grid": '"train.lrr" = [0.1]'}, ["lrr=0.1: unknown key 'train.lrr'", "nearest: lr"]),
        ({"grid": '"training.lr" = [0.1]'}, ["lr=0.1: unknown key 'training'", "nearest: train"]),
        ({"grid": '"train.lr" = [0.1, -1.0]'}, ["lr=-1.0: train.lr", "got -1.0"]),
        ({"grid": '"train.lr" = [0.1, "x"]'}, ["lr=x: train.lr", "got 'x'"]),
        ({"grid": '"train.sampler" = ["uniform", "fair"]'}, ["sampler=fair: train.paths"]),
        ({"train__epochs": 0}, ["train.epochs", "got 0"]),
        ({"seed": 3}, ["seed: wanted none beside [experiment]", "experiment.seeds", "got 3"]),
        ({"name": "x"}, ["name: wanted none beside [experiment]", "experiment.name", "got 'x'"]),
        ({"grid": '"rank.batch_size" = [24, 100]'},
         ["batch_size=100: rank.batch_size: wanted at most the 48 valid images", "got 100"]),
        ({"experiment": f'{SEEDS}\nsteps = ["finetune"]', "finetune__batch_size": 100},
         ["finetune.batch_size: wanted at most the 64 train images", "got 100"]),
        ({"truth__table": "no-such-table"}, ["table: 'no-such-table' is neither"]),
        ({"threads": 10_000}, ["threads", "got 10000"]),
    ],
)  # fmt: skip
def test_refused_before_the_first_run(tmp_path, arguments, words):
    path = write(tmp_path / "e.toml", **arguments)
    message = refusal(cli("experiment", path, "--run", tmp_path / "runs"))
    assert [word for word in words if word not in message] == [], message
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("text", "word"), [(None, "not found"), ("x = ", "not valid TOML")])
def test_no_toml(tmp_path, text, word):
    path = tmp_path / "e.toml"
    if text:
        path.write_text(text)
    assert word in refusal(cli("experiment", path))


# Running.


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An experiment that was done without a break, and its truth."""
    folder = tmp_path_factory.mktemp("whole")
    changes, truth = truth_file(folder / "truth.npz")
    experiment = 'name = "tiny"\nseeds = [0, 1]\nsteps = ["rank", "finetune"]'
    path = write(folder / "e.toml", experiment, **changes)
    values = printed(cli("experiment", path, "--run", folder / "runs", "--json"))
    return folder, truth, values


def test_every_run_is_an_ordinary_one(whole):
    folder, _, values = whole
    assert leftovers(folder) == []
    for seed in (0, 1):
        for lr in (0.02, 0.05):
            run = Run.open(folder / "runs" / f"lr={lr}" / f"seed-{seed}")
            assert (run.config.seed, run.config.train.lr) == (seed, lr)
            assert [e["command"] for e in run.environments()] == ["train", "rank", "finetune"]
            assert len(scores(run.folder)[0]) == 64
    assert rank_run(run).archs == 0
    assert [row["state"] for row in values["runs"]] == ["done"] * 4
    assert values["failed"] == {}
    assert values["interval"] == "95 % t interval over seeds"


def test_metrics_of_a_run(whole):
    folder, truth, values = whole
    for row in values["runs"]:
        archs, loss, accuracy = map(np.array, scores(folder / "runs" / row["run"]))
        least = loss == loss.min()
        true = truth[archs.astype(int)]
        records = Run.open(folder / "runs" / row["run"]).records()
        wanted = {
            "tau": kendalltau(-loss, true).statistic,
            "spearman": spearmanr(-loss, true).statistic,
            "best_accuracy": accuracy[least].mean(),
            "best_truth": true[least].mean(),
            "regret": true.max() - true[least].mean(),
            "mean_accuracy": accuracy.mean(),
            "training_loss": records[-1].loss,
        }
        assert {key: row[key] for key in wanted} == pytest.approx(wanted, abs=1e-12)
        assert -1 <= row["sotl_tau"] <= 1
        counts = [row[key] for key in ("architectures", "with_truth", "finetuned")]
        assert counts == [64, 64, 6]


def test_csv_adds_up(whole):
    folder, _, values = whole
    runs = read_csv(folder / "runs" / "experiment.csv")
    points = read_csv(folder / "runs" / "experiment_points.csv")
    assert [(run["run"], run["train.lr"], run["seed"]) for run in runs] == [
        (f"lr={lr}/seed-{seed}", str(lr), str(seed)) for seed in (0, 1) for lr in (0.02, 0.05)
    ]
    for point, plain in zip(points, values["points"], strict=True):
        own = [run for run in runs if run["train.lr"] == point["train.lr"]]
        assert (point["seeds"], plain["settings"]) == ("2", {"train.lr": float(point["train.lr"])})
        for metric in METRICS:
            a, b = (float(run[metric.key]) for run in own)
            mean, std = (a + b) / 2, abs(a - b) / math.sqrt(2)
            half = math.tan(0.475 * math.pi) * std / math.sqrt(2)
            wanted = [mean, std, mean - half, mean + half, 2]
            names = ("mean", "std", "low", "high", "n")
            got = [float(point[f"{metric.key}_{name}"]) for name in names]
            assert got == pytest.approx(wanted, abs=1e-9)
            assert list(plain["metrics"][metric.key].values()) == got
        (_, one, _), (_, other, _) = (scores(folder / "runs" / run["run"]) for run in own)
        tau = kendalltau(one, other).statistic
        assert float(point["seeds_agree_tau_mean"]) == pytest.approx(tau, abs=1e-12)
        assert (point["seeds_agree_pairs"], point["seeds_agree_common"]) == ("1", "64")


def test_markdown_says_what_csv_says(whole):
    folder, _, values = whole
    text = (folder / "runs" / "experiment.md").read_text()
    tau = values["points"][0]["metrics"]["tau"]
    assert f"{tau['mean']:.3f} ± {tau['std']:.3f}" in text
    assert f"{tau['low']:.3f} to {tau['high']:.3f}" in text
    assert "4 of 4 runs done: 2 grid points, seeds 0, 1." in text
    assert "Truth: accuracy." in text
    assert "95 % t interval over seeds" in text
    pairs = values["across_supernets"]
    assert [row["n"] for row in pairs] == [4] * 7
    columns = [[run[key] for run in values["runs"]] for key in pairs[0]["metrics"]]
    assert pairs[0]["metrics"] == ["training_loss", "tau"]
    assert pairs[0]["spearman"] == pytest.approx(spearmanr(*columns).statistic, abs=1e-12)


def test_done_runs_are_not_done_again(whole, monkeypatch):
    folder, _, _ = whole
    before = tables(folder / "runs")
    log = folder / "runs" / "lr=0.02" / "seed-0" / "training.jsonl"
    stamp = log.stat().st_mtime_ns
    written = []
    write_tables = driver.write_tables
    monkeypatch.setattr(driver, "write_tables", lambda r: written.append(1) or write_tables(r))
    result = cli("experiment", folder / "e.toml", "--run", folder / "runs")
    assert result.exit_code == 0, result.stderr
    assert before[0] in result.stdout
    assert (tables(folder / "runs"), log.stat().st_mtime_ns) == (before, stamp)
    assert written == [1]


def test_killed(tmp_path):
    """SIGKILL in a training; the same command again ends with the bytes of an unbroken one."""
    path = write(tmp_path / "e.toml", grid=None, train__epochs=20)
    process = start("experiment", "e.toml", "--run", "killed", cwd=tmp_path)
    log = tmp_path / "killed" / "base" / "seed-1" / "training.jsonl"
    wait_for(lambda: lines_in(log) >= 3, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert "1 of 2 runs done" in tables(tmp_path / "killed")[0]
    assert lines_in(log) < 20
    assert run_experiment(load_experiment(path, tmp_path / "killed")).failed == {}
    run_experiment(load_experiment(path, tmp_path / "unbroken"))
    assert tables(tmp_path / "killed") == tables(tmp_path / "unbroken")
    assert leftovers(tmp_path) == []


def test_a_run_that_fails_stops_no_other(tmp_path):
    path = write(tmp_path / "e.toml", grid='"train.lr" = [1e30, 0.05]')
    result = cli("experiment", path, "--run", tmp_path / "runs")
    assert result.exit_code == 1
    for seed in (0, 1):
        failed = f"failed: {tmp_path / 'runs'}/lr=1e+30/seed-{seed}: "
        assert failed in result.stderr
    assert "2 of 4 runs done" in result.stdout
    assert "n/a" in result.stdout
    states = {row["run"]: row["state"] for row in read_csv(tmp_path / "runs" / "experiment.csv")}
    assert states == {
        f"lr={lr}/seed-{seed}": state
        for seed in (0, 1) for lr, state in (("1e+30", "failed"), ("0.05", "done"))
    }  # fmt: skip
    values = json.loads(cli("experiment", path, "--run", tmp_path / "runs", "--json").stdout)
    assert sorted(values["failed"]) == ["lr=1e+30/seed-0", "lr=1e+30/seed-1"]
    assert values["points"][0]["seeds"] == 0
    assert values["points"][0]["metrics"]["training_loss"]["mean"] is None


def test_a_failed_run_is_tried_again(tmp_path, monkeypatch):
    plan = load_experiment(write(tmp_path / "e.toml", grid=None), tmp_path / "runs")

    def fail(run, **options):
        if run.config.seed == 0:
            raise OSError("disk gone")
        return rank_run(run, **options)

    monkeypatch.setattr(driver, "rank_run", fail)
    seen = []
    results = run_experiment(plan, on_progress=lambda *told: seen.append(told))
    assert results.failed == {"base/seed-0": "disk gone"}
    assert list(results.runs) == ["base/seed-1"]
    assert "Failed:\n\n- base/seed-0: disk gone\n" in tables(tmp_path / "runs")[0]
    assert seen[:2] == [(0, 2, "base/seed-0"), (0, 2, "base/seed-0 train 1/2")]
    assert seen[-1] == (1, 2, "base/seed-1 rank, supernet 64/64")
    monkeypatch.setattr(driver, "rank_run", rank_run)
    results = run_experiment(plan)
    assert (results.failed, list(results.runs)) == ({}, ["base/seed-0", "base/seed-1"])
    run_experiment(load_experiment(tmp_path / "e.toml", tmp_path / "unbroken"))
    assert tables(tmp_path / "runs") == tables(tmp_path / "unbroken")


def test_a_fault_of_ours_is_named_by_its_kind(tmp_path, monkeypatch):
    def fail(run, **options):
        raise KeyError("loss")

    monkeypatch.setattr(driver, "train_run", fail)
    plan = load_experiment(write(tmp_path / "e.toml", grid=None), tmp_path / "runs")
    assert list(run_experiment(plan).failed.values()) == ["KeyError: 'loss'"] * 2


def test_interruption_is_no_failure(tmp_path, monkeypatch):
    def interrupt(run, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(driver, "rank_run", interrupt)
    result = cli("experiment", write(tmp_path / "e.toml"), "--run", tmp_path / "runs")
    assert result.exit_code == 130
    assert "type the same command again" in result.stderr


def test_one_seed_and_no_grid(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = 'name = "one"\nseeds = [7]\nsteps = ["finetune"]'
    result = cli("experiment", write(tmp_path / "e.toml", steps, None))
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "runs" / "one" / "base" / "seed-7" / "finetune.sqlite").is_file()
    (row,) = read_csv(tmp_path / "runs" / "one" / "experiment.csv")
    assert (row["architectures"], row["finetuned"], row["tau"]) == ("0", "6", "")
    shown = [line.split("|")[1:-1] for line in result.stdout.splitlines() if "| base" in line]
    assert [cell.strip() for cell in shown[0]][:2] == ["base", "1"]
    assert "±" not in shown[0][2] and shown[1][2].strip() == "n/a"


def test_other_configurations_and_folders_are_refused(whole, tmp_path):
    folder, _, _ = whole
    text = (folder / "e.toml").read_text()
    (tmp_path / "e.toml").write_text(text.replace("batch_size = 32", "batch_size = 16"))
    message = refusal(cli("experiment", tmp_path / "e.toml", "--run", folder / "runs"))
    assert "train.batch_size: 32 then, 16 now" in message
    run = folder / "runs" / "lr=0.05" / "seed-0"
    with pytest.raises(RunError, match=r"seed-0: is a run, not an experiment.*--run"):
        run_experiment(load_experiment(folder / "e.toml", run))


def test_more_seeds_join_later(tmp_path):
    run_experiment(load_experiment(write(tmp_path / "e.toml", grid=None), tmp_path / "runs"))
    more = write(tmp_path / "e.toml", 'name = "tiny"\nseeds = [0, 1, 2]', None)
    (row,) = run_experiment(load_experiment(more, tmp_path / "runs")).points()
    assert (row.seeds, row.agreement.pairs, row.agreement.common) == (3, 3, 64)


def test_configuration_errors_are_of_one_kind(tmp_path):
    with pytest.raises(ConfigError, match=r"e\.toml: seed: wanted none"):
        load_experiment(write(tmp_path / "e.toml", seed=1))
