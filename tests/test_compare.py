"""Runs side by side: what differs, their metrics, and agreement counted by hand."""

import sqlite3
from contextlib import closing

import pytest
from tiny_runs import cli, edit_config, printed, refusal, tiny_run

from nasfast import spaces
from nasfast.compare import compare_runs
from nasfast.runs import Run
from nasfast.spaces import CellSpec, OpKind, OpSpec


def set_losses(run, losses):
    """Give the architectures of a run, in official order, losses by hand; None takes one away."""
    indices = sorted(Run.open(run).config.supernet.spec.to_index(a) for a in Run.open(run).archs())
    with closing(sqlite3.connect(run / "scores.sqlite")) as db, db:
        for index, loss in zip(indices, losses, strict=True):
            where = "WHERE weights = 'supernet' AND arch = ?"
            if loss is None:
                db.execute(f"DELETE FROM scores {where}", (index,))
            else:
                db.execute(f"UPDATE scores SET loss = ? {where}", (loss, index))


@pytest.fixture
def two(tmp_path):
    """Two ranked runs of 12 architectures; the second swaps those in places 10 and 11."""
    a, b = (tiny_run(tmp_path / name, ranked=True) for name in "ab")
    set_losses(a, range(12))
    set_losses(b, [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 9, 11])
    return a, b


def test_agreement_by_hand(two):
    (pair,) = compare_runs(two).pairs
    assert (pair.one, pair.other, pair.common) == (0, 1, 12)
    assert pair.agreement.kendall.value == pytest.approx((65 - 1) / 66, abs=1e-15)  # 12 * 11 / 2
    assert pair.agreement.spearman.value == pytest.approx(1 - 6 * 2 / (12 * 143), abs=1e-12)
    assert pair.agreement.overlap.value == 0.9


def test_only_common_architectures_count(two):
    a, b = two
    set_losses(a, [None, *range(1, 12)])
    set_losses(b, [0, 2, 1, *range(3, 11), None])
    (pair,) = compare_runs(two).pairs
    assert pair.common == 10
    assert pair.agreement.kendall.value == pytest.approx((44 - 1) / 45, abs=1e-15)


def test_nothing_in_common(two):
    a, b = two
    set_losses(a, [*range(6), *[None] * 6])
    set_losses(b, [*[None] * 6, *range(6)])
    (pair,) = compare_runs(two).pairs
    assert (pair.common, pair.agreement) == (0, None)
    values = printed(cli("compare", a, b, "--json"))
    assert values["agreement"][0]["kendall_tau_b"] is None
    assert "n/a" in cli("compare", a, b).stdout


def test_what_differs(two):
    b = two[1]
    edit_config(b, name="other", train__lr=0.1, train__without=["none"])
    edit_config(b, truth={"table": "digits-nb201"})
    found = compare_runs(two)
    assert found.differing == {
        "train.lr": (0.05, 0.1),
        "train.without": ([], ["none"]),
        "truth.table": (None, "digits-nb201"),
    }
    assert found.runs[0].truth_name == "" and found.runs[1].with_truth == 12


def test_printed(two):
    a, b = two
    edit_config(b, train__lr=0.1)
    result = cli("compare", a, b)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[:2] == [f"[1] {a}", f"[2] {b}"]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert ["train.lr", "0.05", "0.1"] in cells
    assert ["architectures ranked", "12", "12"] in cells
    assert ["[1] [2]", "0.970", "0.993", "0.900", "12"] in cells
    values = printed(cli("compare", a, b, "--json"))
    assert values["differing"] == {"train.lr": [0.05, 0.1]}
    assert [row["run"] for row in values["runs"]] == [str(a), str(b)]
    assert values["agreement"][0]["runs"] == [str(a), str(b)]
    assert values["agreement"][0]["top_10_overlap"] == 0.9
    assert values["runs"][0]["tau"] is None


def test_three_runs_make_three_pairs(two, tmp_path):
    third = tiny_run(tmp_path / "c", ranked=True)
    found = compare_runs([*two, third])
    assert [(pair.one, pair.other) for pair in found.pairs] == [(0, 1), (0, 2), (1, 2)]
    assert "differ in nothing but names" in str(found)


def test_bad_input(two, tmp_path):
    a, b = two
    assert "runs: wanted at least 2, got 1" in refusal(cli("compare", a))
    again = tmp_path / "b" / ".." / "a"
    assert f"runs: wanted distinct ones, got {again} twice" in refusal(cli("compare", a, b, again))
    assert "nowhere: not a run folder" in refusal(cli("compare", a, tmp_path / "nowhere"))
    trained = tiny_run(tmp_path / "trained")
    assert "trained: nothing scored yet; run 'nasfast rank' first" in refusal(
        cli("compare", a, trained)
    )
    (b / "supernet.safetensors").unlink()
    assert "b" in refusal(cli("compare", a, b))


def test_different_spaces(two, monkeypatch):
    monkeypatch.setattr(spaces, "_SPACES", dict(spaces._SPACES))  # forgotten after the test
    ops = (OpSpec("conv", OpKind.CONV, 3), OpSpec("skip", OpKind.IDENTITY))
    spaces.register(
        CellSpec(name="pair", title="Pair", num_nodes=2, edges=((0, 1),), ops=ops,
                 stage_widths=(1, 2))
    )  # fmt: skip
    a, b = two
    edit_config(b, supernet__space="pair", rank__archs=2)
    message = refusal(cli("compare", a, b))
    assert message == f"runs: wanted runs of one search space, got nb201 ({a}); pair ({b})"
