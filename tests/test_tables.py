import json
import zipfile

import numpy as np
import pytest

from nasfast import tables
from nasfast.spaces import NB201

STRINGS = [str(arch) for arch in NB201.enumerate()]


def write(path, indices=(9, 4), seeds=(0, 1), **changes):
    arguments = {
        "name": "toy",
        "truth_name": "accuracy",
        "space": NB201,
        "archs": [NB201.from_index(i) for i in indices],
        "test_correct": np.array([[30, 31], [10, 0]]),
        "train_loss": np.array([[0.123456, 1.0], [2.0, float("inf")]]),
        "test_images": 40,
        "settings": {"seeds": list(seeds)},
    }
    tables.write(path, **(arguments | changes))
    return path


def test_round_trip_by_hand(tmp_path):
    table = tables.load(write(tmp_path / "t.json"), NB201)
    assert (table.name, table.truth_name) == ("toy", "accuracy")
    assert table.truth.shape == (15625,)
    assert table.known.tolist() == [4, 9]
    assert table.truth[9] == (30 + 31) / 2 / 40
    assert table.truth[4] == (10 + 0) / 2 / 40
    rows = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert [row["index"] for row in rows] == [4, 9]  # official order
    assert [row["arch"] for row in rows] == [STRINGS[4], STRINGS[9]]
    assert rows[1]["train_loss"] == [0.12346, 1.0]
    assert [f.name for f in tmp_path.iterdir()] == ["t.json"]


def test_shipped_tables():
    for name in tables.shipped():
        table = tables.load(name, NB201)
        assert table.name == name
        known = table.truth[table.known]
        assert len(known) > 0
        assert ((known >= 0) & (known <= 1)).all()


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda c: c.update(format="x-2"), "wanted format 'nasfast-table-1', got 'x-2'"),
        (lambda c: c.update(space="nb101"), "wanted a table of nb201, got one of nb101"),
        (lambda c: c.pop("test_images"), "key 'test_images' is missing"),
        (lambda c: c.update(test_images=0), "row of index 4 is damaged"),
        (lambda c: c["rows"][0].update(index=5), "row of index 5 is damaged"),
        (lambda c: c["rows"][0].update(index=15625), "index: wanted 0..15624 in nb201"),
        (lambda c: c["rows"][0].update(test_correct=[1]), "row of index 4 is damaged"),
        (lambda c: c["rows"][0].update(test_correct=[1, 41]), "row of index 4 is damaged"),
        (lambda c: c["rows"].append(c["rows"][0]), "row of index 4 is damaged"),
    ],
)
def test_damaged_json(tmp_path, change, wanted):
    file = write(tmp_path / "t.json")
    edit(file, change)
    with pytest.raises(ValueError, match="not a usable table") as caught:
        tables.load(file, NB201)
    assert wanted in str(caught.value)
    assert "t.json" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b'{"format": ', b"[]", b"\xff\xfe"])
def test_no_json(tmp_path, content):
    file = tmp_path / "t.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"t\.json: damaged: wanted an object"):
        tables.load(file, NB201)


def test_json_has_no_columns(tmp_path):
    file = write(tmp_path / "t.json")
    with pytest.raises(ValueError, match="has no columns, got column 'x'"):
        tables.load(file, NB201, "x")


def test_neither_file_nor_shipped():
    with pytest.raises(FileNotFoundError, match="table: 'nothing' is neither a file nor a shipped"):
        tables.load("nothing", NB201)


def test_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    file = write(tmp_path / "t.json")
    before = file.read_bytes()

    def refuse(*_):
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr("nasfast.files.os.replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        write(file, name="other")
    assert file.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["t.json"]


# Values of one's own in .npz.


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_npz(tmp_path):
    values = np.arange(15625, dtype=np.float32)
    values[3] = np.nan
    file = npz(tmp_path / "v.npz", mine=values, arch_str=np.array(STRINGS, dtype="S"))
    table = tables.load(file, NB201, "mine")
    assert table.truth.dtype == np.float64
    assert len(table.known) == 15624
    assert table.truth[15624] == 15624
    assert table.name == "v.npz:mine"
    assert tables.load(npz(tmp_path / "i.npz", n=np.arange(15625)), NB201, "n").truth[9] == 9


@pytest.mark.parametrize(("column", "got"), [("cifar10_tset", "'cifar10_tset'"), (None, "None")])
def test_npz_column(tmp_path, column, got):
    file = npz(tmp_path / "v.npz", cifar10_test=np.zeros(15625), other=np.zeros(1))
    with pytest.raises(ValueError, match=f"column, got {got}; nearest: ") as caught:
        tables.load(file, NB201, column)
    assert "v.npz" in str(caught.value)
    if column:
        assert str(caught.value).endswith("nearest: cifar10_test")


@pytest.mark.parametrize("kind", ["S", "U"])
def test_npz_in_another_order(tmp_path, kind):
    strings = np.array(STRINGS, dtype=kind)
    strings[[7000, 7001]] = strings[[7001, 7000]]
    file = npz(tmp_path / "v.npz", x=np.zeros(15625), arch_str=strings)
    with pytest.raises(ValueError, match="not in the official order of nb201") as caught:
        tables.load(file, NB201, "x")
    assert f"wanted {STRINGS[7000]} at index 7000, got {STRINGS[7001]}" in str(caught.value)


def test_npz_of_another_space(tmp_path):
    file = npz(tmp_path / "v.npz", x=np.zeros(423624))
    with pytest.raises(ValueError, match=r"wanted numbers \[15625\] in column 'x', got float64 "):
        tables.load(file, NB201, "x")
    file = npz(tmp_path / "w.npz", x=np.zeros(15625), arch_str=np.array(["a"]))
    with pytest.raises(ValueError, match=r"wanted \[15625\] strings in 'arch_str', got \[1\]"):
        tables.load(file, NB201, "x")


def test_npz_of_words(tmp_path):
    file = npz(tmp_path / "v.npz", x=np.array(["a"] * 15625))
    with pytest.raises(ValueError, match="wanted numbers"):
        tables.load(file, NB201, "x")


def test_npz_with_pickles(tmp_path):
    file = tmp_path / "v.npz"
    np.savez(file, x=np.array([{}] * 15625, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"v\.npz: not a usable table: .*allow_pickle"):
        tables.load(file, NB201, "x")


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_truncated_npz(tmp_path, keep):
    file = npz(tmp_path / "v.npz", x=np.zeros(15625))
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ValueError, match=r"v\.npz: not a usable table"):
        tables.load(file, NB201, "x")


def test_damaged_npz_member(tmp_path):
    file = tmp_path / "v.npz"
    np.savez_compressed(file, x=np.random.default_rng(0).random(15625))
    content = bytearray(file.read_bytes())
    content[2000:2400] = bytes(400)
    file.write_bytes(content)
    assert zipfile.is_zipfile(file)
    with pytest.raises(ValueError, match=r"v\.npz: not a usable table"):
        tables.load(file, NB201, "x")


def test_real_table(data_folder):
    file = data_folder / "nb201_accuracy.npz"
    if not file.is_file():
        pytest.skip(f"no {file}")
    with np.load(file) as arrays:
        assert "arch_str" in arrays.files
        names = [n for n in arrays.files if arrays[n].shape == (15625,) and n != "arch_str"]
    assert len(tables.load(file, NB201, names[0]).known) == 15625
