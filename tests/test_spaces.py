# SPDX-License-Identifier: MIT
"""The NAS-Bench-201 space as data: counts, encodings, subsets, and a space that is not NB201."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasfast import spaces
from nasfast.spaces import NB201, CellSpec, OpKind, OpSpec
from nasfast.spaces.nb201 import isomorphism_key

OPS = [op.name for op in NB201.ops]
ARCHS = st.lists(st.integers(0, 4), min_size=6, max_size=6).map(NB201.arch)

# A space that shares nothing with NAS-Bench-201 but the code: 3 nodes, other operations.
TINY = CellSpec(
    name="tiny",
    title="Tiny",
    num_nodes=3,
    edges=((0, 1), (0, 2), (1, 2)),
    ops=(
        OpSpec("conv5", OpKind.CONV, 5),
        OpSpec("max3", OpKind.MAX_POOL, 3),
        OpSpec("nothing", OpKind.ZERO),
    ),
)


@pytest.fixture(scope="module")
def everything():
    return NB201.enumerate()


def test_counts(everything):
    assert len(everything) == len(set(everything)) == NB201.num_archs == 15_625
    assert len({str(arch) for arch in everything}) == 15_625
    assert sum(arch.connected for arch in everything) == 15_284
    assert len({isomorphism_key(arch) for arch in everything}) == 6_466


# Entries of the published list (meta_archs).
@pytest.mark.parametrize(
    ("index", "string"),
    [
        (0, "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|"
            "+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"),
        (1, "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|"
            "+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|"),
        (9, "|avg_pool_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"),
        (123, "|avg_pool_3x3~0|+|avg_pool_3x3~0|nor_conv_1x1~1|"
              "+|none~0|avg_pool_3x3~1|nor_conv_3x3~2|"),
        (15624, "|nor_conv_1x1~0|+|none~0|nor_conv_1x1~1|"
                "+|none~0|nor_conv_1x1~1|nor_conv_1x1~2|"),
    ],
)  # fmt: skip
def test_official_index_order(index, string):
    assert str(NB201.from_index(index)) == string
    assert NB201.to_index(NB201.from_string(string)) == index


def test_official_table_has_the_same_order(everything, data_folder):
    table = np.load(data_folder / "nb201_accuracy.npz")
    assert [str(arch) for arch in everything] == [s.decode() for s in table["arch_str"]]
    assert np.array_equal(NB201.op_array(everything), table["ops"])


@given(ARCHS)
def test_round_trips(arch):
    assert NB201.from_string(str(arch)) == arch
    assert NB201.from_index(NB201.to_index(arch)) == arch
    assert hash(NB201.from_string(str(arch))) == hash(arch)
    assert sum(arch.op_counts.values()) == 6


@given(ARCHS)
def test_neighbours(arch):
    near = list(NB201.neighbours(arch))
    assert len(set(near)) == 6 * 4
    for other in near:
        pairs = zip(arch.op_indices, other.op_indices, strict=True)
        assert sum(a != b for a, b in pairs) == 1


@given(st.sets(st.sampled_from(OPS), max_size=4), st.integers(0, 2**32), st.integers(0, 30))
def test_masked_samples_stay_in_the_subset(without, seed, count):
    mask = NB201.mask(sorted(without))
    drawn = NB201.sample(count, seed, mask)
    assert len(drawn) == count
    assert drawn == NB201.sample(count, seed, mask)
    for arch in drawn:
        assert not without & {name for name, n in arch.op_counts.items() if n}


@pytest.mark.parametrize(
    ("without", "size"),
    [((), 5**6), (("none",), 4**6), (("none", "avg_pool_3x3"), 3**6), (("none", "skip_connect",
      "nor_conv_1x1", "avg_pool_3x3"), 1)],
)  # fmt: skip
def test_masked_subsets(without, size):
    archs = NB201.enumerate(NB201.mask(without))
    assert len(archs) == len(set(archs)) == size
    indices = [NB201.to_index(arch) for arch in archs]
    assert indices == sorted(indices)


def test_distinct_sample_of_everything_is_everything():
    mask = NB201.mask(("none", "avg_pool_3x3"))
    assert set(NB201.sample(729, 0, mask, distinct=True)) == set(NB201.enumerate(mask))


def test_uniform_sampling_draws_every_operation_equally_often():
    ops = NB201.op_array(NB201.sample(20_000, 7))
    share = np.stack([(ops == k).mean(axis=0) for k in range(5)])
    assert np.abs(share - 0.2).max() < 0.015  # 5 standard deviations


@pytest.mark.parametrize(
    ("ops", "depth", "longest", "connected"),
    [
        ((0, 0, 0, 0, 0, 0), -1, -1, False),
        ((1, 1, 1, 1, 1, 1), 0, 3, True),
        ((3, 0, 2, 0, 0, 3), 3, 3, True),
        ((3, 3, 3, 3, 3, 0), 2, 2, True),
        ((0, 0, 3, 0, 3, 3), -1, -1, False),  # convolutions that nothing reaches
        ((0, 4, 0, 1, 0, 2), 1, 2, True),
    ],
)
def test_depth_by_hand(ops, depth, longest, connected):
    arch = NB201.arch(ops)
    assert (arch.depth, arch.longest_path, arch.connected) == (depth, longest, connected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NB201.from_string("|none~0|+|none~0|none~1|"), "wanted 3 groups"),
        (lambda: NB201.from_string(""), "wanted 3 groups"),
        (lambda: NB201.from_string("|none~0|+|none~0|+|none~0|none~1|none~2|"),
         "node 2: wanted 2 edges, got 1"),
        (lambda: NB201.from_string("none~0+|none~0|none~1|+|none~0|none~1|none~2|"),
         r"node 1: wanted '\|op~source\|...\|', got 'none~0'"),
        (lambda: NB201.from_string("|nor_conv_3~0|+|none~0|none~1|+|none~0|none~1|none~2|"),
         "unknown operation 'nor_conv_3'.*nearest: nor_conv_3x3"),
        (lambda: NB201.from_string("|none~1|+|none~0|none~1|+|none~0|none~1|none~2|"),
         "wanted an edge from node 0, got 'none~1'"),
        (lambda: NB201.from_string("|none|+|none~0|none~1|+|none~0|none~1|none~2|"),
         "wanted an edge from node 0, got 'none'"),
        (lambda: NB201.arch([0] * 5), "has 6 edges, got 5"),
        (lambda: NB201.arch([0, 0, 0, 0, 0, 5]), r"op_indices\[5\].*0..4, got 5"),
        (lambda: NB201.from_index(15_625), "wanted 0..15624 in nb201, got 15625"),
        (lambda: NB201.from_index(-1), "got -1"),
        (lambda: NB201.mask(["pool"]), "unknown operation 'pool'"),
        (lambda: NB201.mask(OPS), "no operation is left"),
        (lambda: NB201.enumerate(np.ones((5, 5), bool)), r"mask: wanted bool \[6, 5\]"),
        (lambda: NB201.enumerate(np.ones((6, 5), int)), r"mask: wanted bool \[6, 5\]"),
        (lambda: NB201.sample(730, 0, NB201.mask(["none", "avg_pool_3x3"]), distinct=True),
         "wanted 0..729 distinct"),
        (lambda: NB201.op_array([TINY.arch([0, 0, 0])]), "wanted an architecture of nb201"),
        (lambda: spaces.get("nb202"), "got 'nb202'; nearest: nb201"),
        (lambda: CellSpec("x", "x", 3, ((0, 2), (0, 1)), TINY.ops), "ordered by target"),
        (lambda: CellSpec("x", "x", 3, ((0, 2),), TINY.ops), r"nodes \[1\] have no incoming edge"),
        (lambda: CellSpec("x", "x", 2, ((0, 1), (0, 2)), TINY.ops), "needs 0 <= i < j < 2"),
        (lambda: CellSpec("x", "x", 2, ((0, 1),), ()), "at least two nodes, an operation"),
        (lambda: CellSpec("x", "x", 2, ((0, 1),), TINY.ops * 2), "wanted distinct names"),
        (lambda: CellSpec("x", "x", 2, ((0, 1),), (OpSpec("c2", OpKind.CONV, 2),)), "odd kernels"),
        (lambda: NB201.to_index(TINY.arch([0, 0, 0])), "arch: wanted an architecture of nb201"),
        (lambda: NB201.neighbours(TINY.arch([0, 0, 0])), "arch: wanted an architecture of nb201"),
        (lambda: NB201.sample(-1, 0), "count: wanted at least 0, got -1"),
    ],
)  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@given(st.text(max_size=60))
def test_any_text_is_an_architecture_or_one_clear_error(text):
    try:
        assert str(NB201.from_string(text)) == text.strip()
    except ValueError as error:
        assert str(error).startswith("architecture ")


def test_indices_are_integers():
    with pytest.raises(TypeError):
        NB201.arch([0.9] * 6)
    with pytest.raises(TypeError):
        NB201.from_index(1.5)
    assert NB201.arch(np.array([1, 2, 3, 4, 0, 1])) == NB201.arch([1, 2, 3, 4, 0, 1])


def test_pickles_are_small_and_equal():
    arch = NB201.from_index(3)
    NB201.to_index(arch)  # fills the cache
    data = pickle.dumps(arch)
    assert len(data) < 2_000 and pickle.loads(data) == arch


def test_another_space_is_data():
    archs = TINY.enumerate()
    assert len(archs) == 27
    assert [TINY.to_index(arch) for arch in archs] == list(range(27))
    assert str(archs[5]) == "|conv5~0|+|max3~0|nothing~1|"
    assert archs[5].op_counts == {"conv5": 1, "max3": 1, "nothing": 1}
