"""Official results in columns: curves, means of what is known, rows of a space."""

import json
from pathlib import Path

import numpy as np
import pytest

from nasfast import spaces, tables
from nasfast.tables.columns import write_columns
from nasfast.tables.curve_table import CurveTable, mean_of_known, write_curve_table
from nasfast.tables.learning_curves import curves_of

NB201 = spaces.get("nb201")
HEADER = {
    "space": "nb201",
    "release": "a test",
    "sources": [],
    "missing": [],
    "checks": [],
    "importer": "0",
}


def curve_columns() -> dict[str, np.ndarray]:
    """Three rows; the second has one run, the third none."""
    nan = np.nan
    return {
        "index": np.array([3, 7, 9]),
        "cifar10/200/seeds": np.array([[777, 888], [888, -1], [-1, -1]], dtype=np.int32),
        "cifar10/200/test_accuracy": np.array(
            [[0.5, 0.75], [0.25, nan], [nan, nan]], dtype=np.float32
        ),
        "cifar10/200/train_loss": np.array(
            [
                [[4, 3, 2, 1], [8, 6, 4, nan]],
                [[2, 2, 2, 5], [nan, nan, nan, nan]],
                [[nan] * 4, [nan] * 4],
            ],
            dtype=np.float32,
        ),
    }


def write_curves(path: Path, **changes: np.ndarray) -> CurveTable:
    columns = curve_columns() | {k.replace("__", "/"): v for k, v in changes.items()}
    write_curve_table(path, HEADER, columns)
    return CurveTable.open(path)


def test_truth_curve_and_last_epochs(tmp_path):
    table = write_curves(tmp_path / "t")
    assert (table.space, table.release, table.rows) == ("nb201", "a test", 3)
    assert table.columns.header["units"]["*_accuracy"] == "fraction"
    assert table.quantities == ("cifar10/200/test_accuracy", "cifar10/200/train_loss")
    assert table.indices.tolist() == [3, 7, 9]
    assert table.seeds("cifar10", 200) == (777, 888)
    nan = np.nan
    equal = np.testing.assert_array_equal
    equal(table.truth("cifar10", 200), [0.625, 0.25, nan])
    equal(table.truth("cifar10", 200, seed=888), [0.75, 0.25, nan])
    equal(table.truth("cifar10", 200, "train_loss"), [1, 5, nan])
    equal(table.curve("cifar10", 200, "train_loss"), [[6, 4.5, 3, 1], [2, 2, 2, 5], [nan] * 4])
    equal(table.curve("cifar10", 200, "train_loss", seed=777), [[4, 3, 2, 1], [nan] * 4, [nan] * 4])
    equal(table.curve("cifar10", 200, "test_accuracy"), [[0.625], [0.25], [nan]])
    equal(table.last_epochs_mean("cifar10", 200, "train_loss"), [2, 3, nan])
    equal(table.last_epochs_mean("cifar10", 200, "train_loss", seed=888, k=1), [nan, 5, nan])
    with pytest.raises(ValueError, match="wanted 1 to 4, the epochs of cifar10/200/train_loss"):
        table.last_epochs_mean("cifar10", 200, "train_loss", k=5)
    with pytest.raises(ValueError, match="wanted one of 777, 888 of cifar10/200, got 999"):
        table.truth("cifar10", 200, seed=999)
    with pytest.raises(ValueError, match=r"wanted one of its 4 columns, got 'cifar10/12/test_acc"):
        table.truth("cifar10", 12)
    with pytest.raises(ValueError, match="wanted rows by hash"):
        table.rows_of_hashes(np.zeros((1, 16), dtype=np.uint8))


def test_mean_of_known_is_in_float64():
    values = np.array([[0.1, 0.2, np.nan]], dtype=np.float32)
    wanted = (float(np.float32(0.1)) + float(np.float32(0.2))) / 2
    assert mean_of_known(values, axis=1).tolist() == [wanted]


def test_load_as_ground_truth(tmp_path):
    path = tmp_path / "t.table"
    write_curves(path)
    table = tables.load(path, NB201, "cifar10/200/test_accuracy")
    assert table.known.tolist() == [3, 7]
    assert table.truth[[3, 7]].tolist() == [0.625, 0.25]
    assert table.name == "t.table:cifar10/200/test_accuracy"
    assert table.truth_name == "test accuracy, cifar10, 200, mean of the runs"
    one = tables.load(path, NB201, "cifar10/200/test_accuracy/777")
    assert one.known.tolist() == [3]
    for column in (None, "test", "cifar10/200/seeds", "cifar10/200/test_accuracy/x"):
        with pytest.raises(ValueError, match=r"t\.table: wanted"):
            tables.load(path, NB201, column)
    with pytest.raises(ValueError, match="wanted one of 777, 888"):
        tables.load(path, NB201, "cifar10/200/test_accuracy/1")


def test_damage_in_a_used_column_is_found_when_it_is_loaded(tmp_path):
    """Values, numbers of runs, names of rows; not what nobody asks for."""
    path = tmp_path / "t.table"
    write_curves(path)
    good = path.read_bytes()
    start = 8 + int.from_bytes(good[:8], "little")
    listing = json.loads(good[8:start])
    for name in curve_columns():
        bad = bytearray(good)
        bad[start + listing[name]["data_offsets"][0]] ^= 1  # the smallest bit of the first number
        path.write_bytes(bad)
        if name == "cifar10/200/train_loss":
            assert tables.load(path, NB201, "cifar10/200/test_accuracy").truth[3] == 0.625
            continue
        with pytest.raises(ValueError, match=rf"in 1 of 3 columns that are used: {name}$"):
            tables.load(path, NB201, "cifar10/200/test_accuracy")
        with pytest.raises(ValueError, match=rf"damaged: .* that are used: {name}$"):
            curves_of(CurveTable.open(path))


def test_higher_is_better(tmp_path):
    seconds = np.ones((3, 2), np.float32) * [[1, 1], [1, np.nan], [np.nan, np.nan]]
    table = write_curves(tmp_path / "t", cifar10__200__train_seconds=seconds.astype(np.float32))
    loss = tables.load(tmp_path / "t", NB201, "cifar10/200/train_loss")
    assert loss.truth[[3, 7]].tolist() == [-1, -5]
    assert loss.truth_name == "train loss, cifar10, 200, mean of the runs, negated"
    with pytest.raises(ValueError, match="t: wanted an accuracy or a loss as ground truth, got "):
        tables.load(tmp_path / "t", NB201, "cifar10/200/train_seconds")
    curves = curves_of(table, truth="cifar10/200/train_loss")
    assert curves.truth[:2].tolist() == [-1, -5]
    assert curves.truth_name == "cifar10/200/train_loss, mean of the runs, negated"
    with pytest.raises(ValueError, match="truth: wanted an accuracy or a loss as ground truth"):
        curves_of(table, truth="cifar10/200/train_seconds")


def test_only_runs_and_results_are_returned(tmp_path):
    table = write_curves(tmp_path / "t")
    for read in (table.truth, table.curve, table.last_epochs_mean):
        options = {"k": 1} if read == table.last_epochs_mean else {}
        with pytest.raises(ValueError, match="wanted one of 777, 888 of cifar10/200, got -1"):
            read("cifar10", 200, "test_accuracy", seed=-1, **options)
        with pytest.raises(
            ValueError, match=r"wanted a column of results, .*got 'cifar10/200/seed"
        ):
            read("cifar10", 200, "seeds", **options)
    with pytest.raises(ValueError, match=r"of its 4 columns, got 'cifar10/20/test_.*test_accuracy"):
        table.columns.array("cifar10/20/test_accuracy")


def test_a_table_that_knows_nothing_of_the_space_is_refused(tmp_path):
    nan = np.full((3, 2), np.nan, dtype=np.float32)
    write_curves(tmp_path / "t", cifar10__200__test_accuracy=nan)
    words = r"t: has cifar10/200/test_accuracy of no architecture of nb201 \(3 rows\)"
    with pytest.raises(ValueError, match=words):
        tables.load(tmp_path / "t", NB201, "cifar10/200/test_accuracy")
    columns = curve_columns()
    del columns["index"]
    columns["hash"] = np.arange(48, dtype=np.uint8).reshape(3, 16)
    write_curve_table(tmp_path / "h", {**HEADER, "space": "nb101"}, columns)
    with pytest.raises(ValueError, match=r"h: has .* of no architecture of nb1shot1-1 \(3 rows\)"):
        tables.load(tmp_path / "h", spaces.get("nb1shot1-1"), "cifar10/200/test_accuracy")


def test_a_table_of_another_space_is_refused(tmp_path):
    columns = curve_columns()
    write_curve_table(tmp_path / "a", {**HEADER, "space": "nb101"}, columns)
    with pytest.raises(ValueError, match="wanted a table of nb201, got one of nb101"):
        tables.load(tmp_path / "a", NB201, "cifar10/200/test_accuracy")
    columns["index"] = np.array([3, 7, 15625])
    write_curve_table(tmp_path / "b", HEADER, columns)
    with pytest.raises(ValueError, match="wanted official indices below 15625, got 3 to 15625"):
        tables.load(tmp_path / "b", NB201, "cifar10/200/test_accuracy")
    columns["index"] = np.array([3, 99999, -7])  # not written by nasfast
    full = {**HEADER, "units": {}}
    write_columns(tmp_path / "c", full, columns)
    with pytest.raises(ValueError, match="wanted official indices below 15625, got -7 to 99999"):
        tables.load(tmp_path / "c", NB201, "cifar10/200/test_accuracy")


def test_rows_of_hashes(tmp_path):
    rng = np.random.default_rng(2)
    hashes = rng.integers(0, 256, (200, 16), dtype=np.uint8)
    hashes[:3, :8] = 5  # the second half decides
    hashes[3, 8:] = 0  # zeros at the end
    hashes[4] = 0
    hashes = hashes[np.lexsort(hashes.T[::-1])]
    columns = {
        "hash": hashes,
        "cifar10/4/seeds": np.zeros((200, 1), dtype=np.int32),
        "cifar10/4/test_accuracy": np.zeros((200, 1), dtype=np.float32),
    }
    write_curve_table(tmp_path / "t", {**HEADER, "space": "nb101"}, columns)
    table = CurveTable.open(tmp_path / "t")
    order = rng.permutation(200)
    assert table.rows_of_hashes(hashes[order]).tolist() == order.tolist()
    other = hashes.copy()
    other[:, 15] ^= 1
    last = np.full((1, 16), 255, dtype=np.uint8)
    assert set(table.rows_of_hashes(np.concatenate([other, last])).tolist()) == {-1}
    with pytest.raises(ValueError, match="wanted uint8"):
        table.rows_of_hashes(np.zeros((1, 15), dtype=np.uint8))
    write_columns(tmp_path / "v", table.columns.header, columns | {"hash": hashes[::-1]})
    with pytest.raises(ValueError, match="v: 'hash': wanted distinct hashes in ascending order"):
        CurveTable.open(tmp_path / "v").rows_of_hashes(hashes)
    with pytest.raises(ValueError, match="got rows by hash"):
        table.as_table(FakeSpace, "cifar10/4/test_accuracy")
    with pytest.raises(ValueError, match="each row once and ascending"):
        write_curve_table(tmp_path / "u", {**HEADER}, columns | {"hash": hashes[::-1]})


class FakeSpace:
    name = "nb101"
    num_archs = 423_624


F32, I32 = np.float32, np.int32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index": np.array([3, 3, 9])}, "each row once and ascending"),
        ({"index": np.array([3, 9, 7])}, "each row once and ascending"),
        ({"index": np.array([-1, 0, 7])}, "official indices from 0, got -1"),
        ({"index": np.array([3, 7, 9], dtype=I32)}, r"columns\['index'\]: got int32"),
        ({"hash": np.zeros((3, 16), dtype=np.uint8)}, "wanted one of index and hash"),
        ({"cifar10__200__test_accuracy": np.full((3, 2), 50, F32)}, "has values of runs"),
        (
            {"cifar10__200__test_accuracy": np.array([[50, 60], [1, np.nan], [np.nan] * 2], F32)},
            "wanted values from 0 to 1.0, got 1.0 to 60.0",
        ),
        (
            {"cifar10__200__train_loss": np.array([[np.inf] * 2, [1, np.nan], [np.nan] * 2], F32)},
            "infinite",
        ),
        ({"cifar10__200__test_loss": np.zeros((3, 3), F32)}, r"wanted float32 \[3, 2\] or with"),
        ({"cifar10__200__test_loss": np.zeros((3, 2))}, r"wanted float32 \[3, 2\] or with"),
        ({"cifar10__12__test_loss": np.zeros((3, 2), F32)}, "'cifar10/12/seeds' is missing"),
        ({"cifar10__200__test_flops": np.zeros((3, 2), F32)}, "wanted a quantity in _accuracy"),
        ({"cifar10__200__Test__loss": np.zeros((3, 2), F32)}, "wanted a name dataset/schedule/"),
        (
            {"cifar10__200__seeds": np.array([[7, 7], [8, -1], [-1, -1]], I32)},
            r"row 0 has a run twice: \[7, 7\]",
        ),
        (
            {"cifar10__200__seeds": np.array([[7, 8], [8, -1], [-1, -2]], I32)},
            "wanted numbers of runs or -1, got -2",
        ),
    ],
)
def test_what_is_no_table(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write_curves(tmp_path / "t", **changes)
    assert list(tmp_path.iterdir()) == []


def test_columns_that_are_no_results(tmp_path):
    write_columns(tmp_path / "a", {}, {"index": np.arange(2)})
    with pytest.raises(ValueError, match="not a usable table: header: space, release, "):
        CurveTable.open(tmp_path / "a")
    write_columns(tmp_path / "b", {**HEADER, "units": {}}, {"index": np.arange(2)})
    with pytest.raises(ValueError, match="wanted results dataset/schedule/quantity, got none"):
        CurveTable.open(tmp_path / "b")
