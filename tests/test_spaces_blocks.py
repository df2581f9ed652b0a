# SPDX-License-Identifier: MIT
"""Spaces of choice blocks: the three of NAS-Bench-1Shot1, their counts, lists and encodings."""

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasfast import spaces
from nasfast.spaces import (
    NB1SHOT1_1,
    NB1SHOT1_2,
    NB1SHOT1_3,
    NB201,
    BlockSpec,
    CellSpec,
    OpKind,
    OpSpec,
    counts,
)
from nasfast.spaces.nb101 import Nb101Cell
from nasfast.spaces.nb201 import isomorphism_key

ALL = [NB1SHOT1_1, NB1SHOT1_2, NB1SHOT1_3]
MP, C3, C1 = NB1SHOT1_1.ops
A = "|maxpool3x3~0|+|conv3x3-bn-relu~0,1|+|conv1x1-bn-relu~0,2|+|maxpool3x3~1,3|+|~0,2|"

# No choice of parents, another operation, other sizes.
FIXED = BlockSpec("fixed", "Fixed", (1, 2), (OpSpec("conv5", OpKind.CONV, 5), C1), (1,))


def archs(spec):
    return st.tuples(*(st.integers(0, count - 1) for count in spec.options)).map(spec.arch)


ANY = st.sampled_from(ALL).flatmap(archs)


def subnet(arch):
    """What an architecture selects, by following edges from the output."""
    parents, ops = arch.spec.parents(arch), arch.spec.block_ops(arch)
    found, todo = {}, list(parents[-1])
    while todo:
        block = todo.pop()
        if block and block not in found:
            found[block] = (ops[block - 1], parents[block - 1])
            todo.extend(parents[block - 1])
    return frozenset(found.items()), parents[-1]


@pytest.fixture(scope="module")
def hashes_of():
    return {spec.name: counts.nb101_hashes(spec) for spec in ALL}


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (NB1SHOT1_1, (14_580, 6_240, 3_702, 3_702, 3_288, 2_685, 3_078, 2_487)),
        (NB1SHOT1_2, (29_160, 16_632, 12_474, 12_510, 11_826, 7_773, 11_178, 3_609)),
        (NB1SHOT1_3, (1_312_200, 363_648, 135_900, 137_406, 118_524, 55_854, 108_135, 24_066)),
        (FIXED, (2, 2, 2, 2, 2, None, 2, 2)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_counts_by_every_definition(spec, wanted, hashes_of):
    if wanted[5] is None:
        with pytest.raises(ValueError, match=r"of NAS-Bench-101, got 1 .*'conv5'"):
            counts.counts(spec)
    else:
        assert tuple(counts.counts(spec, hashes_of[spec.name]).values()) == wanted
    assert counts.count_encodings(spec) == wanted[0]
    assert counts.count_fully_used(spec) == wanted[6]
    assert len(counts.evaluated_subset(spec)) == wanted[7]


@pytest.mark.parametrize("spec", [NB1SHOT1_1, NB1SHOT1_2, FIXED], ids=lambda spec: spec.name)
def test_the_list_holds_the_smallest_encoding_of_each_subnet(spec):
    smallest, encodings = {}, list(spec.encodings())
    assert len(encodings) == spec.num_encodings
    assert [arch.op_indices for arch in encodings] == sorted(arch.op_indices for arch in encodings)
    for arch in encodings:
        smallest.setdefault(subnet(arch), arch)
    listed = sorted(smallest.values(), key=lambda arch: arch.op_indices)
    assert spec.enumerate() == listed
    assert len(spec) == spec.num_archs == len(listed)
    assert np.array_equal(spec.list_array(), spec.op_array(listed))
    position = {subnet(arch): index for index, arch in enumerate(listed)}
    wanted = [position[subnet(arch)] for arch in encodings]
    assert spec.indices(spec.op_array(encodings)).tolist() == wanted
    assert [spec.from_index(index) for index in range(len(listed))] == listed
    assert len({spec.pruned(arch) for arch in encodings}) == len(listed)


def test_the_large_list():
    everything = NB1SHOT1_3.enumerate()
    rows = NB1SHOT1_3.op_array(everything)
    assert len(set(everything)) == len(everything) == 135_900
    assert np.array_equal(NB1SHOT1_3.indices(rows), np.arange(135_900))
    assert [arch.op_indices for arch in everything] == sorted(
        arch.op_indices for arch in everything
    )
    assert [str(arch) for arch in everything[:1]] == [
        "|maxpool3x3~0|+|maxpool3x3~0|+|maxpool3x3~0|+|maxpool3x3~0,1|+|maxpool3x3~0,1|+|~0,1|"
    ]


@given(ANY)
def test_encodings_round_trip(arch):
    spec = arch.spec
    assert spec.from_string(str(arch)) == arch
    index = spec.to_index(arch)
    listed = spec.from_index(index)
    assert subnet(listed) == subnet(arch)
    assert spec.pruned(listed) == spec.pruned(arch)
    assert listed.op_indices <= arch.op_indices
    assert spec.to_index(listed) == index
    assert spec.used_blocks(arch) == tuple(
        block in dict(subnet(arch)[0]) for block in range(1, spec.num_blocks + 1)
    )
    assert sum(arch.op_counts.values()) == spec.num_blocks


@given(ANY, ANY)
def test_pruned_tells_subnets_apart(one, two):
    if one.spec == two.spec:
        same = subnet(one) == subnet(two)
        assert (one.spec.pruned(one) == two.spec.pruned(two)) == same
        assert (one.spec.to_index(one) == two.spec.to_index(two)) == same


@given(st.integers(0, 1_312_199))
def test_encodings_by_rank(rank):
    arch = NB1SHOT1_3.from_encoding(rank)
    assert rank == int(np.ravel_multi_index(arch.op_indices, NB1SHOT1_3.options))


@given(ANY)
def test_neighbours_differ_in_one_decision(arch):
    near = list(arch.spec.neighbours(arch))
    assert len(set(near)) == len(near) == sum(count - 1 for count in arch.spec.options)
    for other in near:
        pairs = zip(arch.op_indices, other.op_indices, strict=True)
        assert sum(a != b for a, b in pairs) == 1


def test_an_architecture_by_hand():
    arch = NB1SHOT1_1.from_string(A)
    assert NB1SHOT1_1.options == (3, 3, 3, 3, 3, 6, 10)
    assert arch.op_indices == (0, 1, 2, 0, 1, 4, 1)
    assert NB1SHOT1_1.block_ops(arch) == (0, 1, 2, 0)
    assert NB1SHOT1_1.parents(arch) == ((0,), (0, 1), (0, 2), (1, 3), (0, 2))
    # The output takes 0 and 2, and 2 takes 1: blocks 3 and 4 are loose ends.
    assert NB1SHOT1_1.used_blocks(arch) == (True, True, False, False)
    assert NB1SHOT1_1.pruned(arch) == (((0, (0,)), (1, (0, 1)), None, None), (0, 2))
    assert arch.op_counts == {"maxpool3x3": 2, "conv3x3-bn-relu": 1, "conv1x1-bn-relu": 1}
    assert (arch.depth, arch.longest_path, arch.connected) == (1, 3, True)
    chain = NB1SHOT1_1.from_string(A.replace("~0,2|+|max", "~1,2|+|max").replace("~0,2|", "~3,4|"))
    assert (chain.depth, chain.longest_path) == (2, 5)
    edges = [[0, 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 1], [0] * 4]
    ops = ["input", "maxpool3x3", "conv3x3-bn-relu", "output"]
    assert NB1SHOT1_1.to_nb101(arch) == Nb101Cell.from_lists(edges, ops)


@given(ANY)
def test_the_cell_of_nb101(arch):
    cell = arch.spec.to_nb101(arch)
    assert cell.num_vertices == sum(arch.spec.used_blocks(arch)) + 2
    assert cell.pruned() is cell
    if arch.spec != NB1SHOT1_3:
        # The authors' matrix has a vertex 5 that nothing touches; it changes no hash.
        matrix = np.zeros((7, 7), int)
        for node, parents in enumerate(arch.spec.parents(arch), start=1):
            matrix[list(parents), 6 if node == 5 else node] = 1
        names = [arch.spec.ops[k].name for k in arch.spec.block_ops(arch)]
        padded = Nb101Cell.from_lists(matrix, ["input", *names, "conv1x1-bn-relu", "output"])
        assert padded.hash == cell.hash


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.name)
def test_hashes_of_the_list(spec, hashes_of):
    hashes = hashes_of[spec.name]
    assert hashes.shape == (spec.num_archs, 16)
    for index in np.random.default_rng(1).integers(spec.num_archs, size=200):
        assert bytes(hashes[index]).hex() == spec.to_nb101(spec.from_index(index)).hash


def test_every_cell_is_in_nb101(data_folder, hashes_of):
    with np.load(data_folder / "nb101_accuracy.npz") as table:
        known = {bytes(row) for row in table["hash"]}
    for hashes in hashes_of.values():
        assert {bytes(row) for row in hashes} <= known


def grown(spec, graph, node):
    """Graphs as the authors' generator grows them: parents one at a time, each grown at once."""

    def complete(edges):
        touched = {v for edge in edges for v in edge} - {0}
        into = {v: sum(j == v for _, j in edges) for v in touched}
        return len(touched) > 1 and all(n == spec.num_parents[v - 1] for v, n in into.items())

    present = {i for i, j in graph if j == node}
    missing = spec.num_parents[node - 1] - len(present) if node else 0
    if complete(graph):
        yield graph
    elif missing:
        for parents in itertools.combinations(sorted(set(range(node)) - present), missing):
            copy = graph
            for parent in parents:
                copy = copy | {(parent, node)}
                yield from grown(spec, copy, parent)


@pytest.mark.parametrize(("spec", "count"), [(ALL[0], 49), (ALL[1], 65), (ALL[2], 234)])
def test_the_evaluated_subset_is_what_the_generator_grows(spec, count):
    graphs = set(grown(spec, frozenset(), spec.num_blocks + 1))
    assert len(graphs) == count

    def graph(arch):
        blocks, output = spec.pruned(arch)
        parents = [*(block[1] if block else () for block in blocks), output]
        return frozenset((i, j) for j, sources in enumerate(parents, start=1) for i in sources)

    archs = spec.enumerate()
    wanted = [index for index, arch in enumerate(archs) if graph(arch) in graphs]
    assert counts.evaluated_subset(spec).tolist() == wanted


def test_the_evaluated_subset_by_hand():
    ops = "|maxpool3x3~0|+|maxpool3x3~0,1|+|maxpool3x3~{}|+|maxpool3x3~{}|+|~{}|"
    subset = set(counts.evaluated_subset(NB1SHOT1_1).tolist())

    def taken(*parents):
        return NB1SHOT1_1.to_index(NB1SHOT1_1.from_string(ops.format(*parents))) in subset

    assert taken("0,1", "0,3", "0,4")  # one branch: 4, then 3, then 1
    assert taken("0,1", "0,3", "1,4")  # 1 is complete before 4 grows
    assert not taken("0,2", "0,1", "3,4")  # 3 and 4 grow apart: 3 never gets its parents


def test_masks():
    mask = NB1SHOT1_2.mask(["maxpool3x3"])
    chosen = NB1SHOT1_2.enumerate(mask)
    topologies = {
        (tuple(block and block[1] for block in blocks), output)
        for blocks, output in map(NB1SHOT1_2.pruned, NB1SHOT1_2.enumerate())
    }
    assert len(topologies) == 190
    assert len(chosen) == sum(2 ** sum(map(bool, blocks)) for blocks, _ in topologies)
    for arch in chosen:
        assert all(block is None or block[0] for block in NB1SHOT1_2.pruned(arch)[0])
    drawn = NB1SHOT1_2.sample(len(chosen), 3, mask, distinct=True)
    assert set(drawn) == set(chosen) and drawn != chosen
    raw = NB1SHOT1_2.sample(300, 3, mask)
    assert all(min(NB1SHOT1_2.block_ops(arch)) > 0 for arch in raw)


def test_samples_are_uniform_over_encodings():
    drawn = NB1SHOT1_3.sample(20_000, 5)
    assert drawn == NB1SHOT1_3.sample(20_000, 5)
    rows = NB1SHOT1_3.op_array(drawn)
    for column, count in zip(rows.T, NB1SHOT1_3.options, strict=True):
        share = np.bincount(column, minlength=count) / len(column)
        assert np.abs(share - 1 / count).max() < 0.018  # 5 standard deviations
    # With loose ends: most encodings have one.
    with_loose = sum(not all(NB1SHOT1_3.used_blocks(arch)) for arch in drawn)
    assert abs(with_loose / 20_000 - (1 - 108_135 / 1_312_200)) < 0.02
    distinct = NB1SHOT1_3.sample(1_000, 5, distinct=True)
    assert len({NB1SHOT1_3.to_index(arch) for arch in distinct}) == 1_000
    assert distinct == [NB1SHOT1_3.from_index(NB1SHOT1_3.to_index(arch)) for arch in distinct]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NB1SHOT1_1.from_string(A + "+|~0|"), "wanted 5 groups.*got 6"),
        (lambda: NB1SHOT1_1.from_string(A.replace("|maxpool3x3~0|+", "maxpool3x3~0+")),
         r"node 1: wanted '\|op~parents\|', got 'maxpool3x3~0'"),
        (lambda: NB1SHOT1_1.from_string(A.replace("~0|", "|")), r"node 1: wanted '\|op~parents"),
        (lambda: NB1SHOT1_1.from_string(A.replace("+|~0,2|", "+|0,2|")),
         r"node 5: wanted '\|~parents\|', got '\|0,2\|'"),
        (lambda: NB1SHOT1_1.from_string(A.replace("+|~0,2|", "+|maxpool3x3~0,2|")),
         "node 5: the output has no operation"),
        (lambda: NB1SHOT1_1.from_string(A.replace("conv3x3-bn-relu", "conv3x3")),
         "node 2: unknown operation 'conv3x3'.*nearest: conv3x3-bn-relu"),
        (lambda: NB1SHOT1_1.from_string(A.replace("~0,1|", "~1,0|")),
         "node 2: wanted parents '0,1', got '1,0'"),
        (lambda: NB1SHOT1_1.from_string(A.replace("~1,3|", "~1,4|")),
         r"node 4: wanted 2 of the nodes 0\.\.3, ascending and joined by ',', got '1,4'"),
        (lambda: NB1SHOT1_1.from_string(A.replace("~1,3|", "~1|")), "node 4: .*got '1'"),
        (lambda: NB1SHOT1_1.arch([0] * 6), "has 7 decisions, got 6"),
        (lambda: NB1SHOT1_1.arch([0, 3, 0, 0, 0, 0, 0]),
         r"op_indices\[1\]: wanted an operation index of block 2 in 0\.\.2, got 3"),
        (lambda: NB1SHOT1_1.arch([0, 0, 0, 0, 0, 6, 0]),
         r"op_indices\[5\]: wanted a choice of parents of node 4 in 0\.\.5, got 6"),
        (lambda: NB1SHOT1_1.from_index(3_702), r"wanted 0\.\.3701 in nb1shot1-1, got 3702"),
        (lambda: NB1SHOT1_1.from_encoding(14_580), r"rank: wanted 0\.\.14579 in nb1shot1-1"),
        (lambda: NB1SHOT1_1.indices(np.zeros((2, 6), int)), r"wanted \[archs, 7\], got \[2, 6\]"),
        (lambda: NB1SHOT1_1.indices(np.array([[0] * 7, [0, 0, 0, 0, 0, -1, 0]])),
         r"decisions\[1, 5\]: wanted a choice of parents of node 4 in 0\.\.5, got -1"),
        (lambda: NB1SHOT1_1.mask(["none"]), "unknown operation 'none'"),
        (lambda: NB1SHOT1_1.enumerate(np.ones((4, 5), bool)), r"mask: wanted bool \[4, 3\]"),
        (lambda: NB1SHOT1_1.sample(1, 0, np.zeros((4, 3), bool)), "block 1 has no operation left"),
        (lambda: NB1SHOT1_1.sample(3_703, 0, distinct=True), r"wanted 0\.\.3702 distinct"),
        (lambda: NB1SHOT1_1.sample(-1, 0), "count: wanted at least 0, got -1"),
        (lambda: NB1SHOT1_1.to_index(NB201.from_index(0)), "wanted an architecture of nb1shot1-1"),
        (lambda: NB1SHOT1_1.op_array([NB1SHOT1_2.from_index(0)]), "got one of nb1shot1-2"),
        (lambda: BlockSpec("x", "x", (1,), (MP,)), "at least a block"),
        (lambda: BlockSpec("x", "x", (1, 1), ()), "at least a block, an operation"),
        (lambda: BlockSpec("x", "x", (1, 3), (MP,)), r"node 2 wants 1\.\.2 parents, got 3"),
        (lambda: BlockSpec("x", "x", (0, 1), (MP,)), r"node 1 wants 1\.\.1 parents, got 0"),
        (lambda: BlockSpec("x", "x", (1, 1), (MP, MP)), "wanted distinct names"),
        (lambda: BlockSpec("x", "x", (1, 1), (OpSpec("a,b", OpKind.CONV),)), "names without"),
        (lambda: BlockSpec("x", "x", (1, 1), (MP,), momentum=0.0), r"momentum: .*got 0\.0"),
        (lambda: isomorphism_key(NB1SHOT1_1.from_index(0)), "wanted one with operations on edges"),
        (lambda: spaces.get("nb1shot1-1", CellSpec), "cannot be used here, wanted one of nb201"),
        (lambda: spaces.get("nb1shot1"), "got 'nb1shot1'; nearest: nb1shot1-"),
    ],
)  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_another_space_of_blocks():
    with pytest.raises(ValueError, match=r"ops\[1\]: wanted 'conv3x3-bn-relu'.*got 'conv5'"):
        FIXED.to_nb101(FIXED.arch([0]))
    assert [str(arch) for arch in FIXED.enumerate()] == [
        "|conv5~0|+|~0,1|",
        "|conv1x1-bn-relu~0|+|~0,1|",
    ]
    assert FIXED.from_string("|conv5~0|+|~0,1|").depth == 1


@given(st.text(alphabet="|~+,0123456789conv3x-bnrelumap ", max_size=80))
def test_any_text_is_an_architecture_or_one_clear_error(text):
    try:
        assert str(FIXED.from_string(text)) == text.strip()
    except ValueError as error:
        assert str(error).startswith("architecture ")


def test_pickles_are_small_and_equal():
    arch = NB1SHOT1_3.from_index(77_000)  # fills the caches
    data = pickle.dumps(arch)
    assert len(data) < 2_000 and pickle.loads(data) == arch


def test_names():
    assert [spaces.get(spec.name) for spec in ALL] == ALL
    assert all(spaces.get(spec.name, BlockSpec) is spec for spec in ALL)
    assert spaces.names(BlockSpec) == tuple(spec.name for spec in ALL)
    assert [sum(spec.num_parents) for spec in ALL] == [9, 9, 9]
    pairs = itertools.combinations(ALL, 2)
    assert all(one != two for one, two in pairs)


def test_many_indices_at_a_time_are_those_of_one_after_another():
    space = spaces.get("nb1shot1-2", BlockSpec)
    archs = space.sample(50, seed=1)
    indices = space.to_indices(archs)
    assert indices.tolist() == [space.to_index(arch) for arch in archs]
    assert space.from_indices(indices.tolist()) == [space.from_index(int(k)) for k in indices]
    assert space.to_indices([]).tolist() == [] and space.from_indices([]) == []
    with pytest.raises(ValueError, match=r"index: wanted 0..12473 in nb1shot1-2, got 12474"):
        space.from_indices([0, 12_474])
    with pytest.raises(ValueError, match=r"archs\[0\]: wanted an architecture of nb1shot1-2"):
        space.to_indices(spaces.NB201.sample(1, 0))
    nb201 = spaces.NB201.sample(20, seed=0)
    assert spaces.NB201.from_indices(spaces.NB201.to_indices(nb201).tolist()) == nb201
