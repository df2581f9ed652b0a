"""``nasfast rank --until``: the answer is that of the whole ranking, with less work."""

import json

import numpy as np
import pytest
from tiny_runs import cli, edit_config, printed, refusal, scores, tiny_run

from nasfast.anytime import FIRST_LOOK, Goal, looks
from nasfast.anytime_run import rank_until
from nasfast.runs import Run
from nasfast.spaces import NB201

MINIBATCHES = 24  # of two images


@pytest.fixture
def run(tmp_path):
    folder = tiny_run(tmp_path / "run")
    edit_config(folder, rank__batch_size=2, rank__archs=30)
    return folder


def truth_table(path):
    accuracy = np.random.default_rng(0).random(NB201.num_archs)
    accuracy[::2] = np.nan
    np.savez(path, accuracy=accuracy)
    return str(path)


def until(folder, goal):
    return rank_until(Run.open(folder), Goal.parse(goal))


def test_all_minibatches_give_the_ranking(run):
    """Nothing can be told apart at this confidence: everything is scored, as ``rank`` scores it."""
    outcome = until(run, "top-3 at 99.9999999999%")
    assert outcome.last.minibatches == outcome.minibatches == MINIBATCHES
    assert outcome.spared == 0.0
    assert cli("rank", run, "--json").exit_code == 0
    archs, loss, _ = scores(run)
    order = np.argsort(loss, kind="stable")
    assert outcome.last.archs.tolist() == np.array(archs)[order[:3]].tolist()
    assert outcome.last.loss.tolist() == pytest.approx(
        np.array(loss)[order[:3]].tolist(), abs=1e-12
    )


def test_stops_early(run):
    """With little confidence asked for: members come from fewer minibatches than there are."""
    edit_config(run, rank__archs=6)
    outcome = until(run, "top-1 at 1%")
    assert len(outcome.last.archs) == 1
    assert FIRST_LOOK <= outcome.last.minibatches < MINIBATCHES
    assert 0.0 < outcome.spared < 1.0
    assert outcome.work.archs > 0


def test_an_answer_is_not_computed_twice(run):
    first = until(run, "top-4 at 50%")
    again = until(run, "top-4 at 50%")
    assert again.work.archs == 0
    assert again.last.archs.tolist() == first.last.archs.tolist()
    assert again.spared == first.spared
    # Another goal goes on from what is there.
    assert until(run, "top-4 at 99%").work.archs < len(looks(MINIBATCHES)) * 30


def test_tau(run, tmp_path):
    edit_config(run, truth__table=truth_table(tmp_path / "t.npz"), truth__column="accuracy")
    outcome = until(run, "tau ±0.9")
    assert outcome.last.minibatches < MINIBATCHES
    assert outcome.last.tau.low <= outcome.last.tau.value <= outcome.last.tau.high
    assert outcome.last.tau.half_width <= 0.9
    assert all(index % 2 == 1 for index in outcome.last.archs)  # those with a truth
    exact = until(run, "tau ±0.0001")
    assert exact.last.minibatches == MINIBATCHES
    assert exact.last.tau.low == exact.last.tau.high == exact.last.tau.value


def test_threads_and_memory_change_nothing(run, tmp_path):
    other = tiny_run(tmp_path / "other")
    edit_config(other, rank__batch_size=2, rank__archs=30, rank__memory_mib=1)
    one, two = until(run, "top-4 at 50%"), until(other, "top-4 at 50%")
    assert one.last.archs.tolist() == two.last.archs.tolist()
    assert one.last.loss.tolist() == two.last.loss.tolist()


def test_command(run):
    found = printed(cli("rank", run, "--until", "top-2 at 60%", "--json"))
    assert found["until"] == "top-2 at 60%"
    assert len(found["best"]) == 2
    assert NB201.to_index(NB201.from_string(found["best"][0]["arch"])) == found["best"][0]["index"]
    text = cli("rank", run, "--until", "top-2 at 60%").stdout
    assert text.startswith("top-2 at 60%: the best 2 of 30 architectures are known\nafter ")
    assert not (run / "scores.sqlite").exists()


@pytest.mark.parametrize(
    ("goal", "changes", "wanted"),
    [
        ("best", {}, "until: wanted 'tau ±0.01', 'top-10', either with ' at 99%', got 'best'"),
        ("top-31", {}, "until: wanted top-31 of 30 architectures"),
        ("tau ±0.1", {}, "until: tau ±0.1 at 95% needs a ground truth, and"),
        (
            "top-3", {"rank__batch_size": 20, "rank__last_batch": "keep"},
            "rank.last_batch: minibatches of [8, 20] images cannot be compared",
        ),
    ],
)  # fmt: skip
def test_bad_input(run, goal, changes, wanted):
    edit_config(run, **changes)
    assert refusal(cli("rank", run, "--until", goal)).startswith(wanted)
    assert not (run / "until.sqlite").exists()


def test_other_settings_are_refused(run):
    until(run, "top-2 at 60%")
    edit_config(run, rank__bn="running")
    message = refusal(cli("rank", run, "--until", "top-2"))
    assert "running statistics" in message or "made under other settings" in message
    edit_config(run, rank__bn="batch", rank__batch_size=4)
    assert "holds rounds made under other settings" in refusal(cli("rank", run, "--until", "top-2"))
    assert json.loads((run / "config.json").read_text())["rank"]["batch_size"] == 4
