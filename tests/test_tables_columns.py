"""Columns on disk: what is written comes back, damage is named, and safetensors agrees."""

import json
import time
import zlib

import numpy as np
import pytest
from safetensors import safe_open

from nasfast import spaces
from nasfast.tables.columns import FORMAT, is_columns, open_columns, write_columns

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
