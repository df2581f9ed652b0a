# SPDX-License-Identifier: MIT
"""Whole spaces as arrays, and the command that counts and writes them."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from nasfast.cli import app
from nasfast.spaces import NATS_SSS, NB1SHOT1_1, NB201, listing, nb101
from nasfast.spaces.counts import nb101_hashes


def run(*args):
    return CliRunner().invoke(app, ["enumerate", *map(str, args)])


def test_a_space_of_blocks(tmp_path):
    done = run("nb1shot1-1", "--out", tmp_path / "list.npz", "--json")
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout)
    assert values["rows"] == values["counts"]["subnets"] == 3_702
    assert values["counts"]["published"] == 3_702 and values["counts"]["hashes"] == 2_685
    with np.load(tmp_path / "list.npz") as written:
        assert np.array_equal(written["decisions"], NB1SHOT1_1.list_array())
        assert np.array_equal(written["hash"], nb101_hashes(NB1SHOT1_1))
        assert written["arch_str"][-1].decode() == str(NB1SHOT1_1.from_index(3_701))
        assert written["evaluated"].sum() == 2_487
        assert written["op_names"].tolist()[0] == b"maxpool3x3"
    assert [path.name for path in tmp_path.iterdir()] == ["list.npz"]


def test_nb201(tmp_path):
    done = run("nb201", "--out", tmp_path / "list.npz")
    assert done.exit_code == 0, done.output
    for line in ("architectures: 15,625", "connected: 15,284", "isomorphism classes: 6,466"):
        assert line in done.stdout.splitlines()
    with np.load(tmp_path / "list.npz") as written:
        assert written["arch_str"][9].decode() == str(NB201.from_index(9))
        assert written["ops"][9].tolist() == list(NB201.from_index(9).op_indices)


def test_sizes():
    arrays, counts = listing.list_space(NATS_SSS)
    assert counts == {"architectures": 32_768}
    assert arrays["channels"][1].tolist() == [8, 8, 8, 8, 16]


def test_nb101(monkeypatch, tmp_path):
    # The whole list takes seconds; here all cells of up to 5 vertices.
    whole = nb101.enumerate_nb101
    monkeypatch.setattr(nb101, "enumerate_nb101", lambda on_progress: whole(5, on_progress))
    done = run("nb101", "--out", tmp_path / "list.npz")
    assert done.exit_code == 0, done.output
    assert "up to 4 vertices: 91" in done.stdout and "up to 5 vertices: 2,532" in done.stdout
    with np.load(tmp_path / "list.npz") as written:
        assert written["op_names"].tolist() == [name.encode() for name in nb101.OPS]
        for mine, theirs in zip(whole(5)._asdict().items(), whole(5), strict=True):
            assert np.array_equal(written[mine[0]], theirs)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nb102",), "wanted one of nb101, nb201, nb1shot1-1"),
        (("nb201", "--out", "list.txt"), "--out: wanted the name of an .npz file, got 'list.txt'"),
        (("nb201", "--out", "none/list.npz"), "--out: there is no folder 'none' to wr"),
        (("nb201", "--out", ".npz/"), "--out: wanted the name of an .npz file, got '.npz'"),
    ],
)
def test_bad_input(args, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    done = run(*args)
    assert done.exit_code == 2 and message in " ".join(done.output.split())
    assert list(tmp_path.iterdir()) == []


def test_a_list_is_written_as_a_whole_or_not_at_all(monkeypatch, tmp_path):
    def full(*args):
        raise OSError(28, "No space left on device")

    (tmp_path / "list.npz").write_bytes(b"before")
    monkeypatch.setattr("nasfast.files.os.fsync", full)
    done = run("nats-sss", "--out", tmp_path / "list.npz")
    assert done.exit_code == 1 and "No space left on device" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["list.npz"]
    assert (tmp_path / "list.npz").read_bytes() == b"before"
