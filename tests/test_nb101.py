# SPDX-License-Identifier: MIT
"""NAS-Bench-101: cells, the published hash in Python and C++, and the list of all 423,624."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasfast import _host
from nasfast.spaces import nb101
from nasfast.spaces.nb101 import OPS, Nb101Cell, cell_of, enumerate_nb101, hash_cells

C3, C1, MP = OPS


def cell(edges, *inner):
    size = len(inner) + 2
    matrix = [[int((i, j) in edges) for j in range(size)] for i in range(size)]
    return Nb101Cell.from_lists(matrix, ["input", *inner, "output"])


def rows_of(cells):
    """The arrays that C++ reads."""
    ops = np.full((len(cells), 5), 255, np.uint8)
    for row, each in zip(ops, cells, strict=True):
        row[: each.num_vertices - 2] = [OPS.index(op) for op in each.ops[1:-1]]
    sizes = np.array([each.num_vertices for each in cells], np.uint8)
    return sizes, np.array([each.adjacency_bits for each in cells], np.uint32), ops


def fast_hashes(cells):
    return [bytes(row).hex() for row in hash_cells(*rows_of(cells))]


@st.composite
def cells(draw):
    """Cells whose every vertex has a way in; some have loose ends."""
    size = draw(st.integers(2, 7))
    edges = {(draw(st.integers(0, j - 1)), j) for j in range(1, size)}
    pairs = sorted(set(itertools.combinations(range(size), 2)) - edges)
    if pairs:
        edges |= draw(st.sets(st.sampled_from(pairs), max_size=9 - len(edges)))
    return cell(edges, *draw(st.lists(st.sampled_from(OPS), min_size=size - 2, max_size=size - 2)))


# Published hashes and parameter counts.
PUBLISHED = [
    ("00005c142e6f48ac74fdcf73e3439874", 8_555_530,
     cell({(0, 1), (0, 4), (0, 5), (1, 2), (2, 3), (2, 6), (3, 5), (4, 5), (5, 6)},
          C3, MP, C3, C3, C1)),
    ("043721b9c7fe8c5fad811d47d83132ec", 882_570, cell({(0, 1)})),
    ("09fc2d10bdd6225e167a6f81a22a3f06", 2_793_866, cell({(0, 1), (0, 2), (1, 2)}, C1)),
    ("53cee42601ad14d661bb6878031d6acb", 882_570, cell({(0, 1), (1, 2)}, MP)),
    ("ffff76fafa7b0cdf545fd7feee9c8bf9", 2_490_930,
     cell({(0, 1), (1, 2), (1, 3), (2, 5), (2, 6), (3, 4), (4, 5), (4, 6), (5, 6)},
          C1, MP, C3, C3, MP)),
]  # fmt: skip


@pytest.mark.parametrize(("wanted", "params", "known"), PUBLISHED)
def test_published_cells(wanted, params, known):
    assert known.hash == wanted
    assert fast_hashes([known]) == [wanted]
    assert known.num_params() == params


@given(st.lists(cells(), min_size=1, max_size=20))
def test_the_hash_in_cpp_is_the_one_in_python(drawn):
    assert fast_hashes(drawn) == [each.hash for each in drawn]


@given(cells(), st.randoms())
def test_the_hash_ignores_numbering_and_loose_ends(drawn, rng):
    size = drawn.num_vertices
    edges = {(i, j) for i in range(size) for j in range(size) if drawn.matrix[i][j]}
    order, left = [0], set(range(1, size))  # any order in which edges lead forward
    while left:
        ready = sorted(v for v in left if all(i in order for i, j in edges if j == v))
        chosen = rng.choice([v for v in ready if v != size - 1 or len(left) == 1])
        order.append(chosen)
        left.remove(chosen)
    place = {v: k for k, v in enumerate(order)}
    inner = [drawn.ops[v] for v in order[1:-1]]
    other = cell({(place[i], place[j]) for i, j in edges}, *inner)
    assert other.hash == drawn.hash == drawn.pruned().hash
    assert sorted(other.pruned().ops) == sorted(drawn.pruned().ops)


def test_pruning_by_hand():
    # 1 is a loose end; nothing leads to 2 (but it leads to the output); 3 is on the path.
    loose = cell({(0, 1), (2, 4), (0, 3), (3, 4)}, C3, C1, MP)
    assert loose.pruned() == cell({(0, 1), (1, 2)}, MP)
    whole = cell({(0, 1), (1, 2)}, MP)
    assert whole.pruned() is whole


def test_channels_by_hand():
    # Three vertices share 128 channels, the first two one more; 1 is as wide as the widest it
    # leads to, so the edge to 4 drops a channel.
    shared = cell({(0, 1), (1, 2), (1, 4), (0, 3), (2, 5), (3, 5), (4, 5)}, C3, C1, MP, C3)
    assert shared.vertex_channels(64, 128) == (64, 43, 43, 43, 42, 128)
    assert shared.dropped_channels(64, 128) == {(1, 2): 0, (1, 4): 1}
    assert cell({(0, 1)}).vertex_channels(16, 32) == (16, 32)
    with pytest.raises(ValueError, match="wanted at least 3, one for each vertex"):
        shared.vertex_channels(1, 2)
    with pytest.raises(ValueError, match="wanted at least 1, got 0 in"):
        shared.vertex_channels(0, 2)
    with pytest.raises(ValueError, match="wanted a pruned one"):
        cell({(0, 1), (0, 2)}, C3).vertex_channels(1, 1)


@given(cells(), st.integers(1, 200), st.integers(7, 200))
def test_channels_add_up(drawn, in_channels, out_channels):
    pruned = drawn.pruned()
    channels, last = pruned.vertex_channels(in_channels, out_channels), pruned.num_vertices - 1
    feeding = [v for v in range(1, last) if pruned.matrix[v][last]]
    assert sum(channels[v] for v in feeding) == (out_channels if feeding else 0)
    assert set(pruned.dropped_channels(in_channels, out_channels).values()) <= {0, 1}


def square(*rows):
    return [list(map(int, row)) for row in rows]


CHAIN = square("010", "001", "000")
NINE = list(itertools.combinations(range(5), 2))[:9]


@pytest.mark.parametrize(
    ("matrix", "ops", "message"),
    [
        ([[0]], ["input"], r"matrix: wanted 2\.\.7 vertices, got 1"),
        (np.triu(np.ones((8, 8), int), 1), ["input", *[C1] * 6, "output"], "vertices, got 8"),
        ([[0, 1, 0], [0, 0, 1]], ["input", C1], r"wanted 2 columns in row 0, got 3"),
        (square("010", "001", "100"), ["input", C1, "output"], r"matrix\[2\]\[0\]: wanted 0 on"),
        (square("110", "001", "000"), ["input", C1, "output"], r"matrix\[0\]\[0\]: wanted 0 on"),
        ([[0, 2, 0], [0, 0, 1], [0] * 3], ["input", C1, "output"], r"\[0\]\[1\]: wanted 0 or 1, g"),
        ([[0, 1.0, 0], [0, 0, 1], [0] * 3], ["input", C1, "output"], "wanted 0 or 1, got 1.0"),
        (np.array(CHAIN, float), ["input", C1, "output"], "wanted 0 or 1, got np.float64"),
        ([0, 1], ["input", "output"], r"matrix\[0\]: wanted a row of zeros and ones, got 0"),
        (np.triu(np.ones((5, 5), int), 1), ["input", C1, C1, C1, "output"], "at most 9 edges, got"),
        (CHAIN, ["input", "output"], "ops: wanted 3, one for each vertex, got 2"),
        (CHAIN, ["input", "conv3x3", "output"], r"ops\[1\]: wanted 'conv3x3-bn-r.*conv3x3'"),
        (CHAIN, ["input", "input", "output"], r"ops\[1\]: .*got 'input'"),
        (CHAIN, [C1, C1, "output"], r"ops\[0\]: wanted 'input', got"),
        (CHAIN, ["input", C1, C1], r"ops\[2\]: wanted 'output', got"),
        (square("010", "000", "000"), ["input", C1, "output"], "no path leads from the input to"),
        (square("000", "001", "000"), ["input", C1, "output"], "no path leads from the input to"),
    ],
)  # fmt: skip
def test_invalid_cells(matrix, ops, message):
    with pytest.raises(ValueError, match=message):
        Nb101Cell.from_lists(matrix, ops)


def test_cells_are_values():
    edges = {(0, 1), (1, 2)}
    assert cell(edges, C1) == cell(edges, C1) != cell(edges, C3)
    assert len({cell(edges, C1), cell(edges, C1), cell(edges, C3)}) == 2
    assert Nb101Cell.from_lists(np.array(CHAIN, bool), ["input", C1, "output"]) == cell(edges, C1)
    with pytest.raises(AttributeError):
        cell(edges, C1).ops = ()


@given(cells())
def test_rows_round_trip(drawn):
    sizes, bits, ops = rows_of([drawn])
    assert cell_of(sizes[0], bits[0], ops[0]) == drawn


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, b, o: (s * 0 + 8, b, o), r"cell 0: wanted 2\.\.7 vertices, got 8"),
        (lambda s, b, o: (s, b | 1 << 20, o), "cell 0: an edge joins no pair of its vertices"),
        (lambda s, b, o: (s, b | 1 << 31, o), "an edge joins no pair of its vertices"),
        (lambda s, b, o: (s * 0 + 7, b * 0 + 0x1FFFFF, o * 0), "at most 9 edges, got 21"),
        (lambda s, b, o: (s, b, o * 0 + 3), r"vertex 1: wanted an operation in 0\.\.2, got 3"),
        (lambda s, b, o: (s, b, o * 0), r"vertex 2: wanted 255 \(no such vertex\), got 0"),
        (lambda s, b, o: (s, b * 0, o), "cell 0: no path leads from the input to the output"),
        (lambda s, b, o: (s, b[:0], o), "bits: wanted one for each cell"),
        (lambda s, b, o: (s, b, o[:, :4]), r"ops: wanted \[cells, 5\]"),
        (lambda s, b, o: (s[None], b, o), "num_vertices: wanted one dimension"),
    ],
)
def test_bad_arrays(change, message):
    with pytest.raises(ValueError, match=message):
        hash_cells(*change(*rows_of([cell({(0, 1), (1, 2)}, C1)])))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((9, 1, [255] * 5), r"num_vertices: wanted 2\.\.7, got 9"),
        ((3, 1 << 20, [0] * 5), r"an edge \(5, 6\), but 3 vertices"),
        ((3, 65, [7, 255, 255, 255, 255]), r"wanted an index in 0\.\.2 for vertex 1, got 7"),
    ],
)
def test_bad_rows(row, message):
    with pytest.raises(ValueError, match=message):
        cell_of(row[0], row[1], np.array(row[2]))


def generated(max_vertices):
    """Every labelled cell without loose ends, in the order of the authors' generator."""
    for size in range(2, max_vertices + 1):
        pairs = sorted(itertools.combinations(range(size), 2), key=lambda edge: edge[::-1])
        for number in range(2 ** len(pairs)):
            edges = {pair for bit, pair in enumerate(pairs) if number >> bit & 1}
            sources, targets = {i for i, _ in edges}, {j for _, j in edges}
            if len(edges) > 9 or sources | {size - 1} != targets | {0} or len(sources) < size - 1:
                continue
            for inner in itertools.product(OPS, repeat=size - 2):
                yield cell(edges, *inner)


def test_small_cells_are_those_of_the_generator():
    first = {}
    for each in generated(5):
        first.setdefault(each.hash, each)
    listed = enumerate_nb101(5)
    assert len(first) == len(listed.hash) == 2_532
    assert [bytes(row).hex() for row in listed.hash] == sorted(first)
    assert all(listed.cell(row) == first[digest] for row, digest in enumerate(sorted(first)))


@pytest.mark.parametrize(("size", "count"), [(2, 1), (3, 7), (4, 91), (5, 2_532), (6, 64_542)])
def test_published_counts(size, count):
    listed = enumerate_nb101(size)
    assert [len(column) for column in listed] == [count] * 4
    # Distinct graphs are as many as distinct hashes, so the hash confuses no two of them.
    assert nb101.count_classes(size) == count
    digests = [bytes(row) for row in listed.hash]
    assert digests == sorted(set(digests))


@pytest.mark.slow
def test_all_cells_are_the_published_ones(data_folder):
    table = np.load(data_folder / "nb101_accuracy.npz")
    seen, start = [], time.process_time()
    hashes, sizes, bits, ops, classes = _host.nb101_cells(7, lambda *done: seen.append(done))
    assert time.process_time() - start < 30
    assert len(hashes) == classes == 423_624
    assert np.array_equal(hashes, table["hash"])
    assert np.array_equal(sizes, table["num_vertices"])
    assert np.array_equal(bits, table["adj_bits"])  # the authors' representatives, too
    assert np.array_equal(ops, table["ops"])
    assert seen == sorted(seen) and seen[-1] == (450_808, 450_808)


@pytest.mark.slow
def test_published_rows_hash_to_their_hash(data_folder):
    names = ("num_vertices", "adj_bits", "ops", "hash", "params")
    with np.load(data_folder / "nb101_accuracy.npz") as table:
        sizes, bits, ops, hashes, params = (table[name] for name in names)
    assert np.array_equal(hash_cells(sizes, bits, ops), hashes)
    for row in np.random.default_rng(0).integers(len(sizes), size=2_000):
        known = cell_of(sizes[row], bits[row], ops[row])
        assert known.hash == bytes(hashes[row]).hex()
        assert known.num_params() == params[row]


@pytest.mark.parametrize("size", [1, 8, -1])
def test_bad_size(size):
    with pytest.raises(ValueError, match=rf"max_vertices: wanted 2\.\.7, got {size}"):
        enumerate_nb101(size)


def test_a_listener_can_stop_it():
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        enumerate_nb101(7, stop)
