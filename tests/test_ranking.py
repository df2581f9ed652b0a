# SPDX-License-Identifier: MIT
"""Rankings in other precisions, on other backends and instruction sets."""

import itertools
import json
import os
import sqlite3

import numpy as np
import pytest
from tiny_runs import edit_config, scores, tiny_run

import nasfast
from nasfast import __version__, cuda_device, data, slow_paths
from nasfast.runs import Run
from nasfast.scoring import as_scored
from nasfast.steps import FP32_SAMPLE, rank_run
from nasfast.store import StoreError
from nasfast.summary import report_run

ISAS = [name for name, reason in slow_paths.cpu_info().missing.items() if not reason]


def ranked(folder, **changes):
    edit_config(tiny_run(folder), **changes)
    run = Run.open(folder)
    rank_run(run)
    return run


def evaluated(run, archs, **options):
    """Scores of the public API on the images of a run."""
    splits = run.splits()
    stream = data.batches(splits.valid, 24, seed=0)
    return nasfast.evaluate(run.supernet(splits), archs, stream, **options)


def tau_b(x, y):
    """Kendall's tau-b, pair by pair."""
    agree = ties_x = ties_y = pairs = 0
    for i, j in itertools.combinations(range(len(x)), 2):
        a, b = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
        agree, pairs = agree + a * b, pairs + 1
        ties_x, ties_y = ties_x + (a == 0), ties_y + (b == 0)
    return agree / np.sqrt((pairs - ties_x) * (pairs - ties_y))


@pytest.mark.parametrize(("backend", "precision"), [("cpu", "bf16"), ("reference", "fp32")])
def test_scores_of_a_backend_by_hand(tmp_path, backend, precision):
    run = ranked(tmp_path / "run", rank__backend=backend, rank__precision=precision)
    direct = evaluated(run, run.archs(), backend=backend, precision=precision)
    assert scores(run.folder)[1] == direct.loss.tolist()


def test_another_backend_or_precision_needs_new_scores(tmp_path):
    run = ranked(tmp_path / "run")
    before = scores(run.folder)
    rank_run(run.with_options(backend="cpu"))  # what "auto" is
    for options, wanted in (
        ({"backend": "reference"}, r"\(rank\.backend: 'cpu' then, 'reference' now\)"),
        ({"precision": "bf16"}, r"\(rank\.precision: 'fp32' then, 'bf16' now\)"),
        ({"precision": "fp64"}, r"rank\.backend: 'cpu' then, 'reference' now; rank\.precision: "),
    ):
        with pytest.raises(StoreError, match=f"under other settings .*{wanted}"):
            rank_run(run.with_options(**options))
    rank_run(run.with_options(memory_mib=16, threads=1))
    assert scores(run.folder) == before


def test_threads_and_memory_change_no_score(tmp_path):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one processor")
    plain = ranked(tmp_path / "plain", rank__archs=100)
    edit_config(tiny_run(tmp_path / "other"), rank__archs=100)
    other = Run.open(tmp_path / "other")
    rank_run(other.with_options(threads=2, memory_mib=4))
    assert scores(other.folder) == scores(plain.folder)


def test_environment_of_a_ranking(tmp_path):
    run = ranked(tmp_path / "run", rank__backend="reference")
    train, rank = run.environments()
    assert (train["command"], train["backend"]) == ("train", "cpu")
    assert (rank["backend"], rank["isa"], rank["threads"]) == ("reference", None, 1)
    ranked(tmp_path / "cpu")
    rank = Run.open(tmp_path / "cpu").environments()[-1]
    assert (rank["backend"], rank["isa"]) == ("cpu", slow_paths.cpu_info().chosen)


def test_another_instruction_set_is_told_once(tmp_path, monkeypatch, caplog):
    """A run may go on elsewhere; the log and the report say so."""
    if len(ISAS) < 2:
        pytest.skip("one instruction set")
    monkeypatch.setenv("NASFAST_ISA", ISAS[0])
    run = ranked(tmp_path / "run")
    monkeypatch.setenv("NASFAST_ISA", ISAS[1])
    rank_run(run)  # nothing is left to be scored
    assert caplog.records == []
    for drop in ("arch < 4000", "arch < 8000"):
        remove(run, drop)
        rank_run(run)
    (record,) = caplog.records
    first, second = (f"cpu ({isa}), nasfast {__version__}" for isa in ISAS[:2])
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        f"{run.score_file}: scores so far come from {first}, the next from {second}: "
        "they round differently"
    )
    page = report_run(run).path.read_text()
    assert f"<td>{first}, {second}</td>" in page


def remove(run, where):
    db = sqlite3.connect(run.score_file, isolation_level=None)
    assert db.execute(f"DELETE FROM scores WHERE {where}").rowcount > 0
    db.close()


# A sample of a ranking in bf16 or tf32 is scored in fp32 too.


NO_CARD = cuda_device.why_not()
ON_CARD = [pytest.mark.cuda, pytest.mark.skipif(bool(NO_CARD), reason=NO_CARD)]


@pytest.mark.parametrize("precision", ["bf16", pytest.param("tf32", marks=ON_CARD)])
def test_few_bits_are_compared_with_fp32(tmp_path, precision):
    run = ranked(tmp_path / "run", rank__precision=precision, rank__archs=60)
    archs = run.archs()
    ours, fp32 = (evaluated(run, archs, precision=p) for p in (precision, "fp32"))
    assert scores(run.folder)[1] == ours.loss.tolist()
    assert scores(run.folder, FP32_SAMPLE)[1:] == [fp32.loss.tolist(), fp32.accuracy.tolist()]
    summary = report_run(run)
    check = summary.precision
    assert check.kendall.n == 60
    assert check.kendall.value == pytest.approx(tau_b(ours.loss, fp32.loss), rel=1e-12)
    assert 0.9 < check.kendall.value < 1
    assert check.accuracy_difference == np.abs(ours.accuracy - fp32.accuracy).max()
    page = " ".join(summary.path.read_text().split())
    assert "Of its architectures 60 were scored in float32 too" in page
    assert f">{check.kendall.value:.3f}, 95&nbsp;% interval " in page


def test_fp32_is_not_compared(tmp_path):
    run = ranked(tmp_path / "run")
    assert scores(run.folder, FP32_SAMPLE)[0] == []
    assert report_run(run).precision is None


def test_sample_of_200(tmp_path):
    """Drawn by the seed from the run's own architectures, scored once, and gone on with."""
    run = ranked(tmp_path / "run", rank__precision="bf16", rank__archs=260)
    sample = scores(run.folder, FP32_SAMPLE)
    assert len(sample[0]) == 200
    wanted = np.random.default_rng(0).choice(260, 200, replace=False)
    assert sample[0] == np.array(scores(run.folder)[0])[np.sort(wanted)].tolist()
    seen = []
    rank_run(run, on_progress=lambda *what: seen.append((*what[:3], what[3].archs)))
    assert seen == [("supernet", 260, 260, 0), (FP32_SAMPLE, 200, 200, 0)]
    remove(run, f"weights = '{FP32_SAMPLE}' AND arch < 8000")
    left = len(scores(run.folder, FP32_SAMPLE)[0])
    assert report_run(run).precision.kendall.n == left
    seen.clear()
    rank_run(run, on_progress=lambda *what: seen.append((*what[:3], what[3].archs)))
    assert seen[1] == (FP32_SAMPLE, left, 200, 0)
    assert seen[-1] == (FP32_SAMPLE, 200, 200, 200 - left)
    assert scores(run.folder, FP32_SAMPLE) == sample


# Options in place of the configuration.


def test_options_leave_the_configuration_alone(tmp_path):
    run = Run.open(tiny_run(tmp_path / "run"))
    other = run.with_options(backend="cpu", precision="bf16", memory_mib=7, threads=3)
    rank = other.config.rank
    assert (rank.backend, rank.precision, rank.memory_mib) == ("cpu", "bf16", 7)
    assert other.config.threads == 3
    assert run.with_options() == run == Run.open(run.folder)
    with pytest.raises(ValueError, match=r"option: rank\.precision: backend 'cpu' has fp32, bf16"):
        run.with_options(backend="cpu", precision="fp64")


def test_a_report_goes_by_the_scores(tmp_path):
    run = Run.open(tiny_run(tmp_path / "run"))
    assert as_scored(run) == run
    rank_run(run.with_options(precision="fp64"))
    rank = as_scored(run).config.rank
    assert (rank.backend, rank.precision) == ("reference", "fp64")
    page = report_run(run).path.read_text()
    assert "<td>fp64</td>" in page
    assert f"<td>reference, nasfast {__version__}</td>" in page
    assert json.loads((run.folder / "config.json").read_text())["rank"]["precision"] == "fp32"
