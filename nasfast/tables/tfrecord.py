# SPDX-License-Identifier: MIT
"""TFRecord files, read without TensorFlow: a stream of byte strings, each with two checksums.

A record is its length (uint64), the masked CRC-32C of these 8 bytes, the bytes, and their masked
CRC-32C (uint32 each), all little-endian. Masked is ``rotate right by 15, plus 0xa282ead8``.

The checksums of thousands of records are computed side by side: a CRC is linear, so the bytes at
the same distance from the end of their records are looked up in one table at once. Python alone
would take minutes for 500 MB, this takes seconds and needs no further library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
Places = npt.NDArray[np.int64]

_POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected
_HEADER, _FOOTER = 12, 4
_LONGEST = 1 << 16  # bytes of a record: those of benchmarks have some hundred
_CHUNK = 1 << 22
_SIDE_BY_SIDE = 4096


@dataclass(frozen=True)
class Batch:
    """Some records that follow each other.

    Attributes:
        first: Number of the first one; that of the first in the file is 1.
        offsets: Byte of the file at which each begins, int64 ``[records]``.
        records: Their bytes.
    """

    first: int
    offsets: Places
    records: list[bytes]

    def place(self, index: int) -> str:
        """Return number and place of a record in words."""
        return f"record {self.first + index} at byte {int(self.offsets[index]):,}"


def read_records(path: Path, on_bytes: Callable[[bytes], None]) -> Iterator[Batch]:
    """Read all records of a file in order, in a few MB of memory.

    Args:
        path: The file.
        on_bytes: Called with every piece of the file as it is read.

    Yields:
        Records whose checksums fit, those of some MB at a time.

    Raises:
        ValueError: If a record is corrupted or cut off; the message says which, and where.
    """
    checker = Checksums()
    rest, begin, number = b"", 0, 1
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            on_bytes(piece)
            content = rest + piece
            starts, lengths, end = _split(content)
            batch = _checked(path, checker, content, starts, lengths, begin, number)
            _check_next(path, checker, content, end, begin, number + len(starts))
            if batch.records:
                yield batch
            rest, begin, number = content[end:], begin + end, number + len(starts)
    if rest:
        raise ValueError(
            f"{path}: record {number} at byte {begin:,} is cut off: the file ends after "
            f"{len(rest)} of its bytes, at {begin + len(rest):,}"
        )


def _split(content: bytes) -> tuple[Places, Places, int]:
    """Return where whole records begin and how long they say they are, and where the rest begins.

    A wrong length leads astray, but the checksum of the first wrong one is found not to fit.
    """
    starts, lengths = [], []
    at = 0
    while at + _HEADER <= len(content):
        length = int.from_bytes(content[at : at + 8], "little")
        end = at + _HEADER + length + _FOOTER
        if length > _LONGEST or end > len(content):
            break
        starts.append(at)
        lengths.append(length)
        at = end
    return np.array(starts, dtype=np.int64), np.array(lengths, dtype=np.int64), at


def _checked(
    path: Path,
    checker: Checksums,
    content: bytes,
    starts: Places,
    lengths: Places,
    begin: int,
    number: int,
) -> Batch:
    """Check whole records and cut them out."""
    buffer = np.frombuffer(content, dtype=np.uint8)
    bodies = starts + _HEADER
    batch = Batch(number, starts + begin, [])
    heads_good = checker.masked(buffer, starts, np.full_like(lengths, 8)) == _words(
        buffer, starts + 8
    )
    bodies_good = checker.masked(buffer, bodies, lengths) == _words(buffer, bodies + lengths)
    bad = np.flatnonzero(~(heads_good & bodies_good))
    if len(bad):
        what = "data" if heads_good[bad[0]] else "length"
        raise ValueError(
            f"{path}: {batch.place(int(bad[0]))} is corrupted: the checksum of its {what} does "
            "not fit"
        )
    ends = bodies + lengths
    for first, last in zip(bodies.tolist(), ends.tolist(), strict=True):
        batch.records.append(content[first:last])
    return batch


def _check_next(
    path: Path, checker: Checksums, content: bytes, at: int, begin: int, number: int
) -> None:
    """Check the length of a record of which not all bytes are there yet, as far as it is."""
    if at + _HEADER > len(content):
        return
    buffer = np.frombuffer(content, dtype=np.uint8)
    start = np.array([at], dtype=np.int64)
    place = f"{path}: record {number} at byte {begin + at:,}"
    if (
        checker.masked(buffer, start, np.array([8], dtype=np.int64)) != _words(buffer, start + 8)
    ).any():
        raise ValueError(f"{place} is corrupted: the checksum of its length does not fit")
    length = int.from_bytes(content[at : at + 8], "little")
    if length > _LONGEST:
        raise ValueError(f"{place}: wanted at most {_LONGEST:,} bytes, got {length:,}")


def _words(buffer: npt.NDArray[np.uint8], places: Places) -> Words:
    """Return the little-endian uint32 at each place."""
    found = np.zeros(len(places), dtype=np.uint32)
    for index in range(4):
        found |= buffer[places + index].astype(np.uint32) << np.uint32(8 * index)
    return found


class Checksums:
    """CRC-32C of many pieces of a buffer at once.

    Attributes:
        tables: What a byte adds to the checksum, by its distance from the end, uint32
            ``[longest, 256]``; grows as longer pieces come.
        starts: What the initial value adds, by length, uint32 ``[longest + 1]``.
    """

    def __init__(self) -> None:
        table = np.arange(256, dtype=np.uint32)
        for _ in range(8):
            table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1)
        self.tables: Words = table[None, :]
        self.starts: Words = np.array([0xFFFFFFFF], dtype=np.uint32)
        self._grow(16)

    def crc32c(self, buffer: npt.NDArray[np.uint8], starts: Places, lengths: Places) -> Words:
        """Return the CRC-32C of each piece, uint32 ``[pieces]``.

        Args:
            buffer: Bytes, uint8 ``[n]``.
            starts: Where each piece begins, int64 ``[pieces]``.
            lengths: Its bytes, likewise.
        """
        found = np.empty(len(starts), dtype=np.uint32)
        if not len(starts):
            return found
        self._grow(int(lengths.max()))
        # Longest first, so that those which reach as far as the current distance are a slice.
        order = np.argsort(-lengths, kind="stable")
        for first in range(0, len(order), _SIDE_BY_SIDE):
            lanes = order[first : first + _SIDE_BY_SIDE]
            found[lanes] = self._block(buffer, starts[lanes], lengths[lanes])
        return found

    def masked(self, buffer: npt.NDArray[np.uint8], starts: Places, lengths: Places) -> Words:
        """Return the checksums as TFRecord files have them; arguments as of :meth:`crc32c`."""
        value = self.crc32c(buffer, starts, lengths)
        rotated = (value >> np.uint32(15)) | (value << np.uint32(17))
        return rotated + np.uint32(0xA282EAD8)

    def _block(self, buffer: npt.NDArray[np.uint8], starts: Places, lengths: Places) -> Words:
        value = self.starts[lengths]
        places = starts + lengths
        # How many pieces have a byte at each distance from their end.
        reach = len(lengths) - np.cumsum(np.bincount(lengths, minlength=int(lengths[0]) + 1))
        for distance, lanes in enumerate(reach[: lengths[0]].tolist()):
            places[:lanes] -= 1
            value[:lanes] ^= self.tables[distance].take(buffer.take(places[:lanes]))
        return ~value

    def _grow(self, longest: int) -> None:
        """Extend the tables: a byte further from the end is one with a zero byte after it."""
        have = len(self.tables)
        if longest < len(self.starts):
            return
        longest = max(longest, 2 * have)  # seldom
        tables = np.empty((longest, 256), dtype=np.uint32)
        starts = np.empty(longest + 1, dtype=np.uint32)
        tables[:have], starts[: len(self.starts)] = self.tables, self.starts
        table = tables[0]
        for index in range(have, longest):
            before = tables[index - 1]
            tables[index] = (before >> np.uint32(8)) ^ table[before & np.uint32(255)]
        for index in range(len(self.starts), longest + 1):
            value = starts[index - 1]
            starts[index] = (value >> np.uint32(8)) ^ table[value & np.uint32(255)]
        self.tables, self.starts = tables, starts
