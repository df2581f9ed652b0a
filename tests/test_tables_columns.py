"""Columns on disk: what is written comes back, damage is named, and safetensors agrees."""

import json
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from nasfast import spaces, tables
from nasfast.tables.columns import FORMAT, is_columns, open_columns, write_columns
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


def some_columns() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "bytes": rng.integers(0, 256, (5, 3), dtype=np.uint8),
        "float": rng.standard_normal((5, 2, 4)).astype(np.float32),
        "index": np.arange(5),
        "half": rng.standard_normal(5).astype(np.float16),
    }


def test_round_trip_and_safetensors_reads_the_same(tmp_path):
    columns, path = some_columns(), tmp_path / "t.table"
    write_columns(path, {"b": [1, None], "a": "ü"}, columns)
    opened = open_columns(path)
    assert opened.header == {"a": "ü", "b": [1, None]}
    assert opened.names == ("bytes", "float", "half", "index")
    assert opened.rows == 5
    opened.check()
    with safe_open(str(path), framework="numpy") as file:
        assert set(file.keys()) == set(columns)
        for name, column in columns.items():
            array = opened.array(name)
            assert array.dtype == column.dtype and array.tobytes() == column.tobytes()
            assert array.flags.aligned
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0
            assert np.array_equal(file.get_tensor(name), column)
    assert [p.name for p in tmp_path.iterdir()] == ["t.table"]


def test_the_same_content_gives_the_same_bytes(tmp_path):
    columns = some_columns()
    write_columns(tmp_path / "a", {"x": 1, "y": 2}, columns)
    turned = dict(reversed(list(columns.items())))
    turned["float"] = np.asfortranarray(columns["float"])
    write_columns(tmp_path / "b", {"y": 2, "x": 1}, turned)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_flipped_bit_is_found(tmp_path):
    """In the columns the name of the column is said; elsewhere the file is refused."""
    path = tmp_path / "t.table"
    write_columns(path, {"space": "nb201"}, some_columns())
    good = path.read_bytes()
    start = 8 + int.from_bytes(good[:8], "little")
    spans = {
        name: entry["data_offsets"]
        for name, entry in json.loads(good[8:start]).items()
        if name != "__metadata__"
    }
    rng = np.random.default_rng(1)
    for place in [*range(8, start), *rng.integers(start, len(good), 60).tolist()]:
        bad = bytearray(good)
        bad[place] ^= 1 << int(rng.integers(0, 7))
        path.write_bytes(bytes(bad))
        if place >= start:
            (name,) = [n for n, (a, b) in spans.items() if a <= place - start < b]
            assert open_columns(path).damaged() == [name]
            with pytest.raises(ValueError, match=f"1 of 4 columns: {name}$"):
                open_columns(path).check()
        elif json_of(bytes(bad), start) != json_of(good, start):
            with pytest.raises(ValueError, match=r"t\.table: "):
                open_columns(path).check()


def json_of(content: bytes, start: int) -> object:
    try:
        return json.loads(content[8:start])
    except ValueError:
        return None


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -1])
def test_a_truncated_file_is_refused(tmp_path, kept):
    path = tmp_path / "t.table"
    write_columns(path, {}, some_columns())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"t\.table: not a readable safetensors file"):
        open_columns(path)


def test_other_safetensors_files_are_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3)}, tmp_path / "t", metadata={"format": "pt"})
    assert not is_columns(tmp_path / "t")
    with pytest.raises(ValueError, match=f"format '{FORMAT}'.*got format 'pt'"):
        open_columns(tmp_path / "t")
    with pytest.raises(FileNotFoundError, match="table not found"):
        open_columns(tmp_path / "none")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "got none"),
        ({"a": np.zeros(3), "b": np.zeros(4)}, r"got a \[3\], b \[4\]"),
        ({"a": np.array(1.0)}, r"columns\['a'\]: wanted numbers"),
        ({"a": np.array(["x"])}, r"columns\['a'\]: wanted numbers"),
    ],
)
def test_what_cannot_be_written(tmp_path, columns, message):
    with pytest.raises(ValueError, match=message):
        write_columns(tmp_path / "t", {}, columns)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("header", ["null", "[]", "3"])
def test_a_header_that_is_no_object(tmp_path, header):
    path = tmp_path / "t"
    write_columns(path, json.loads(header), {"a": np.arange(3)})
    with pytest.raises(ValueError, match="damaged: the header is no object"):
        open_columns(path)


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "t"
    write_columns(path, {}, {"a": np.arange(3)})
    before = path.read_bytes()

    class Breaks(dict):
        asked = 0

        def __getitem__(self, name):
            self.asked += 1
            if self.asked > 2:  # once for each checksum, then for the writing
                raise RuntimeError("gone")
            return super().__getitem__(name)

    with pytest.raises(RuntimeError, match="gone"):
        write_columns(path, {}, Breaks(a=np.arange(4), b=np.arange(4)))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_checksums_are_of_type_shape_and_bytes(tmp_path):
    path = tmp_path / "t"
    write_columns(path, {}, {"a": np.arange(6, dtype=np.int32).reshape(2, 3)})
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size])["__metadata__"]
    wanted = zlib.crc32(b"I32 [2, 3]" + np.arange(6, dtype="<i4").tobytes())
    assert json.loads(metadata["checksums"])["a"] == wanted


@pytest.mark.slow
def test_500_mb_open_in_a_moment(tmp_path):
    class Many(dict):  # made on demand: neither side keeps them
        def __getitem__(self, name):
            return np.full((1_000_000, 25), int(name), dtype=np.float32)

    path = tmp_path / "t"
    write_columns(path, {}, Many.fromkeys("01234"))
    assert path.stat().st_size > 500_000_000
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        value = open_columns(path).array("3")[999_999, 24]
        seconds.append(time.perf_counter() - start)
    assert value == 3.0
    assert min(seconds) < 0.2
    path.unlink()


# Official results.


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
