"""Checkpoints of torch.save: what torch itself would load, without running the rest."""

import argparse
import pickle

import pytest
import torch
from fuzz_files import Genotype

from nasfast.compat.torch_files import read_state
from nasfast.compat.xautodl import load_xautodl, to_xautodl
from nasfast.layout import SupernetConfig
from nasfast.supernet import Supernet


@pytest.fixture(params=["zip", "stream"])
def save(request, tmp_path):
    def to_file(content):
        path = tmp_path / "c.pth"
        torch.save(content, path, _use_new_zipfile_serialization=request.param == "zip")
        return path

    return to_file


@pytest.mark.parametrize("shape", [{}, {"affine": True, "track": True, "last_affine": False}])
def test_a_checkpoint_as_xautodl_writes_it(save, shape):
    supernet = Supernet.create(SupernetConfig(channels=2, cells_per_stage=1, **shape), 0)
    state = {f"module.{name}": tensor for name, tensor in to_xautodl(supernet).items()}
    content = {"args": argparse.Namespace(a=[1]), "search_model": state, "seen": {1},
               "genotypes": {-1: Genotype()}}  # fmt: skip
    for found in (load_xautodl(save(content)), load_xautodl(save(state))):
        assert found.config == supernet.config
        assert torch.equal(found.arena, supernet.arena)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_views_and_types(save, dtype):
    whole = torch.arange(24).to(dtype).reshape(4, 6)
    wanted = {"a": whole[1:, ::2], "b": whole.t(), "c": whole[3, 5], "d": whole[:0], "e": whole[2]}
    wanted["f"] = torch.nn.Parameter(whole) if dtype.is_floating_point else whole
    found = read_state(save(wanted), "state")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor), name


def test_refused(save, tmp_path):
    for content in ([1], {"search_model": 3}, torch.ones(3), {"search_model": {}}):
        with pytest.raises(ValueError, match=r"c\.pth: "):
            load_xautodl(save(content))
    # One number that says it is many.
    with pytest.raises(ValueError, match="a tensor whose shape is not one of its storage"):
        read_state(save({"x": torch.ones(1).expand(1000)}), "state")
    with pytest.raises(ValueError, match=r"\[4, 4\] beyond the 8 numbers of its storage"):
        read_state(save({"x": torch.ones(8)[4:].expand(4, 4)}), "state")
    with pytest.raises(FileNotFoundError, match="checkpoint file not found: "):
        load_xautodl(tmp_path / "none.pth")


@pytest.mark.parametrize(
    "key",
    [b"N" + b"\x85" * 200_000, b"K\x01" + b"2\x86" * 60],  # too deep to hash; hashing never ends
    ids=["deep", "wide"],
)
def test_names_of_storages_are_not_hashed_before_they_are_looked_at(tmp_path, key):
    heads = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    parts = [pickle.dumps(head, 2) for head in heads]
    file = tmp_path / "old.pth"
    file.write_bytes(b"".join(parts) + b"\x80\x02}." + b"\x80\x02]" + key + b"a.")
    with pytest.raises(ValueError, match=r"old\.pth: not a usable checkpoint"):
        read_state(file, "x")
