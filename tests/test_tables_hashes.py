# SPDX-License-Identifier: MIT
"""Ground truth by the hashes of NAS-Bench-101."""

import numpy as np
import pytest

from nasfast import tables
from nasfast.spaces import NB1SHOT1_1, NB1SHOT1_3, NB201
from nasfast.tables.hashes import rows_of, space_hashes


@pytest.fixture(scope="module")
def known():
    """Hashes of space 1 in ascending order, and one value for each."""
    hashes = np.unique(space_hashes(NB1SHOT1_1), axis=0)
    return hashes, np.arange(len(hashes), dtype=np.float32)


def written(path, hashes, **columns):
    np.savez(path, hash=hashes, **columns)
    return path


def test_every_architecture_has_the_value_of_its_cell(tmp_path, known):
    hashes, values = known
    assert len(hashes) == 2_685 < NB1SHOT1_1.num_archs
    table = tables.load(written(tmp_path / "t.npz", hashes, test=values), NB1SHOT1_1, "test")
    assert (table.name, table.truth_name) == ("t.npz:test", "test")
    of_hash = dict(zip(map(bytes, hashes), values.tolist(), strict=True))
    for k in range(0, NB1SHOT1_1.num_archs, 37):
        cell = NB1SHOT1_1.to_nb101(NB1SHOT1_1.from_index(k))
        assert table.truth[k] == of_hash[bytes.fromhex(cell.hash)]
    assert len(np.unique(table.truth)) == 2_685


def test_what_the_table_does_not_have_is_unknown(tmp_path, known):
    """Every third hash is left out, two strange ones are there, and a value is NaN."""
    hashes, values = known
    kept = np.arange(len(hashes)) % 3 > 0
    strange = np.stack([np.zeros(16, np.uint8), np.full(16, 255, np.uint8)])
    some = np.concatenate([strange[:1], hashes[kept], strange[1:]])
    column = np.concatenate([[7], values[kept], [7]]).astype(np.float64)
    column[5] = np.nan
    table = tables.load(written(tmp_path / "t.npz", some, test=column), NB1SHOT1_1, "test")
    whole = tables.load(written(tmp_path / "w.npz", hashes, test=values), NB1SHOT1_1, "test")
    missing = ~kept[whole.truth.astype(int)] | (whole.truth == values[kept][4])
    assert np.array_equal(np.isnan(table.truth), missing)
    assert np.array_equal(table.truth[~missing], whole.truth[~missing])
    assert 0 < len(table.known) < NB1SHOT1_1.num_archs


def test_zeros_at_the_end_of_a_hash_count():
    """16 bytes that differ in zeros alone, and bytes above 127 after those below."""
    known = np.zeros((4, 16), dtype=np.uint8)
    known[1, 15], known[2, 0], known[3, 0] = 1, 127, 200
    wanted = np.zeros((5, 16), dtype=np.uint8)
    wanted[1, 15], wanted[2, 0], wanted[3, 14], wanted[4, 0] = 1, 200, 1, 128
    assert rows_of(known, wanted).tolist() == [0, 1, 3, -1, -1]


def swapped(hashes):
    return hashes[[1, 0, *range(2, len(hashes))]]


BROKEN = {
    "another dtype": (
        lambda h: h.astype(np.int64),
        r"'hash': wanted uint8 \[rows, 16\], got int64",
    ),
    "another shape": (lambda h: h[:, :8], r"wanted uint8 \[rows, 16\], got uint8 \[2685, 8\]"),
    "no rows": (lambda h: h[:0], r"got uint8 \[0, 16\]"),
    "another order": (swapped, "wanted distinct hashes in ascending order, got .* in row 1 after"),
    "twice": (lambda h: np.repeat(h, 2, axis=0), "wanted distinct hashes"),
    "other cells": (lambda h: np.zeros((1, 16), np.uint8), "none of its 1 hashes is of a cell of"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_hashes_that_do_not_fit_are_refused(tmp_path, known, case):
    change, message = BROKEN[case]
    hashes = change(known[0])
    path = written(tmp_path / "t.npz", hashes, test=np.zeros(len(hashes)))
    with pytest.raises(ValueError, match=message) as error:
        tables.load(path, NB1SHOT1_1, "test")
    assert str(error.value).startswith(str(path))


def test_columns_that_do_not_fit_are_refused(tmp_path, known):
    hashes, values = known
    path = written(
        tmp_path / "t.npz", hashes, short=values[1:], words=np.full(len(values), b"x"),
        square=np.stack([values, values]),
    )  # fmt: skip
    for column in ("short", "words", "square"):
        with pytest.raises(ValueError, match=rf"numbers \[2685\] in column '{column}', one for"):
            tables.load(path, NB1SHOT1_1, column)
    with pytest.raises(ValueError, match="nearest: short"):
        tables.load(path, NB1SHOT1_1, "shorts")
    with pytest.raises(ValueError, match="wanted one of its arrays as column, got None"):
        tables.load(path, NB1SHOT1_1)


def test_hashes_are_of_spaces_of_choice_blocks_alone(tmp_path, known):
    """Elsewhere a column has one number for each index, whatever else the file has."""
    path = written(tmp_path / "t.npz", known[0], test=known[1])
    with pytest.raises(ValueError, match=r"wanted numbers \[15625\] in column 'test'"):
        tables.load(path, NB201, "test")
    with pytest.raises(ValueError, match="a table of trainings is of another space"):
        tables.load("digits-nb201", NB1SHOT1_1)


def test_one_number_for_each_index_still_works(tmp_path):
    values = np.linspace(0, 1, NB1SHOT1_1.num_archs)
    np.savez(tmp_path / "t.npz", test=values)
    table = tables.load(tmp_path / "t.npz", NB1SHOT1_1, "test")
    assert np.array_equal(table.truth, values)


def test_the_published_table(data_folder):
    """Every cell of the largest space is in NAS-Bench-101."""
    table = tables.load(data_folder / "nb101_accuracy.npz", NB1SHOT1_3, "test_108")
    assert len(table.known) == 135_900
    assert table.truth.max() == pytest.approx(0.94551, abs=0.002)
