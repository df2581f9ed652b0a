import os
import resource
import signal

import pytest

from nasfast.journal import Journal

RECORDS = [{"n": 1, "loss": [0.1, float("inf")]}, {"n": 2, "loss": []}]


def write(path, records=RECORDS, **settings):
    with Journal(path, settings or {"a": {"b": 1}}) as journal:
        for record in records:
            journal.append(record)
        return journal.records


def test_round_trip(tmp_path):
    path = tmp_path / "j"
    assert write(path, []) == []
    assert write(path) == RECORDS
    assert write(path, []) == RECORDS
    with Journal(path, {"a": {"b": 1}}) as journal:
        journal.remove()
    assert list(tmp_path.iterdir()) == []


def test_every_cut_is_mended(tmp_path):
    """However much of the file a kill left, whole records count and the rest is written again."""
    path = tmp_path / "j"
    write(path)
    whole = path.read_bytes()
    ends = [k + 1 for k, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        kept = write(path, [])
        assert kept == RECORDS[: max(0, sum(end <= size for end in ends) - 1)]
        write(path, RECORDS[len(kept) :])
        assert path.read_bytes() == whole


def test_every_flipped_bit_is_found(tmp_path):
    path = tmp_path / "j"
    write(path)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for place in range(last):  # the end of the last line may look cut
        damaged = bytearray(whole)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"j: damaged \(.*\); delete it to begin anew"):
            write(path, [])


def test_other_settings(tmp_path):
    write(tmp_path / "j")
    with pytest.raises(ValueError, match=r"j: holds work of another configuration \(a\.b: 1 then"):
        write(tmp_path / "j", a={"b": 2})


def test_one_process_at_a_time(tmp_path):
    busy = pytest.raises(OSError, match="j: another process is writing it")
    with Journal(tmp_path / "j", {}), busy:
        Journal(tmp_path / "j", {})
    Journal(tmp_path / "j", {}).close()


def test_no_place(tmp_path):
    with pytest.raises(FileNotFoundError):
        Journal(tmp_path / "no" / "j", {})
    with pytest.raises(IsADirectoryError):
        Journal(tmp_path, {})


def test_full_disk(tmp_path):
    """A limit on the size of files stands for a full disk; what was written before stays."""
    path = tmp_path / "j"
    write(path)
    size = os.path.getsize(path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
        with pytest.raises(OSError, match="File too large"):
            write(path, [{"n": 3}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert write(path, []) == RECORDS
