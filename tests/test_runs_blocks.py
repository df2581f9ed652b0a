# SPDX-License-Identifier: MIT
"""Whole runs in a space of choice blocks: from a configuration to a report."""

import functools
import html
import json
import tomllib

import numpy as np
import pytest
import torch
from tiny_runs import REPOSITORY, RUN, changed, cli, printed, refusal, scores, write_toml

from nasfast import Supernet, evaluate, joint_forward, load
from nasfast.config import ConfigError, RunConfig, load_config, parse_config
from nasfast.cost import stand_alone_cost
from nasfast.data import batches
from nasfast.runs import Run
from nasfast.spaces import NB1SHOT1_1
from nasfast.tables.hashes import space_hashes

BLOCKS = changed(
    RUN,
    {
        "supernet.space": "nb1shot1-1",
        "train.clip": 5.0,
        "rank.archs": 40,
        "rank.bn": "running",
        "finetune.batch_size": 16,
    },
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that is trained and ranked, with ground truth by hash for two of three cells."""
    here = tmp_path_factory.mktemp("blocks")
    hashes = np.unique(space_hashes(NB1SHOT1_1), axis=0)
    kept = hashes[np.arange(len(hashes)) % 3 > 0]
    np.savez(here / "truth.npz", hash=kept, test=np.linspace(0.8, 0.95, len(kept)))
    values = changed(BLOCKS, {"truth.table": str(here / "truth.npz"), "truth.column": "test"})
    config = write_toml(here / "run.toml", values)
    for command in (("train", config, "--run", here / "run"), ("rank", here / "run")):
        assert cli(*command).exit_code == 0
    return here / "run"


def test_what_is_left_out_is_as_published():
    config = parse_config(changed(BLOCKS, {"supernet.cells_per_stage": None}), RunConfig)
    shape = config.supernet_config(10, 1)
    assert (shape.cells_per_stage, shape.affine, shape.track) == (3, True, True)
    assert (shape.last_affine, shape.last_track, shape.channels) == (False, True, 2)
    own = parse_config(changed(BLOCKS, {"supernet.affine": False}), RunConfig)
    assert not own.supernet.affine and own.supernet.track
    again = parse_config(json.loads(own.model_dump_json()), RunConfig)
    assert again == own
    nb201 = parse_config(RUN, RunConfig).supernet_config(10, 1)
    assert not nb201.affine and not nb201.track and nb201.last_affine


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"supernet.space": "nats-sss"},
            r"supernet.space: wanted one whose cells are searched \(nb",
        ),
        ({"supernet.space": "nb1shot1-4"}, "nearest: nb1shot1"),
        ({"supernet.space": 3}, "supernet.space"),
        ({"supernet.weights_on": "node"}, "weights_on: wanted 'edge' in nb1shot1-1"),
        ({"supernet.afine": True}, "nearest: affine"),
        ({"rank.archs": 3_703}, "rank.archs: wanted at most the 3702 allowed, got 3703"),
        ({"rank.without": ["maxpool3x3"], "rank.archs": 3_702}, "rank.archs: wanted at most the"),
        ({"train.without": ["maxpool"]}, "train.without: unknown operation 'maxpool'"),
        ({"train.sampler": "fair", "train.paths": 2}, "multiple of the 3 operations of a block"),
    ],
    ids=str,
)
def test_wrong_configurations(changes, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(changed(BLOCKS, changes), RunConfig)


@pytest.mark.parametrize("name", ["nb1shot1_digits", "nb1shot1_cifar10"])
def test_shipped_configurations(name):
    config = load_config(REPOSITORY / "configs" / f"{name}.toml", RunConfig)
    assert config.name == name
    text = (REPOSITORY / "configs" / f"{name}.toml").read_text()
    assert "bn" in tomllib.loads(text)["rank"]  # said, not left to the default


def test_scores_are_those_of_the_interface(folder):
    run = Run.open(folder)
    indices, losses, accuracies = scores(folder)
    assert len(indices) == 40 and indices == sorted(indices)
    stream = batches(run.splits().valid, 24, seed=0)
    archs = NB1SHOT1_1.from_indices(indices)
    found = evaluate(load(folder), archs, stream, bn="running", threads=1)
    assert found.loss.tolist() == losses and found.accuracy.tolist() == accuracies


def test_the_untrained_control_is_of_those_with_a_truth(folder):
    run = Run.open(folder)
    known = run.truth().known
    indices = scores(folder)[0]
    control = scores(folder, "untrained")[0]
    assert control == [k for k in indices if k in set(known.tolist())]
    assert 0 < len(control) < 40


def test_the_report(folder):
    found = printed(cli("report", folder, "--json"))
    page = (folder / "report.html").read_text()
    assert found["report"] == str(folder / "report.html")
    assert "NAS-Bench-1Shot1, search space 1" in page
    # Ten cells, blocks in the style of their operations, in words for those who cannot see them.
    assert page.count('aria-label="Cell with blocks ') == 10
    assert "weights on blocks" in page and "network of NAS-Bench-101" in page
    best = sorted(zip(scores(folder)[1], scores(folder)[0], strict=True))[:10]
    for _, index in best:
        assert str(NB1SHOT1_1.from_index(index)) in html.unescape(page.replace("<wbr>", ""))
    run = Run.open(folder)
    cost = stand_alone_cost(
        run.shape(run.splits()), NB1SHOT1_1.from_indices(scores(folder)[0]), height=8, width=8
    )
    asked = page.partition("As asked for")[2].partition("</tr>")[0]
    assert ">40<" in asked.replace("\n", "")
    assert cost.flops.min() > 0
    assert "on at least one block" in page


def test_scores_verify(folder):
    result = cli("verify", folder, "--archs", "6")
    assert result.exit_code == 0, result.output
    assert "all within the rule" in result.output


def test_fine_tuning_goes_on_where_it_stopped(folder):
    options = ("finetune", folder, "--archs", 4, "--steps", 3, "--json")
    first = printed(cli(*options))
    again = printed(cli(*options))
    assert first["estimators"] and again["estimators"] == first["estimators"]
    assert first["this_call"]["steps"] > 0 == again["this_call"]["steps"]


def test_a_ranking_that_stops_when_it_knows_enough(folder):
    found = printed(cli("rank", folder, "--until", "top-3", "--json"))
    indices, losses, _ = scores(folder)
    best = [k for _, k in sorted(zip(losses, indices, strict=True))[:3]]
    assert {row["index"] for row in found["best"]} == set(best)
    assert all(NB1SHOT1_1.from_string(row["arch"]) for row in found["best"])


def test_a_whole_space_is_ranked_by_list_index(tmp_path):
    values = changed(BLOCKS, {"rank.archs": None, "rank.batch_size": 48, "train.epochs": 1})
    config = write_toml(tmp_path / "run.toml", values)
    assert cli("train", config, "--run", tmp_path / "run").exit_code == 0
    assert cli("rank", tmp_path / "run").exit_code == 0
    assert scores(tmp_path / "run")[0] == list(range(3_702))


@functools.cache
def explained(*options):
    return printed(cli("explain", *options, "--json"))


def test_explain():
    whole = explained("nb1shot1-1", "--channels", "2", "--image", "8")
    assert (whole["networks"], whole["raw_encodings"]) == (3_702, 14_580)
    assert [step["merge"] for step in whole["steps"]] == ["dead", "identity", "value"]
    assert "affine" in whole["title"] and "no affine" not in whole["title"]
    arch = str(NB1SHOT1_1.from_index(5))
    some = explained("nb1shot1-1", arch, "7", "--channels", "2", "--image", "8")
    assert some["networks"] == 2 and "raw_encodings" not in some
    masked = explained("nb1shot1-1", "--without", "maxpool3x3", "--channels", "2", "--image", "8")
    assert masked["networks"] == len(NB1SHOT1_1.enumerate(NB1SHOT1_1.mask(["maxpool3x3"])))
    assert "wanted one whose cells are searched" in refusal(cli("explain", "nats-sss"))


def test_candidates_of_blocks_are_not_mixed():
    supernet = Supernet.create(parse_config(BLOCKS, RunConfig).supernet_config(10, 1), seed=0)
    images = torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match="operations on edges, which can be mixed, got nb1shot1-1"):
        joint_forward(supernet, images, torch.ones(4, 3))
