import math
import os
import sqlite3

import numpy as np
import pytest

from nasfast.store import ScoreStore, StoreError, stored_settings

SETTINGS = {"seed": 0, "rank": {"bn": "batch", "archs": None}}


def add(store, archs, weights="supernet"):
    store.add(weights, archs, [a / 10 for a in archs], [1] * len(archs), 4)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "scores.sqlite"


def test_round_trip(file):
    with ScoreStore(file, SETTINGS) as store:
        store.add("supernet", [7, 3], [0.1, 2.5], [1, 4], 4)
        add(store, [9], weights="untrained")
    with ScoreStore(file, SETTINGS) as store:
        archs, loss, accuracy = store.read("supernet")
        assert archs.tolist() == [3, 7]
        assert loss.tolist() == [2.5, 0.1]
        assert accuracy.tolist() == [1.0, 0.25]
        assert store.done("supernet") == {3, 7}
        assert store.done("untrained") == {9}
        assert store.done("nothing") == set()
        assert [len(a) for a in store.read("nothing")] == [0, 0, 0]


def test_not_finite_and_tiny_losses_come_back(file):
    losses = [math.nan, math.inf, -math.inf, 5e-324, 0.1 + 0.2]
    with ScoreStore(file, SETTINGS) as store:
        store.add("supernet", range(5), np.array(losses), [0] * 5, 1)
    with ScoreStore(file, SETTINGS) as store:
        assert np.array_equal(store.read("supernet")[1], losses, equal_nan=True)


def test_write_ahead_log(file):
    with ScoreStore(file, SETTINGS):
        reader = sqlite3.connect(file)
        assert reader.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        reader.close()


def test_a_chunk_is_added_whole_or_not_at_all(file):
    with ScoreStore(file, SETTINGS) as store:
        add(store, [1, 2, 3])
        with pytest.raises(StoreError, match="3 scores not written"):
            add(store, [4, 2, 5])  # 2 has a score already
        assert store.done("supernet") == {1, 2, 3}
        add(store, [4, 5])
        assert store.read("supernet")[0].tolist() == [1, 2, 3, 4, 5]


def test_interrupt_within_a_chunk_leaves_none_of_it(file):
    class Interrupting(list):
        def __iter__(self):
            yield 1.0
            raise KeyboardInterrupt

    with ScoreStore(file, SETTINGS) as store:
        with pytest.raises(KeyboardInterrupt):
            store.add("supernet", [1, 2], Interrupting(), [1, 1], 4)
        assert store.done("supernet") == set()
        add(store, [1, 2])


def test_kill_within_a_chunk_leaves_none_of_it(file):
    """The process dies between the rows of a chunk and its commit."""
    with ScoreStore(file, SETTINGS) as store:
        add(store, [1])
    child = os.fork()
    if child == 0:
        store = ScoreStore(file, SETTINGS)
        store._db.execute("BEGIN IMMEDIATE")
        store._db.execute("INSERT INTO scores VALUES ('supernet', 2, 0.5, 1, 4)")
        os._exit(9)
    os.waitpid(child, 0)
    with ScoreStore(file, SETTINGS) as store:
        assert store.done("supernet") == {1}
        add(store, [2])


def test_lengths_must_agree(file):
    with ScoreStore(file, SETTINGS) as store, pytest.raises(ValueError, match="zip"):
        store.add("supernet", [1, 2], [0.5], [1, 1], 4)


def test_other_settings_are_refused(file):
    ScoreStore(file, SETTINGS).close()
    other = {"seed": 0, "rank": {"bn": "batch/running", "archs": None}}
    with pytest.raises(StoreError, match=r"rank\.bn: 'batch' then, 'batch/running' now"):
        ScoreStore(file, other)
    ScoreStore(file, SETTINGS).close()


def test_origins(file):
    with ScoreStore(file, SETTINGS) as store:
        assert store.origins() == []
        for origin in ("cpu (amx)", "cpu (avx2)", "cpu (amx)"):
            store.add_origin(origin)
    with ScoreStore(file, SETTINGS) as store:
        assert store.origins() == ["cpu (amx)", "cpu (avx2)"]
        store._db.execute("PRAGMA query_only = 1")
        with pytest.raises(OSError, match=r"scores\.sqlite: origin of the scores not written"):
            store.add_origin("reference")
        assert store.origins() == ["cpu (amx)", "cpu (avx2)"]


def test_stored_settings(file):
    assert stored_settings(file) == {}
    assert not file.exists()
    ScoreStore(file, SETTINGS).close()
    assert stored_settings(file) == SETTINGS
    file.write_bytes(b"scores" * 99)
    assert stored_settings(file) == {}


def test_kill_before_the_settings_were_written(file):
    ScoreStore(file, SETTINGS).close()
    with sqlite3.connect(file) as db:
        db.execute("DELETE FROM meta")
    db.close()
    with ScoreStore(file, SETTINGS) as store:
        add(store, [1])


def test_other_schema_is_refused(file):
    ScoreStore(file, SETTINGS).close()
    with sqlite3.connect(file) as db:
        db.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
    db.close()
    with pytest.raises(StoreError, match="wanted a score file of schema 1, got 99"):
        ScoreStore(file, SETTINGS)


def filled(file):
    with ScoreStore(file, SETTINGS) as store:
        add(store, list(range(3000)))
    return file.read_bytes()


def test_overwritten_header_is_refused(file):
    content = filled(file)
    file.write_bytes(b"\xff" * 100 + content[100:])
    with pytest.raises(StoreError, match=r"scores\.sqlite.*not a database"):
        ScoreStore(file, SETTINGS)


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_truncated_file_is_refused(file, keep):
    content = filled(file)
    file.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(StoreError, match=r"scores\.sqlite"):
        ScoreStore(file, SETTINGS)


def test_overwritten_page_is_refused(file):
    content = filled(file)
    middle = len(content) // 2 // 4096 * 4096
    file.write_bytes(content[:middle] + b"\xaa" * 4096 + content[middle + 4096 :])
    with pytest.raises(StoreError, match=r"scores\.sqlite.*damaged"):
        ScoreStore(file, SETTINGS)


def test_folder_in_place_of_the_file(file):
    file.mkdir()
    with pytest.raises(OSError, match=r"scores\.sqlite.*unable to open"):
        ScoreStore(file, SETTINGS)


def test_full_disk(file):
    with ScoreStore(file, SETTINGS) as store:
        add(store, [1])
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(OSError, match=r"2000 scores not written.*full"):
            add(store, list(range(10, 2010)))
        assert store.done("supernet") == {1}
