# SPDX-License-Identifier: MIT
"""Which weights exist, what they are called, and how they go in and out."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import nasfast
from nasfast import Supernet, SupernetConfig
from nasfast.compat.xautodl import from_xautodl, to_xautodl
from nasfast.layout import Layout

SMALL = SupernetConfig(channels=3, cells_per_stage=1, classes=4, in_channels=2)


# Counts of the published models: parameters, entries of a state dict.
@pytest.mark.parametrize(
    ("affine", "track", "params", "entries"),
    [(False, False, 1_692_826, 399), (False, True, 1_692_826, 939), (True, True, 1_699_546, 1_119)],
)
def test_published_counts(affine, track, params, entries):
    supernet = Supernet.create(SupernetConfig(affine=affine, track=track), seed=0)
    assert supernet.num_params == params
    assert len(to_xautodl(supernet)) == entries


def test_published_counts_of_the_generic_model():
    config = SupernetConfig(last_affine=False, last_track=False)
    supernet = Supernet.create(config, seed=0)
    assert supernet.num_params == 1_692_728 - 30  # without its 6 x 5 architecture parameters
    state = to_xautodl(supernet, generic=True)
    assert len(state) == 395 - 1
    assert "_stem.0.weight" in state and "_cells.0.edges.1<-0.2.op.1.bias" in state


def test_published_names_and_shapes():
    shapes = {p.name: p.shape for p in Layout(SupernetConfig(affine=True, track=True)).params}
    assert shapes["stem.0.weight"] == (16, 3, 3, 3)
    assert shapes["cells.0.edges.1<-0.2.op.1.weight"] == (16, 16, 1, 1)
    assert shapes["cells.16.edges.3<-2.3.op.1.weight"] == (64, 64, 3, 3)
    assert shapes["cells.16.edges.3<-2.3.op.2.running_var"] == (64,)
    assert "cells.0.edges.1<-0.2.op.1.bias" not in shapes
    assert shapes["cells.5.conv_a.op.1.weight"] == (32, 16, 3, 3)
    assert shapes["cells.11.downsample.1.weight"] == (64, 32, 1, 1)
    assert shapes["classifier.weight"] == (10, 64)


def test_weights_on_nodes():
    layout = Layout(replace(SMALL, weights_on="node"))
    assert layout.owner_of_edge == (0, 1, 1, 2, 2, 2)
    assert layout.by_name["cells.0.nodes.3.3.op.1.weight"].shape == (3, 3, 3, 3)
    edges = Supernet.create(SMALL, 0).num_params
    nodes = Supernet.create(replace(SMALL, weights_on="node"), 0).num_params
    per_owner = sum((9 + 1) * c * c + 2 * c for c in (3, 6, 12))
    assert edges - nodes == 3 * per_owner


def test_arena_is_aligned_and_tensors_do_not_overlap():
    layout = Layout(SMALL)
    end = 0
    for param in layout.params:
        assert param.offset % 16 == 0 and param.offset >= end
        end = param.offset + param.size
    assert end <= layout.arena_size
    supernet = Supernet.create(SMALL, 0)
    for index, (_, tensor) in enumerate(supernet.named_tensors()):
        tensor.fill_(index)
    for index, (_, tensor) in enumerate(supernet.named_tensors()):
        assert (tensor == index).all()


def test_initial_weights_are_those_of_pytorch_layers():
    supernet = Supernet.create(SupernetConfig(channels=32, cells_per_stage=1), seed=3)
    tensors = dict(supernet.named_tensors())
    for name, fan_in in (("cells.0.edges.1<-0.3.op.1.weight", 288), ("classifier.weight", 128)):
        layer = torch.nn.Conv2d(32, 32, 3) if fan_in == 288 else torch.nn.Linear(128, 10)
        bound = fan_in**-0.5
        assert tensors[name].abs().max() <= bound
        assert layer.weight.abs().max() <= bound  # PyTorch's own bound is the same
        assert tensors[name].std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert (tensors["lastact.0.running_var"] == 1).all()
    assert (tensors["lastact.0.bias"] == 0).all()


def test_same_seed_same_bits():
    a, b, c = (Supernet.create(SMALL, seed).arena for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("weights_on", ["edge", "node"])
@pytest.mark.parametrize("affine", [False, True])
def test_file_round_trip(tmp_path, weights_on, affine):
    config = replace(SMALL, weights_on=weights_on, affine=affine, track=affine)
    supernet = Supernet.create(config, seed=5)
    supernet.save(tmp_path / "s.safetensors", note="x")
    again = Supernet.load(tmp_path / "s.safetensors")
    assert again.config == config and torch.equal(again.arena, supernet.arena)
    assert [f.name for f in tmp_path.iterdir()] == ["s.safetensors"]


def test_load_takes_a_run_folder_or_a_file(tmp_path):
    supernet = Supernet.create(SMALL, seed=5)
    supernet.save(tmp_path / "supernet.safetensors")
    for path in (tmp_path, tmp_path / "supernet.safetensors"):
        assert torch.equal(nasfast.load(path).arena, supernet.arena)
    with pytest.raises(FileNotFoundError, match=r"nowhere/supernet\.safetensors|nowhere"):
        nasfast.load(tmp_path / "nowhere")


def test_state_dict_round_trip_is_a_copy():
    supernet, other = Supernet.create(SMALL, 0), Supernet.create(SMALL, 1)
    state = supernet.state_dict()
    other.load_state_dict(state)
    assert torch.equal(other.arena, supernet.arena)
    state["stem.0.weight"].zero_()
    assert not (supernet.view(supernet.layout.params[0]) == 0).any()


@pytest.mark.parametrize("generic", [False, True])
def test_published_format_round_trip(generic):
    config = replace(SMALL, last_affine=not generic, last_track=not generic)
    supernet = Supernet.create(config, seed=0)
    state = {f"module.{k}": v for k, v in to_xautodl(supernet, generic=generic).items()}
    state["module.arch_parameters"] = torch.zeros(6, 5)
    again = from_xautodl(state)
    assert again.config == config and torch.equal(again.arena, supernet.arena)


def _state(**changes):
    return Supernet.create(replace(SMALL, **changes), 0).state_dict()


def _with_nan():
    state = _state()
    state["classifier.bias"][1] = float("nan")
    return state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda: _state(channels=4), r"state\['stem.0.weight'\]: wanted \[3, 2, 3, 3\].*got \[4"),
        (lambda: _state(affine=True), r"tensors missing \(first \['cells.0.edges.1<-0.2.op.1.bias"),
        (lambda: _state(weights_on="node"), "not of a nb201 supernet.*unknown"),
        (lambda: _state(cells_per_stage=2), "not of a nb201 supernet"),
        (_with_nan, r"state\['classifier.bias'\]: holds NaN"),
        (dict, "tensors missing"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(state, message):
    supernet = Supernet.create(SMALL, 0)
    before = supernet.arena.clone()
    with pytest.raises(ValueError, match=message):
        supernet.load_state_dict(state())
    assert torch.equal(supernet.arena, before)


def test_files_that_are_no_supernet(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.safetensors"):
        Supernet.load(tmp_path / "no.safetensors")
    whole = tmp_path / "s.safetensors"
    Supernet.create(SMALL, 0).save(whole)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        Supernet.load(cut)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="wanted a supernet written by nasfast"):
        Supernet.load(tmp_path / "other.safetensors")
    header = {"format": "nasfast-supernet-1", "config": '{"space": "nb201"}'}
    save_file(load_file(whole), tmp_path / "bare.safetensors", metadata=header)
    with pytest.raises(ValueError, match=r"damaged header.*missing fields"):
        Supernet.load(tmp_path / "bare.safetensors")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"channels": 0}, "channels: wanted a positive integer, got 0"),
        ({"classes": 2.0}, "classes: wanted a positive integer, got 2.0"),
        ({"space": "nb301"}, "nearest: nb201"),
        ({"weights_on": "cell"}, "wanted 'edge' or 'node', got 'cell'"),
        ({"affine": "no"}, "affine: wanted True or False, got 'no'"),
    ],
)
def test_bad_configs(values, message):
    with pytest.raises(ValueError, match=message):
        SupernetConfig(**values)


def test_arena_too_large_for_offsets():
    with pytest.raises(ValueError, match=r"exceeds 2\^31"):
        Layout(SupernetConfig(channels=20_000))


def test_metadata_does_not_replace_the_header(tmp_path):
    Supernet.create(SMALL, 0).save(tmp_path / "s.safetensors", config="{}")
    assert Supernet.load(tmp_path / "s.safetensors").config == SMALL
    with pytest.raises(OSError, match="nowhere"):
        Supernet.create(SMALL, 0).save(tmp_path / "nowhere" / "s.safetensors")


def test_arena_of_the_wrong_size():
    with pytest.raises(ValueError, match="arena: wanted float32 or float64"):
        Supernet(SMALL, torch.zeros(3))


def test_xautodl_state_that_is_something_else():
    with pytest.raises(ValueError, match=r"stem\.0\.weight is missing"):
        from_xautodl({"conv.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="weights on node"):
        to_xautodl(Supernet.create(replace(SMALL, weights_on="node"), 0))
