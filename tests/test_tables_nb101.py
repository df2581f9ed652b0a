"""NAS-Bench-101: what its authors' layout holds comes out; what is damaged or missing is said."""

import base64
import hashlib
import json
import random
import shutil
from pathlib import Path

import nb101_official as official
import numpy as np
import pytest
from nb101_official import EVALUATIONS, SMALL, training
from tiny_runs import cli

from nasfast.tables import importers, nb101_files, tfrecord
from nasfast.tables.columns import open_columns
from nasfast.tables.curve_table import CurveTable
from nasfast.tables.importers import import_table


def imported(tmp_path: Path, records: list[bytes], partial: bool = True) -> CurveTable:
    source = official.write(tmp_path / "source.tfrecord", records)
    import_table(source, tmp_path / "t.table", partial=partial)
    return CurveTable.open(tmp_path / "t.table")


@pytest.fixture
def small_release(monkeypatch):
    """The whole space has the five architectures of the small file."""
    monkeypatch.setattr(nb101_files, "ROWS", 5)
    best = {}
    for quantity in ("test_accuracy", "valid_accuracy"):
        runs = [runs[108] for runs in official.statistics(SMALL).values()]
        best[quantity] = max(np.mean([run[quantity] for run in three]) for three in runs)
    monkeypatch.setattr(nb101_files, "_BEST", best)


def test_the_small_file_as_others_read_it(tmp_path):
    """Written by tfrecord and crc32c; read by TensorBoard and Google's protocol buffers."""
    report = import_table(SMALL, tmp_path / "t.table", partial=True)
    assert report["missing"] == ["423,619 of 423,624 architectures"]
    assert report["checks"] == []
    table = CurveTable.open(tmp_path / "t.table")
    table.columns.check()
    assert (table.space, table.release, table.rows) == ("nb101", "NAS-Bench-101 full", 5)
    wanted = official.statistics(SMALL)
    hashes = table.columns.array("hash")
    assert [bytes(key).hex() for key in hashes] == sorted(wanted)
    assert table.rows_of_hashes(hashes).tolist() == list(range(5))
    compared = 0
    for row, name in enumerate(sorted(wanted)):
        for epochs, runs in wanted[name].items():
            seeds = table.columns.array(f"cifar10/{epochs}/seeds")
            assert seeds[row].tolist() == [0, 1, 2]
            for run, values in enumerate(runs):
                for quantity, value in values.items():
                    column = table.columns.array(f"cifar10/{epochs}/{quantity}")
                    assert column[row, run] == np.float32(value)
                    assert table.truth("cifar10", epochs, quantity, run)[row] == column[row, run]
                    compared += 1
    assert compared == 5 * 4 * 3 * 8
    assert len(table.quantities) == 4 * 8


def test_graphs_of_the_small_file(tmp_path):
    table = CurveTable(import_small(tmp_path))
    names = {-1: "input", -2: "output", 0: "conv3x3-bn-relu", 1: "conv1x1-bn-relu",
             2: "maxpool3x3"}  # fmt: skip
    wanted = {}
    for content in official.read(SMALL):
        name, _, adjacency, operations, text = json.loads(content)
        message = official.ModelMetrics.FromString(base64.b64decode(text))
        wanted[name] = (adjacency, operations, message.trainable_parameters)
    columns = {name: table.columns.array(name) for name in table.columns.names}
    for row in range(5):
        count = columns["vertices"][row]
        matrix, labels = columns["adjacency"][row], columns["operations"][row].tolist()
        assert not matrix[count:].any() and not matrix[:, count:].any()
        assert labels[count:] == [-3] * (7 - count)
        found = (
            "".join(map(str, matrix[:count, :count].reshape(-1))),
            ",".join(names[label] for label in labels[:count]),
            columns["parameters"][row],
        )
        assert found == wanted[bytes(columns["hash"][row]).hex()]


def import_small(tmp_path):
    import_table(SMALL, tmp_path / "t.table", partial=True)
    return open_columns(tmp_path / "t.table")


def test_the_header_says_where_it_is_from(tmp_path):
    header = import_small(tmp_path).header
    (source,) = header["sources"]
    content = SMALL.read_bytes()
    assert source == {
        "name": "nb101_small.tfrecord",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    assert header["notes"][0] == "sha256 is that of no published file"
    assert header["units"]["*_seconds"] == "s"


def test_a_whole_release_needs_no_option(tmp_path, small_release):
    report = import_table(SMALL, tmp_path / "t.table")
    assert report["missing"] == []
    assert [check["good"] for check in report["checks"]] == [True, True]


def test_only_108(tmp_path, small_release):
    kept = [content for content in official.read(SMALL) if json.loads(content)[1] == 108]
    table = imported(tmp_path, kept, partial=False)
    assert table.release == "NAS-Bench-101 only108"
    assert {name.split("/")[1] for name in table.quantities} == {"108"}


def test_other_best_values_are_another_release(tmp_path, small_release, monkeypatch):
    monkeypatch.setattr(nb101_files, "_BEST", {"test_accuracy": 0.943175752957662})
    words = (
        r"not the whole of NAS-Bench-101 full: best mean test accuracy after 108 epochs: "
        r"wanted 0\.943176, got 0\.\d+\. Nothing is written; --partial writes what there is"
    )
    with pytest.raises(ValueError, match=words):
        import_table(SMALL, tmp_path / "t.table")
    assert list(tmp_path.iterdir()) == []
    report = import_table(SMALL, tmp_path / "t.table", partial=True)
    assert [check["good"] for check in report["checks"]] == [False]


def test_what_is_missing_is_counted(tmp_path, small_release):
    kept = [content for content in official.read(SMALL) if json.loads(content)[1] != 12]
    source = official.write(tmp_path / "s.tfrecord", kept[:-1])
    last = json.loads(kept[-1])[1]
    words = (
        r"15 of 15 trainings of 12 epochs of the architectures it has; "
        rf"1 of 15 trainings of {last} epochs"
    )
    if last == 4:
        words = r"1 of 15 trainings of 4 epochs.*; 15 of 15 trainings of 12 epochs"
    with pytest.raises(ValueError, match=words):
        import_table(source, tmp_path / "t.table")
    assert [path.name for path in tmp_path.iterdir()] == ["s.tfrecord"]
    import_table(source, tmp_path / "t.table", partial=True)
    table = CurveTable.open(tmp_path / "t.table")
    seeds = table.columns.array(f"cifar10/{last}/seeds")
    column = table.columns.array(f"cifar10/{last}/test_accuracy")
    assert (seeds < 0).sum() == 1
    np.testing.assert_array_equal(np.isnan(column), seeds < 0)
    assert not np.isnan(table.truth("cifar10", last)).any()


def test_runs_are_in_the_order_of_the_file(tmp_path):
    """Records of several architectures and lengths mixed, some in each chunk."""
    trainings = []
    generator = random.Random(3)
    for _ in range(3):
        for name in generator.sample(range(40), 40):
            values = [(0, 0, 0, 0, 0)] + [
                (1, *(float(np.float32(generator.random())) for _ in range(4))) for _ in range(2)
            ]
            trainings.append(training(name, 36, evaluations=values, parameters=name))
    numbers = {each.hash: each.parameters for each in trainings}
    assert len(numbers) == 40
    source = official.write(tmp_path / "s", map(official.record, trainings))
    import_table(source, tmp_path / "t.table", partial=True)
    table = CurveTable.open(tmp_path / "t.table")
    column = table.columns.array("cifar10/36/valid_accuracy")
    for name, lengths in official.statistics(source).items():
        (row,) = table.rows_of_hashes(np.frombuffer(bytes.fromhex(name), np.uint8)[None])
        assert column[row].tolist() == [run["valid_accuracy"] for run in lengths[36]]
        assert table.columns.array("parameters")[row] == numbers[name]


# Bad input.

FIRST, SECOND = (training(name).hash for name in (1, 2))


def changed(**fields: object) -> bytes:
    made = training()
    values = [*made[:4], json.loads(official.record(made))[4]]
    for key, value in fields.items():
        values[["hash", "epochs", "adjacency", "operations", "metrics"].index(key)] = value
    return json.dumps(values).encode()


def message(**changes: object) -> bytes:
    return official.record(training(), official.metrics(training(**changes)))


BAD = [
    (b"{", "wanted JSON, got b'{'"),
    (b"\xff\xfe", "wanted JSON, got"),
    (b"1],[2", "wanted JSON"),
    (b"[1, 2, 3, 4]", "wanted [hash, epochs, adjacency, operations, metrics], got [1, 2, 3, 4]"),
    (b'{"hash": 1}', "wanted [hash, epochs, adjacency, operations, metrics]"),
    (changed(hash="12"), "hash: wanted 32 hexadecimal digits, got '12'"),
    (changed(hash="g" * 32), "hash: wanted 32 hexadecimal digits"),
    (changed(hash=None), "hash: wanted 32 hexadecimal digits, got None"),
    (changed(hash=SECOND, epochs=200), "epochs: wanted one of (4, 12, 36, 108), got 200"),
    (changed(hash=SECOND, epochs="108"), "epochs: wanted one of"),
    (changed(hash=SECOND, adjacency="01000100"), "adjacency: wanted 9 digits 0 or 1 for 3"),
    (changed(hash=SECOND, adjacency="020001000"), "adjacency: wanted 9 digits 0 or 1"),
    (changed(hash=SECOND, adjacency="110001000"), "adjacency: wanted an upper triangle"),
    (changed(hash=SECOND, adjacency=9), "adjacency, operations: wanted text, got 9"),
    (changed(hash=SECOND, operations="input,conv5x5,output"), "operations: wanted input, up"),
    (changed(hash=SECOND, operations="input,input,output"), "operations: wanted input, up"),
    (changed(hash=SECOND, operations="output,maxpool3x3,input"), "operations: wanted input"),
    (changed(hash=SECOND, operations=""), "operations: wanted input"),
    (
        changed(
            hash=SECOND,
            operations="input,maxpool3x3,maxpool3x3,maxpool3x3,output",
            adjacency="0111100111000110000100000",
        ),
        "adjacency: wanted at most 9 edges, got '0111100111",
    ),
    (changed(hash=SECOND, epochs=108.0), "epochs: wanted one of (4, 12, 36, 108), got 108.0"),
    (changed(hash=SECOND, epochs=True), "epochs: wanted one of (4, 12, 36, 108), got True"),
    (changed(epochs=[108]), "epochs: wanted one of (4, 12, 36, 108), got [108]"),
    (
        changed(adjacency="011001000"),
        f"hash: wanted {official.graph_hash('011001000', training().operations)} for its graph, "
        f"got {FIRST}; an earlier record of this hash has another graph",
    ),
    (changed(operations="input,maxpool3x3,output"), f"for its graph, got {FIRST}; an earlier"),
    (
        changed(adjacency="010000000"),
        f"no path leads from input to output in the graph of hash {FIRST}",
    ),
    (changed(hash="0" * 32), f"hash: wanted {FIRST} for its graph, got {'0' * 32}"),
    (
        changed(hash=SECOND, adjacency="010000000"),
        f"adjacency: no path leads from input to output in the graph of hash {SECOND}",
    ),
    (changed(adjacency=[1]), "adjacency, operations: wanted text, got [1], 'input,"),
    (changed(metrics="?"), "metrics: wanted base64, got '?'"),
    (changed(metrics=None), "metrics: wanted base64, got None"),
    (
        changed(metrics=""),
        "metrics: wanted 3 evaluations and the number of parameters, got 0",
    ),
    (message(evaluations=EVALUATIONS[:2]), "wanted 3 evaluations and the number of param"),
    (message(evaluations=[*EVALUATIONS, EVALUATIONS[0]]), "wanted 3 evaluations"),
    (message(evaluations=[*EVALUATIONS[:2], (108, 1000, 1)]), "wanted train_seconds, train_accura"),
    (message(evaluations=[*EVALUATIONS[:2], (108, 9, 1, 75.0, 0.5)]), "accuracies from 0 to 1"),
    (message(evaluations=[*EVALUATIONS[:2], (108, 9, 1, -0.5, 0.5)]), "accuracies from 0 to 1"),
    (message(evaluations=[*EVALUATIONS[:2], (108, 9, float("nan"), 1, 1)]), "accuracies from 0"),
    (message(evaluations=[*EVALUATIONS[:2], (108, float("inf"), 1, 1, 1)]), "accuracies from 0"),
    (message(parameters=1001), f"parameters: wanted 1000 as in another record of hash {FIRST}"),
    (message(parameters=-1), "wanted parameters as int32"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_a_bad_record_is_named(tmp_path, bad, message):
    good = official.record(training())
    other = official.record(training(9))
    begin = 2 * 16 + len(good) + len(other)
    with pytest.raises(ValueError) as caught:
        imported(tmp_path, [good, other, bad, other])
    assert f"source.tfrecord: record 3 at byte {begin:,}: " in str(caught.value)
    assert message in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source.tfrecord"]


def test_the_first_record_of_a_wrong_hash_is_named(tmp_path, monkeypatch):
    """Also far behind: the records come in many pieces."""
    monkeypatch.setattr(tfrecord, "_CHUNK", 1000)
    records = [official.record(training(name)) for name in range(30)]
    bad = official.record(training(30, hash=training(50).hash))
    begin = sum(16 + len(record) for record in records)
    words = rf"record 31 at byte {begin:,}: hash: wanted {training(30).hash} for its graph, got "
    with pytest.raises(ValueError, match=words + training(50).hash):
        imported(tmp_path, [*records, bad, bad, records[3]])


def test_four_runs_of_one_length(tmp_path):
    """Two files put together, or another release."""
    content = official.record(training())
    with pytest.raises(ValueError, match=r"record 4 at byte .*: wanted 3 trainings of 108 epochs "):
        imported(tmp_path, [content] * 4)
    assert imported(tmp_path, [content] * 3).rows == 1


def test_more_architectures_than_the_space_has(tmp_path, small_release):
    records = [official.record(training(name)) for name in range(6)]
    with pytest.raises(ValueError, match=r"record 6 at .*: wanted 5 architectures, got one more"):
        imported(tmp_path, records)


def test_no_records(tmp_path):
    with pytest.raises(ValueError, match=r"source\.tfrecord: wanted records, got none"):
        imported(tmp_path, [])


def test_a_cut_or_corrupted_file_writes_nothing(tmp_path):
    content, source = SMALL.read_bytes(), tmp_path / "s.tfrecord"
    for bad in (content[:-7], content[:5000] + b"?" + content[5001:]):
        source.write_bytes(bad)
        with pytest.raises(ValueError, match=r"s\.tfrecord: record \d+ at byte [\d,]+ is c"):
            import_table(source, tmp_path / "t.table", partial=True)
        assert [path.name for path in tmp_path.iterdir()] == ["s.tfrecord"]


# Kinds of sources, and the command line.


def test_a_source_of_unknown_kind(tmp_path):
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"x\.txt: of no known kind\. Not NAS-Bench-101 tfrec"):
        import_table(tmp_path / "x.txt", tmp_path / "t.table")
    with pytest.raises(FileNotFoundError, match="source not found"):
        import_table(tmp_path / "none", tmp_path / "t.table")
    source = shutil.copy(SMALL, tmp_path / "without suffix")
    assert importers.find_importer(Path(source)).name == "NAS-Bench-101 tfrecord"
    with pytest.raises(ValueError, match="wanted another file than the source"):
        import_table(source, source, partial=True)
    with pytest.raises(ValueError, match="there is no folder"):
        import_table(source, tmp_path / "no" / "t.table", partial=True)


def test_nothing_but_an_older_table_is_replaced(tmp_path, monkeypatch):
    """And that is found out before anything is read."""
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "closed").mkdir()
    done = cli("import", "table", SMALL, "--partial", "--out", "t.table")
    assert done.exit_code == 0
    monkeypatch.setattr(nb101_files, "read_records", None)  # to read would be an error
    for out, words in {
        "notes.txt": "out: notes.txt is there and is no table that nasfast import wrote",
        "empty": "out: empty is there and is no table",
        "closed": "out: wanted the name of a file, got the folder closed",
        "": "out: wanted the name of a file, got '.'",
        "/": "out: wanted the name of a file, got '/'",
        "none/t.table": "out: there is no folder 'none' to write into",
        "notes.txt/t.table": "out: there is no folder 'notes.txt' to write into",
    }.items():
        done = cli("import", "table", SMALL, "--partial", "--out", out)
        assert (done.exit_code, words in done.stderr) == (2, True), done.stderr
    monkeypatch.setattr("nasfast.files.os.access", lambda *_: False)
    with pytest.raises(ValueError, match="out: the folder 'closed' may not be written to"):
        import_table(SMALL, Path("closed/t.table"), partial=True)
    assert other.read_text() == "mine"
    monkeypatch.undo()
    import_table(SMALL, tmp_path / "t.table", partial=True)


def test_progress_goes_to_the_end(tmp_path):
    seen: list[tuple[int, int]] = []
    import_table(SMALL, tmp_path / "t", partial=True, on_progress=lambda *now: seen.append(now))
    size = SMALL.stat().st_size
    assert seen[-1] == (size, size)
