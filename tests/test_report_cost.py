# SPDX-License-Identifier: MIT
"""The cost in a report: time is summed over calls, and merging is what explain counts."""

import json
import sqlite3

import pytest
from test_report import check_stands_alone, make_report, written
from tiny_runs import cli, edit_config, tiny_run

from nasfast.cost import stand_alone_cost
from nasfast.cost_summary import cost_report
from nasfast.explain import explain
from nasfast.report import CostReport, MergeRow, WorkRow
from nasfast.report.tables import duration
from nasfast.runs import Run
from nasfast.scoring import score_settings
from nasfast.steps import FP32_SAMPLE, rank_run
from nasfast.store import ScoreStore
from nasfast.summary import report_run


def work_of(run):
    with ScoreStore(run.score_file, score_settings(run, run.supernet(run.splits()))) as store:
        return store.work()


def remove(run, where):
    with sqlite3.connect(run.score_file) as db:
        db.execute(f"DELETE FROM {where}")
    db.close()


def costs(run, took):
    supernet, archs = run.supernet(run.splits()), run.archs()
    cost = stand_alone_cost(supernet.config, archs, height=8, width=8)
    return cost_report(run, supernet, archs, cost, took, None)


def test_section(tmp_path):
    cost = CostReport(
        "On a machine.",
        (WorkRow("Training, 3 epochs", None, 12.5),
         WorkRow("Scoring", 15_625, 10.0, macs=4 * 10**11),
         WorkRow("Fine-tuning", 200, 300.0, steps=20_000)),
        (MergeRow("As asked for", 15_625, 4 * 10**9), MergeRow("Merged", 6_466, 10**9)),
    )  # fmt: skip
    _, text = written(make_report(40, cost=cost), tmp_path)
    words = check_stands_alone(text).words
    assert "Cost On a machine. Work Architectures Steps Time A second GFLOP/s" in words
    for row in (
        "Training, 3 epochs 12.5 s",
        "Scoring 15,625 10.0 s 1,562 architectures 80.0",
        "Fine-tuning 200 20,000 5.0 min 66.7 steps",
        "As asked for 15,625 4.000 100 %",
        "Merged 6,466 1.000 25 %",
    ):
        cells = row.replace(" ", "")
        assert cells in words.replace(" ", "").replace("\N{NARROW NO-BREAK SPACE}", ""), row
    assert "<h2>Cost</h2>" not in written(make_report(40), tmp_path)[1]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.04, "0.0 s"), (119.0, "119.0 s"), (600.0, "10.0 min"), (9e3, "2.5 h")]
)
def test_duration(seconds, words):
    assert duration(seconds) == words


def test_time_of_several_calls_adds_up(tmp_path):
    run = Run.open(tiny_run(tmp_path / "run"))
    first = rank_run(run)
    once = work_of(run)["supernet"]
    assert once == {
        "archs": 12, "macs": first.macs, "computing_s": pytest.approx(first.computing_s),
    }  # fmt: skip
    remove(run, "scores WHERE arch > 8000")
    second = rank_run(run)
    assert 0 < second.archs < 12
    twice = work_of(run)["supernet"]
    assert twice["archs"] == 12 + second.archs
    assert twice["computing_s"] == pytest.approx(first.computing_s + second.computing_s)
    rank_run(run)  # nothing is left
    assert work_of(run)["supernet"] == twice
    (training, scoring) = costs(run, work_of(run)).work
    assert (training.name, training.archs) == ("Training, 2 epochs", None)
    assert (scoring.name, scoring.archs, scoring.macs) == (
        "Scoring by the supernet", twice["archs"], twice["macs"],
    )  # fmt: skip
    page = " ".join(report_run(run).path.read_text().split())
    assert f"Scoring by the supernet</th><td>{twice['archs']}</td>" in page
    assert "with 1 thread" not in page and "1 thread, backend cpu (" in page


def test_bf16_and_fine_tuning_have_rows(tmp_path):
    folder = tiny_run(tmp_path / "run")
    edit_config(folder, rank__precision="bf16", finetune__archs=3, finetune__steps=2,
                finetune__batch_size=16)  # fmt: skip
    assert cli("rank", folder).exit_code == 0
    assert cli("finetune", folder).exit_code == 0
    assert set(work_of(Run.open(folder))) == {"supernet", FP32_SAMPLE}
    page = " ".join((folder / "report.html").read_text().split())
    assert "Scoring of the fp32 sample</th><td>12</td>" in page
    assert "Fine-tuning from the supernet</th><td>3</td><td>6</td>" in page


def test_scores_of_earlier_versions_have_no_time(tmp_path):
    run = Run.open(tiny_run(tmp_path / "run", ranked=True))
    remove(run, "meta WHERE key = 'work'")
    run.log_file.unlink()
    assert work_of(run) == {}
    entries = run.environments()
    del entries[1]["isa"], entries[1]["threads"]
    (run.folder / "environment.json").write_text(json.dumps(entries))
    cost = costs(run, {})
    assert cost.work == ()
    assert cost.about.startswith("No time was recorded: an earlier version of nasfast made these")
    assert "No time was recorded" in report_run(run).path.read_text()


def test_merging_is_what_explain_counts(tmp_path):
    run = Run.open(tiny_run(tmp_path / "run"))
    supernet, archs = run.supernet(run.splits()), run.archs()
    asked, merged, shared = costs(run, {}).merging
    steps = explain(supernet.config.spec, archs, config=supernet.config, image=(8, 8)).steps
    assert (asked.networks, asked.macs) == (steps[0].lanes, steps[0].macs)
    assert (merged.networks, merged.macs) == (steps[-1].lanes, steps[-1].macs)
    assert (shared.networks, shared.macs) == (steps[-1].lanes, steps[-1].total_macs)


def test_damaged_bits_leave_out_the_interval_over_images(tmp_path):
    """The report says why, and is written."""
    folder = tiny_run(tmp_path / "run")
    edit_config(folder, truth__table="digits-nb201")
    run = Run.open(folder)
    rank_run(run)
    assert "48 images drawn anew" in report_run(run).path.read_text()
    run.bits_file.write_bytes(b"no bits")
    page = report_run(run).path.read_text()
    assert "There is no interval over images:" in page and "damaged" in page
    run.bits_file.unlink()
    page = report_run(run).path.read_text()
    assert "it is not known which images each architecture classified correctly" in page
    assert not run.bits_file.exists()
