# SPDX-License-Identifier: MIT
"""The size space of NATS-Bench: order of the official list, strings, parameter counts."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasfast import spaces
from nasfast.spaces import NATS_SSS, NB1SHOT1_1, NB201, CellSpec, SizeSpec

CELL = NATS_SSS.cell
ARCHS = st.lists(st.integers(0, 7), min_size=5, max_size=5).map(NATS_SSS.arch)


def test_the_official_list(data_folder):
    with np.load(data_folder / "nats_sss.npz") as table:
        channels = table["channels"]
    everything = NATS_SSS.enumerate()
    assert len(everything) == NATS_SSS.num_archs == 32_768
    assert [NATS_SSS.channels(arch) for arch in everything] == list(map(tuple, channels.tolist()))


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100), ("in16", 120)])
def test_published_parameter_counts(data_folder, name, classes):
    with np.load(data_folder / "nats_sss.npz") as table:
        params = table[f"params_{name}"].tolist()
    assert [NATS_SSS.num_params(arch, classes) for arch in NATS_SSS.enumerate()] == params


def test_parameters_by_hand():
    arch = NATS_SSS.from_string("8:16:16:8:24")
    stem = 27 * 8 + 16
    first = 5 * (9 * 8 * 8 + 16)
    to_16 = 9 * 8 * 16 + 32 + 9 * 16 * 16 + 32 + 8 * 16
    second = 5 * (9 * 16 * 16 + 32)
    to_8 = 9 * 16 * 8 + 16 + 9 * 8 * 8 + 16 + 16 * 8
    # From 8 to 24 channels: two convolutions from the input, a 1x1 in place of the skip.
    third = 2 * (9 * 8 * 24 + 48) + 8 * 24 + 48 + 3 * (9 * 24 * 24 + 48)
    head = 48 + 25 * 10
    assert NATS_SSS.num_params(arch) == stem + first + to_16 + second + to_8 + third + head


@given(ARCHS)
def test_round_trips(arch):
    assert NATS_SSS.from_string(str(arch)) == arch
    assert NATS_SSS.from_index(NATS_SSS.to_index(arch)) == arch
    assert pickle.loads(pickle.dumps(arch)) == arch
    assert len(set(NATS_SSS.neighbours(arch))) == 5 * 7
    assert (arch.op_counts, arch.depth) == (CELL.op_counts, CELL.depth) and arch.depth == 3


def test_masks_and_samples():
    mask = np.zeros((5, 8), bool)
    mask[:, [0, 7]] = True
    chosen = NATS_SSS.enumerate(mask)
    assert len(chosen) == 32
    assert [str(chosen[0]), str(chosen[1]), str(chosen[-1])] == [
        "8:8:8:8:8",
        "8:8:8:8:64",
        "64:64:64:64:64",
    ]
    assert set(NATS_SSS.sample(32, 0, mask, distinct=True)) == set(chosen)
    assert set(NATS_SSS.sample(40, 0, mask)) <= set(chosen)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NATS_SSS.from_string("8:8:8:8"), "wanted 5 channel numbers joined by ':', got 4"),
        (lambda: NATS_SSS.from_string("8:8:9:8:8"), "layer 2: wanted one of 8, 16, .*, got '9'"),
        (lambda: NATS_SSS.from_string("8:8:08:8:8"), "layer 2: .*got '08'"),
        (lambda: NATS_SSS.from_string(""), "got 1"),
        (lambda: NATS_SSS.arch([0] * 4), "nats-sss has 5 layers, got 4"),
        (lambda: NATS_SSS.arch([0, 0, 0, 0, 8]), r"\[4\]: wanted an index of a channel .* got 8"),
        (lambda: NATS_SSS.from_index(32_768), r"wanted 0\.\.32767 in nats-sss, got 32768"),
        (lambda: NATS_SSS.enumerate(np.ones((5, 5), bool)), r"mask: wanted bool \[5, 8\]"),
        (lambda: NATS_SSS.enumerate(np.zeros((5, 8), bool)), "layer 0 has no channel number left"),
        (lambda: NATS_SSS.num_params(NB201.from_index(0)), "wanted an architecture of nats-sss"),
        (lambda: NATS_SSS.to_index(NB201.from_index(0)), "wanted an architecture of nats-sss"),
        (lambda: SizeSpec("x", "x", (8, 8), (False,), CELL), "wanted ascending positive widths"),
        (lambda: SizeSpec("x", "x", (0, 8), (False,), CELL), "wanted ascending positive widths"),
        (lambda: SizeSpec("x", "x", (8,), (), CELL), "at least one layer"),
        (lambda: SizeSpec("x", "x", (8,), (True,), NB1SHOT1_1.from_index(0)),
         "wanted a cell with operations on edges, got one of nb1shot1-1"),
        (lambda: spaces.get("nats-sss", CellSpec), "'nats-sss' cannot be used here"),
    ],
)  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_name():
    assert spaces.get("nats-sss") is NATS_SSS
    assert spaces.get("nats-sss", SizeSpec) is NATS_SSS
