"""Official results for the fuzz tests: a table of columns, and a tfrecord of NAS-Bench-101."""

import base64
import json
import random
import tempfile
from pathlib import Path

import fuzz_mutations as mutations
import nb101_official as official
import numpy as np

from nasfast import tables
from nasfast.spaces import NB201
from nasfast.tables import nb101_files
from nasfast.tables.columns import open_columns, write_columns
from nasfast.tables.curve_table import CurveTable, write_curve_table
from nasfast.tables.overview import overview

COLUMN = "cifar10/200/test_accuracy"


def make_columns(path: Path) -> None:
    header = {"space": "nb201", "release": "a test", "sources": [], "missing": ["a leg"],
              "checks": [], "importer": "0"}  # fmt: skip
    columns = {
        "index": np.array([1, 5, 8]),
        "cifar10/200/seeds": np.array([[7, 8], [7, -1], [8, 7]], dtype=np.int32),
        COLUMN: np.array([[0.5, 1], [0, np.nan], [0.25, 1]], dtype=np.float32),
        "cifar10/200/train_loss": np.full((3, 2, 4), np.nan, dtype=np.float32),
    }
    write_curve_table(path, header, columns)


def read_columns(path: Path) -> None:
    table = CurveTable.open(path)
    table.columns.check()
    overview(table)
    if "index" in table.columns.names:
        found = tables.load(path, NB201, COLUMN)
        assert found.truth.shape == (15625,)
        assert ((found.truth[found.known] >= 0) & (found.truth[found.known] <= 1)).all()


def changed_columns(content: bytes, draw: random.Random) -> bytes:
    """Change the listing, or what is in the file with checksums that fit."""
    if draw.random() < 0.5:
        return mutations.safetensors(content, draw)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t"
        path.write_bytes(content)
        opened = open_columns(path)
        header = opened.header
        columns = {name: opened.array(name) for name in opened.names}
        which = draw.choice(opened.names)
        if draw.random() < 0.5:
            header = mutations.changed_value(header, draw)
        else:
            changed = np.frombuffer(columns[which].tobytes(), dtype=draw.choice(("u1", "<f4")))
            columns[which] = draw.choice((changed, columns[which][:, None], changed.copy()))
            if draw.random() < 0.5:
                columns[draw.choice(("hash", "a/b/c_loss", "a/b/seeds"))] = columns.pop(which)
        try:
            write_columns(path, header, columns)
        except ValueError:  # unequal rows: not even a file
            return content[: draw.randrange(len(content))]
        return path.read_bytes()


def make_tfrecord(path: Path) -> None:
    trainings = [official.training(name) for name in (1, 2, 1)]
    official.write(path, map(official.record, trainings))


def read_tfrecord(path: Path) -> None:
    found = nb101_files.IMPORTER.read(path, lambda done, total: None)
    assert len(found.columns["hash"]) <= 3
    for name in found.columns:
        column = found.columns[name]
        if name.endswith("_accuracy"):
            assert np.nanmax(column, initial=0.0) <= 1.0


def changed_record(content: bytes, draw: random.Random) -> bytes:
    """Change a record, or the message in it; the checksums fit."""
    records = [json.loads(part) for part in official.unframed(content)]
    place = draw.randrange(len(records))
    what = draw.randrange(3)
    if what == 0:
        records[place] = mutations.changed_value(records[place], draw)
    elif what == 1:
        message = mutations.damaged(base64.b64decode(records[place][4]), draw)
        records[place][4] = base64.b64encode(message).decode()
    texts = [json.dumps(record).encode() for record in records]
    if what == 2:
        texts[place] = mutations.damaged(texts[place], draw)
    return official.framed(texts)
