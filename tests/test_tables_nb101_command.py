"""NAS-Bench-101 on the command line, and the file that its benchmark imports."""

import base64
import json
from dataclasses import replace

import nb101_official as official
import numpy as np
import pytest
from nb101_official import SMALL, training
from tiny_runs import REPOSITORY, cli, printed

from nasfast.tables import importers, nb101_files
from nasfast.tables.curve_table import CurveTable
from nasfast.tables.importers import import_table


def test_import_and_show(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = cli("import", "table", SMALL)
    assert refused.exit_code == 2
    assert "423,619 of 423,624 architectures" in refused.stderr
    assert list(tmp_path.iterdir()) == []
    done = cli("import", "table", SMALL, "--partial")
    assert done.exit_code == 0, done.stderr
    assert "written: nb101_small.table: NAS-Bench-101 full, 5 rows, " in done.stdout
    assert "missing: 423,619 of 423,624 architectures" in done.stdout
    values = printed(cli("import", "table", SMALL, "--partial", "--json", "--out", "b.table"))
    assert (values["rows"], values["space"], values["table"]) == (5, "nb101", "b.table")
    assert (tmp_path / "b.table").read_bytes() == (tmp_path / "nb101_small.table").read_bytes()
    assert values["bytes"] == (tmp_path / "b.table").stat().st_size
    shown = cli("table", "show", "b.table")
    assert shown.exit_code == 0, shown.stderr
    assert "b.table: NAS-Bench-101 full, space nb101, 5 rows" in shown.stdout
    assert "  cifar10/108/test_accuracy           float32 5 x 3\n" in shown.stdout
    found = printed(cli("table", "show", "b.table", "--json"))
    wanted = {
        name: np.mean([run["test_accuracy"] for run in runs[108]])
        for name, runs in official.statistics(SMALL).items()
    }
    best = found["best"]["cifar10/108/test_accuracy"]
    assert [row["hash"] for row in best] == sorted(wanted, key=lambda name: -wanted[name])[:3]
    assert best[0]["mean"] == pytest.approx(max(wanted.values()), abs=1e-9)
    assert found["columns"]["hash"] == {"type": "uint8", "shape": [5, 16]}


def test_show_counts_what_is_missing_and_finds_damage(tmp_path):
    records = [official.record(training(name)) for name in (1, 1, 2)]
    source = official.write(tmp_path / "source.tfrecord", records)
    import_table(source, path := tmp_path / "t.table", partial=True)
    found = printed(cli("table", "show", path, "--json"))
    assert found["columns"]["cifar10/108/train_seconds"]["missing"] == 3
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    refused = cli("table", "show", path)
    assert refused.exit_code == 2
    assert "the checksum does not fit in 1 of 14 columns: " in refused.stderr


def test_the_benchmark_writes_the_official_layout(tmp_path, monkeypatch):
    """The large random file of bench/import_tfrecord.py is read by others as by us."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "bench"))
    import import_tfrecord as bench

    path = tmp_path / "t.tfrecord"
    assert bench.write(path, bench.records(40, 108), at_once=7) == 120
    found = official.statistics(path)
    assert {len(runs[108]) for runs in found.values()} == {3} and len(found) == 40
    import_table(path, tmp_path / "t.table", partial=True)
    table = CurveTable.open(tmp_path / "t.table")
    wanted = [[run["test_accuracy"] for run in found[name][108]] for name in sorted(found)]
    assert table.columns.array("cifar10/108/test_accuracy").tolist() == wanted
    content = next(official.read(path))
    message = base64.b64decode(json.loads(content)[4])
    assert official.ModelMetrics.FromString(message).SerializeToString() == message


def test_measure_of_the_benchmark(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "bench"))
    import import_tfrecord as bench

    found = bench.measure(rows=50, repeats=1)
    assert found["records"] == 150
    assert 0 < found["opening_s"] < found["truth_s"] < found["ours_s"]
    assert found["peak_mib"] >= found["peak_mib_before"] > 0


def test_an_importer_can_be_replaced(tmp_path, monkeypatch):
    """What is incomplete is decided once for all kinds of sources."""
    base = nb101_files.IMPORTER

    def read(path, on_progress):
        return replace(base.read(path, on_progress), missing=["a leg"], checks=[])

    fake = replace(base, read=read)
    monkeypatch.setattr(importers, "importers", lambda: (fake,))
    with pytest.raises(ValueError, match=r"not the whole of NAS-Bench-101 full: a leg\. Nothing"):
        import_table(SMALL, tmp_path / "t")
