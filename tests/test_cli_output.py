# SPDX-License-Identifier: MIT
"""Progress and results of a ranking on the command line, and its options."""

import io
import json
import re
import sqlite3

import pytest
import rich.console
from tiny_runs import cli, edit_config, printed, refusal, tiny_run

from nasfast import __version__, slow_paths
from nasfast.cli import progress as shown
from nasfast.scoring import Work
from nasfast.steps import FP32_SAMPLE


def test_rank_says_how_fast_it_was(tmp_path):
    """Architectures and operations are those of this call: of the six without a score."""
    run = tiny_run(tmp_path / "run", ranked=True)
    with sqlite3.connect(run / "scores.sqlite") as db:
        db.execute("DELETE FROM scores WHERE arch IN (SELECT arch FROM scores LIMIT 6)")
    db.close()
    said = printed(cli("rank", run, "--json"))["this_call"]
    assert said["architectures"] == 6
    assert said["architectures_per_s"] == pytest.approx(6 / said["computing_s"])
    assert 0 < said["computing_s"] < said["elapsed_s"]
    assert said["gflops"] > 0
    work = Work(archs=4, macs=3 * 10**9, computing_s=2.0)
    assert (work.archs_per_s, work.gflops) == (2.0, 3.0)


def test_rank_options(tmp_path):
    """Options go before the config, which stays; the report goes by the scores."""
    run = tiny_run(tmp_path / "run")
    before = (run / "config.json").read_bytes()
    ranked = cli("rank", run, "--precision", "bf16", "--backend", "cpu", "--memory", 64,
                 "--threads", 1)  # fmt: skip
    assert ranked.exit_code == 0, ranked.stderr
    line = ranked.stdout.splitlines()[1]
    assert re.fullmatch(
        r"bf16 against fp32: Kendall tau-b of the losses \+\d\.\d{3} \(n = 12\), "
        r"accuracies differ by at most [\d.]+ percentage points",
        line,
    )
    assert (run / "config.json").read_bytes() == before
    values = printed(cli("report", run, "--json"))
    assert values["against_fp32"]["n"] == 12 and values["against_fp32"]["precision"] == "bf16"
    assert line.split()[8] == f"{values['against_fp32']['kendall_tau_b']:+.3f}"
    page = (run / "report.html").read_text()
    assert "bf16 against fp32" in page
    assert f"<td>cpu ({slow_paths.cpu_info().chosen}), nasfast {__version__}</td>" in page
    assert cli("rank", run, "--precision", "bf16", "--memory", 32).exit_code == 0
    message = refusal(cli("rank", run))
    assert "other settings (rank.precision: 'bf16' then, 'fp32' now)" in message
    last = json.loads((run / "environment.json").read_text())[1]
    assert (last["backend"], last["isa"], last["threads"]) == (
        "cpu", slow_paths.cpu_info().chosen, 1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--precision", "fp16"], "rank.precision: Input should be 'fp32', 'tf32', 'bf16' or"),
        (["--backend", "gpu"], "rank.backend: Input should be 'auto', 'cpu', 'cuda' or 'ref"),
        (["--backend", "reference", "--precision", "bf16"],
         "rank.precision: backend 'reference' has fp32, fp64, got 'bf16'"),
        (["--memory", "0"], "rank.memory_mib: Input should be greater than or equal to 1, got 0"),
        (["--threads", "0"], "threads: Input should be greater than or equal to 1, got 0"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_rank_options(tmp_path, options, wanted):
    run = tiny_run(tmp_path / "run")
    assert refusal(cli("rank", run, *options)).startswith(f"option: {wanted}")
    assert not (run / "scores.sqlite").exists()


def test_threads_that_are_not_there(tmp_path):
    """A config of a larger machine: the option helps."""
    run = tiny_run(tmp_path / "run")
    edit_config(run, threads=100_000)
    message = refusal(cli("rank", run))
    assert re.fullmatch(
        r"threads: wanted 1\.\.\d+ \(processors of this machine\), got 100000; --threads takes "
        "another number for this command",
        message,
    )
    assert not (run / "scores.sqlite").exists()
    assert cli("rank", run, "--threads", 1).exit_code == 0


@pytest.fixture
def screen(monkeypatch):
    """What a terminal of 80 columns gets."""
    text = io.StringIO()
    console = rich.console.Console(file=text, force_terminal=True, width=80)
    monkeypatch.setattr(shown, "ERR", console)
    return text


def plain(screen):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())


def test_progress_shows_rate_and_time_left(screen):
    """On a terminal; with --json nothing is shown."""
    with shown.progress("epochs", quiet=False) as (bar, task):
        bar.update(task, completed=1, total=4)
        bar.update(task, completed=2, total=4)
        bar.refresh()
    assert "epochs" in screen.getvalue()
    assert "2/4" in screen.getvalue()
    assert "/s" in screen.getvalue()
    screen.truncate(0)
    with shown.progress("epochs", quiet=True) as (bar, task):
        bar.update(task, completed=1, total=4)
    assert screen.getvalue().strip("\0") == ""


def test_progress_of_a_ranking(screen):
    """What an earlier call has scored counts for no speed."""
    with shown.ranking_progress(quiet=False) as on_progress:
        on_progress("supernet", 15_000, 15_625, Work())
        on_progress("supernet", 15_625, 15_625, Work(625, 10**12, 0.4))
    assert "15625/15625 1,562/s, 5,000 GFLOP/s 0:00:00 0:00:00" in plain(screen)
    with shown.ranking_progress(quiet=False) as on_progress:
        on_progress("supernet", 12, 12, Work())
        on_progress(FP32_SAMPLE, 0, 12, Work())
        on_progress(FP32_SAMPLE, 12, 12, Work(12, 10**9, 2.0))
    assert re.search(r"sample in fp32 .* 12/12 6\.0/s, 1\.0 GFLOP/s 0:00:00", plain(screen))
