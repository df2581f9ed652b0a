"""TFRecord files: both checksums, against published values and against other people's code."""

import tracemalloc
from pathlib import Path

import nb101_official as official
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasfast.tables import tfrecord
from nasfast.tables.tfrecord import Checksums, read_records

# RFC 3720, appendix B.4, and the check value of the catalogues of CRCs.
PUBLISHED = [
    (b"123456789", 0xE3069283),
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
    (b"", 0),
]


def crc32c(pieces: list[bytes]) -> list[int]:
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    buffer = np.frombuffer(b"".join(pieces) or b"\0", dtype=np.uint8)
    return Checksums().crc32c(buffer, np.cumsum(lengths) - lengths, lengths).tolist()


def bitwise(piece: bytes) -> int:
    """CRC-32C as its definition says: bit by bit."""
    value = 0xFFFFFFFF
    for byte in piece:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def framed(piece: bytes) -> bytes:
    """A record as the format says, byte by byte."""

    def masked(part: bytes) -> bytes:
        value = bitwise(part)
        value = (value >> 15 | value << 17 & 0xFFFFFFFF) + 0xA282EAD8 & 0xFFFFFFFF
        return bytes([value & 255, value >> 8 & 255, value >> 16 & 255, value >> 24])

    length = bytes([len(piece) & 255, len(piece) >> 8, 0, 0, 0, 0, 0, 0])
    return length + masked(length) + piece + masked(piece)


def records_of(path: Path) -> list[bytes]:
    seen: list[bytes] = []
    found = [r for batch in read_records(path, seen.append) for r in batch.records]
    assert b"".join(seen) == path.read_bytes()
    return found


def test_published_checksums():
    assert crc32c([piece for piece, _ in PUBLISHED]) == [value for _, value in PUBLISHED]
    for piece, value in PUBLISHED:
        assert crc32c([piece]) == [value] == [bitwise(piece)]


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=20))
def test_checksums_side_by_side(pieces):
    assert crc32c(pieces) == [bitwise(piece) for piece in pieces]


def test_checksums_of_many_and_of_long_pieces():
    rng = np.random.default_rng(0)
    pieces = [rng.bytes(int(size)) for size in rng.integers(0, 12, 9000)]
    pieces[17] = rng.bytes(3000)
    found = crc32c(pieces)
    for index in [17, *range(0, 9000, 500)]:
        assert found[index] == bitwise(pieces[index])


def test_a_record_made_by_hand(tmp_path):
    """0xE3069283 turned right by 15 bits is 0x2507C60D, and with 0xA282EAD8 0xC78AB0E5."""
    content = bytes.fromhex("0900000000000000 37f97139") + b"123456789" + bytes.fromhex("e5b08ac7")
    assert content == framed(b"123456789")
    (tmp_path / "t").write_bytes(content)
    assert records_of(tmp_path / "t") == [b"123456789"]


@pytest.mark.parametrize("chunk", [1, 13, 64, 1 << 22])
def test_what_tensorboard_writes(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(tfrecord, "_CHUNK", chunk)
    rng = np.random.default_rng(chunk)
    pieces = [rng.bytes(int(size)) for size in rng.integers(0, 90, 60)] + [b"", b"x"]
    path = official.write(tmp_path / "t", pieces)
    assert path.read_bytes() == b"".join(map(framed, pieces))
    assert records_of(path) == pieces
    assert list(official.read(path)) == pieces


def test_an_empty_file_has_no_records(tmp_path):
    (tmp_path / "t").write_bytes(b"")
    assert records_of(tmp_path / "t") == []


@pytest.mark.parametrize("chunk", [7, 1 << 22])
def test_every_cut_is_found(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(tfrecord, "_CHUNK", chunk)
    whole = [framed(piece) for piece in (b"abc", b"", b"defgh")]
    content, path = b"".join(whole), tmp_path / "t"
    starts = np.cumsum([0, *map(len, whole)]).tolist()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        if size in starts:
            assert len(records_of(path)) == starts.index(size)
            continue
        number = int(np.searchsorted(starts, size))
        begin = starts[number - 1]
        words = f"t: record {number} at byte {begin} is cut off: "
        words += f"the file ends after {size - begin} of its bytes, at {size}$"
        with pytest.raises(ValueError, match=words):
            records_of(path)


@pytest.mark.parametrize("chunk", [7, 1 << 22])
def test_every_flipped_bit_is_found(tmp_path, monkeypatch, chunk):
    """By the number of the record and where it begins; a wrong length before what follows it."""
    monkeypatch.setattr(tfrecord, "_CHUNK", chunk)
    whole = [framed(piece) for piece in (b"abc", b"", b"defgh", b"ijk")]
    content, path = b"".join(whole), tmp_path / "t"
    starts = np.cumsum([0, *map(len, whole)]).tolist()
    for place in range(len(content)):
        for bit in range(8):
            bad = bytearray(content)
            bad[place] ^= 1 << bit
            path.write_bytes(bad)
            number = int(np.searchsorted(starts, place, side="right"))
            begin = starts[number - 1]
            what = "length" if place - begin < 12 else "data"
            with pytest.raises(ValueError) as caught:
                records_of(path)
            assert f"record {number} at byte {begin} " in str(caught.value)
            assert f"is corrupted: the checksum of its {what} does not fit" in str(caught.value)


def test_the_damaged_record_of_many_is_named(tmp_path):
    pieces = [bytes([65 + index % 26]) * (index % 50) for index in range(5000)]
    path = official.write(tmp_path / "t", pieces)
    content = bytearray(path.read_bytes())
    begin = sum(16 + len(piece) for piece in pieces[:4321])
    content[begin + 13] ^= 4
    content[-1] ^= 1  # the first one is named
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"record 4322 at byte {begin:,} is corrupted: the check"):
        records_of(path)


def test_a_length_that_is_right_but_too_long(tmp_path):
    (tmp_path / "t").write_bytes(framed(b"a") + framed(b"x" * 40_000) + framed(b"b"))
    assert len(records_of(tmp_path / "t")) == 3
    (tmp_path / "t").write_bytes(framed(b"a") + framed(b"x" * 65_535)[:100])
    with pytest.raises(ValueError, match="record 2 at byte 17 is cut off"):
        records_of(tmp_path / "t")
    length = (1 << 40).to_bytes(8, "little")
    value = Checksums().masked(np.frombuffer(length, np.uint8), np.array([0]), np.array([8]))
    (tmp_path / "t").write_bytes(framed(b"a") + length + value.tobytes())
    with pytest.raises(ValueError, match="record 2 at byte 17: wanted at most 65,536 bytes, got 1"):
        records_of(tmp_path / "t")


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tfrecord, "_CHUNK", 1 << 14)
    path = tmp_path / "t"
    path.write_bytes(framed(b"x" * 400) * 5_000)
    tracemalloc.start()
    try:
        count = sum(len(batch.records) for batch in read_records(path, len))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 5_000
    assert peak < 2**20 < path.stat().st_size / 1.9
