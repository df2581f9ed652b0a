import json
import zipfile

import numpy as np
import pytest

from nasfast import tables
from nasfast.spaces import NB201
from nasfast.tables import trainings

STRINGS = [str(arch) for arch in NB201.enumerate()]


def test_shipped_tables():
    for name in tables.shipped():
        table = tables.load(name, NB201)
        assert table.name == name
        known = table.truth[table.known]
        assert len(known) == 15625
        assert ((known >= 0) & (known <= 1)).all()


def test_neither_file_nor_shipped():
    with pytest.raises(FileNotFoundError, match="table: 'nothing' is neither a file nor a shipped"):
        tables.load("nothing", NB201)


# Tables of trainings, by hand: architectures 4 and 9 are one function, 7 is another.

RESULTS = trainings.Trainings(
    train_loss=np.array([[[2.0, 1.2345678], [2.5, 1e9]], [[2.25, 0.5], [np.inf, np.nan]]]),
    valid_correct=np.array([[20, 30], [0, 7]]),
    test_correct=np.array([[10, 20], [30, 3]]),
    diverged_at=np.array([[-1, -1], [-1, 8]], dtype=np.int32),
)


def write(path, results=RESULTS, **changes):
    arguments = {
        "name": "toy",
        "truth_name": "accuracy",
        "archs": [NB201.from_index(i) for i in (4, 7, 9)],
        "network": np.array([0, 1, 0], dtype=np.int32),
        "merging": "linear",
        "images": (30, 40),
        "settings": {"seeds": [0, 5]},
        "measured": {"seconds": 2.5},
    }
    trainings.write(path, results, **(arguments | changes))
    return path


def test_trainings_by_hand(tmp_path):
    table = tables.load(write(tmp_path / "t.npz"), NB201)
    assert isinstance(table, tables.TrainingTable)
    assert (table.name, table.truth_name, table.seeds) == ("toy", "accuracy", (0, 5))
    assert (table.merging, table.measured) == ("linear", {"seconds": 2.5})
    assert table.index.tolist() == [4, 7, 9]
    assert table.network.tolist() == [0, 1, 0]
    assert table.known.tolist() == [4, 9]  # a training of 7 diverged
    assert table.truth[4] == table.truth[9] == (10 / 40 + 20 / 40) / 2
    nan = np.nan
    np.testing.assert_array_equal(table.test_accuracy, [[0.25, 0.5], [0.75, nan], [0.25, 0.5]])
    np.testing.assert_array_equal(table.valid_accuracy[:2], [[20 / 30, 1.0], [0.0, nan]])
    assert table.diverged_at.tolist() == [[-1, -1], [-1, 8], [-1, -1]]
    np.testing.assert_allclose(table.train_loss[2, 0], [2.0, 1.2345678], rtol=5e-4)
    assert table.train_loss[2, 1, 1] == 65504  # large, yet finite
    assert table.train_loss[1, 1, 0] == np.inf and np.isnan(table.train_loss[1, 1, 1])
    assert [f.name for f in tmp_path.iterdir()] == ["t.npz"]


def test_trainings_of_their_own(tmp_path):
    results = trainings.Trainings(*(array[[0, 1, 0]] for array in vars(RESULTS).values()))
    results.test_correct[2] = 40
    table = tables.load(write(tmp_path / "t.npz", results, merging="none"), NB201)
    assert table.network.tolist() == [0, 1, 0]
    assert (table.truth[4], table.truth[9]) == (0.375, 1.0)


@pytest.mark.parametrize(
    ("column", "known", "truth", "words"),
    [
        ("test", [4, 9], 0.375, "accuracy"),
        ("valid", [4, 9], (20 / 30 + 1) / 2, "validation accuracy of toy, mean of 2 seeds"),
        ("test/0", [4, 7, 9], 0.25, "test accuracy of toy, seed 0"),
        ("valid/5", [4, 9], 1.0, "validation accuracy of toy, seed 5"),
    ],
)
def test_columns_of_trainings(tmp_path, column, known, truth, words):
    table = tables.load(write(tmp_path / "t.npz"), NB201, column)
    assert table.known.tolist() == known
    assert table.truth[9] == truth
    assert table.truth_name == words
    assert table.name == ("toy" if column == "test" else f"toy:{column}")


@pytest.mark.parametrize("column", ["", "tests", "test/1", "test/", "valid/00", "train_loss"])
def test_no_such_column_of_trainings(tmp_path, column):
    file = write(tmp_path / "t.npz")
    with pytest.raises(ValueError, match=r"t\.npz: wanted column 'test' or 'valid', or") as caught:
        tables.load(file, NB201, column)
    assert f"one of its seeds 0, 5 as in 'test/0', got {column!r}" in str(caught.value)


def packed(**changes):
    def change(arrays):
        header = json.loads(arrays["nasfast_table"].tobytes())
        for key, value in changes.items():
            header.pop(key) if value is None else header.update({key: value})
        arrays["nasfast_table"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)

    return change


def replaced(name, change):
    return lambda arrays: arrays.update({name: change(arrays[name])})


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (packed(format="nasfast-table-3"), "wanted format 'nasfast-table-2', got 'nasfast-table-3"),
        (packed(space="nb101"), "wanted a table of nb201, got one of nb101"),
        (packed(merging="all"), "merging: wanted 'linear' or 'none', got 'all'"),
        (packed(merging="none"), "train_loss: wanted numbers [3, 2, 2], got float16 [2, 2, 2]"),
        (packed(settings={"seeds": [0]}), "train_loss: wanted numbers [2, 1, 2]"),
        (packed(settings=None), "key 'settings' is missing"),
        (packed(epochs=3), "train_loss: wanted numbers [2, 2, 3]"),
        (packed(test_images=29), "test_correct: wanted counts of at most 29 images"),
        (packed(valid_images="x"), "valid_correct: wanted counts of at most 'x' images"),
        (packed(valid_images=None), "key 'valid_images' is missing"),
        (replaced("nasfast_table", lambda a: a[:9]), "header: "),
        (replaced("nasfast_table", lambda a: a.astype(float)), "header: wanted JSON as uint8"),
        (replaced("measured", lambda a: a[:0]), "Expecting value"),
        (lambda arrays: arrays.pop("network"), "array 'network' is missing"),
        (replaced("index", lambda a: a[::-1]), "index: wanted ascending numbers in 0..15624"),
        (replaced("index", lambda a: a + 15616), "index: wanted ascending numbers in 0..15624"),
        (replaced("index", lambda a: a.astype(float)), "index: wanted int32 [3], got float64 [3]"),
        (replaced("index", lambda a: a[:0]), "index: wanted int32 [0]"),
        (replaced("network", lambda a: a[:2]), "network: wanted int32 [3], got int32 [2]"),
        (replaced("network", lambda a: 1 - a), "network: wanted numbers by first appearance"),
        (replaced("network", lambda a: a + 1), "network: wanted numbers by first appearance"),
        (replaced("network", lambda a: a * 0), "train_loss: wanted numbers [1, 2, 2]"),
        (
            replaced("arch_str", lambda a: a[[1, 0, 2]]),
            f"not in the official order of nb201: wanted {STRINGS[4]} at index 4, got {STRINGS[7]}",
        ),
        (replaced("arch_str", lambda a: a[:2]), "wanted [3] strings in 'arch_str', got [2]"),
        (replaced("train_loss", lambda a: a.astype("S")), "train_loss: wanted numbers"),
        (replaced("train_loss", lambda a: a * np.float16("nan")), "train_loss: not finite in a"),
        (replaced("test_correct", lambda a: a + 40), "test_correct: wanted counts of at most 40"),
        (replaced("test_correct", lambda a: a.astype(float)), "test_correct: wanted numbers"),
        (replaced("valid_correct", lambda a: -a.astype(int)), "valid_correct: wanted counts"),
        (replaced("diverged_at", lambda a: a[:1]), "diverged_at: wanted numbers [2, 2]"),
    ],
)
def test_damaged_trainings(tmp_path, change, wanted):
    file = write(tmp_path / "t.npz")
    with np.load(file) as stored:
        arrays = dict(stored)
    change(arrays)
    np.savez(file, **arrays)
    with pytest.raises(ValueError, match=r"t\.npz: not a usable table: ") as caught:
        tables.load(file, NB201)
    assert wanted in str(caught.value)


def test_every_damaged_byte_is_harmless(tmp_path):
    """A changed byte is found, or lies where it changes nothing."""
    file = write(tmp_path / "t.npz")
    whole = file.read_bytes()
    wanted = vars(tables.load(file, NB201))
    for place in range(0, len(whole), 7):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        try:
            found = vars(tables.load(file, NB201))
        except ValueError as error:
            assert "t.npz: " in str(error)
        else:
            for name, value in wanted.items():
                np.testing.assert_array_equal(found[name], value)


def test_bytes_are_the_same_every_time(tmp_path):
    assert write(tmp_path / "a.npz").read_bytes() == write(tmp_path / "b.npz").read_bytes()


def test_size_of_a_whole_space(tmp_path):
    """All of NAS-Bench-201 with 3 seeds of 16 epochs fits into 2 MB, even without copies."""
    rng = np.random.default_rng(0)
    results = trainings.Trainings(
        train_loss=rng.lognormal(size=(15625, 3, 16)),
        valid_correct=rng.integers(361, size=(15625, 3)),
        test_correct=rng.integers(361, size=(15625, 3)),
        diverged_at=np.full((15625, 3), -1, dtype=np.int32),
    )
    file = write(
        tmp_path / "t.npz", results, archs=NB201.enumerate(), merging="none", images=(360, 360),
        network=np.arange(15625), settings={"seeds": [0, 1, 2]},
    )  # fmt: skip
    assert file.stat().st_size < 2_000_000
    assert len(tables.load(file, NB201).known) == 15625


def test_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    file = write(tmp_path / "t.npz")
    before = file.read_bytes()

    def refuse(*_):
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr("nasfast.files.os.replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        write(file, name="other")
    assert file.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["t.npz"]


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
