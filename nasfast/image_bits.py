# SPDX-License-Identifier: MIT
"""One bit for each architecture and image: was it classified correctly. One file beside the scores.

A fixed row for each architecture of the space, in official order, so the file says the same
whatever the order in which rows were written. A row is its checksum (CRC-32 of index and bits,
little-endian, never 0) and the bits, most significant first, zeros up to a multiple of 8 bytes. A
row of zeros was never written; the file is sparse until it is.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from nasfast.store import StoreError

_MAGIC = b"nasfast correct bits 1\n"
_HEADER = struct.Struct("<32sQQI")  # magic, architectures, images, CRC-32 of what is before
_BEGIN = 64  # of the first row
_CHECKSUM = struct.Struct("<I")


class ImageBits:
    """The file, open for reading and writing.

    Rows are read through a memory map and written by system calls: those report a full disk, where
    a write through the map would end the process.

    Args:
        path: The file, made when it does not exist.
        archs: Architectures of the space.
        images: Images that each is scored on.

    Raises:
        StoreError: If the file is damaged or of other numbers.
        OSError: If it cannot be opened or made.
    """

    def __init__(self, path: str | os.PathLike[str], archs: int, images: int) -> None:
        self.path = Path(path)
        self.archs, self.images = archs, images
        self._bytes = (images + 7) // 8
        self._row = (_CHECKSUM.size + self._bytes + 7) // 8 * 8
        self._size = _BEGIN + archs * self._row
        if not self.path.exists():
            self._make()
        self._file = os.open(self.path, os.O_RDWR)
        try:
            self._check()
            self._map = mmap.mmap(self._file, self._size, prot=mmap.PROT_READ)
        except BaseException:
            os.close(self._file)
            raise

    def _make(self) -> None:
        partial = self.path.with_name(self.path.name + ".partial")
        with open(partial, "wb") as file:
            head = _HEADER.pack(_MAGIC, self.archs, self.images, 0)[: -_CHECKSUM.size]
            file.write(head + _CHECKSUM.pack(zlib.crc32(head)))
            file.truncate(self._size)
            os.fsync(file.fileno())
        os.replace(partial, self.path)

    def _check(self) -> None:
        head = os.pread(self._file, _HEADER.size, 0)
        if len(head) < _HEADER.size or not head.startswith(_MAGIC):
            raise self._damaged("it does not begin as a file of bits")
        _, archs, images, checksum = _HEADER.unpack(head)
        if zlib.crc32(head[: -_CHECKSUM.size]) != checksum:
            raise self._damaged("its first bytes do not fit their checksum")
        if (archs, images) != (self.archs, self.images):
            raise StoreError(
                f"{self.path}: wanted bits of {self.archs} architectures and {self.images} images, "
                f"got {archs} and {images}; delete it to have them made anew"
            )
        size = os.fstat(self._file).st_size
        if size != self._size:
            raise self._damaged(f"wanted {self._size} bytes, got {size}")

    def _damaged(self, why: str) -> StoreError:
        return StoreError(
            f"{self.path}: damaged ({why}); delete it and rank again to have the bits made anew, "
            "scores are kept"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def close(self) -> None:
        """Close the file; what was written stays."""
        self._map.close()
        os.close(self._file)

    def write(self, archs: Sequence[int], correct: npt.NDArray[np.bool_]) -> None:
        """Write rows; they are on the disk when this returns.

        Args:
            archs: Official indices.
            correct: ``[archs, images]``.

        Raises:
            OSError: If the disk refuses.
        """
        if correct.shape != (len(archs), self.images):
            raise ValueError(
                f"correct: wanted shape ({len(archs)}, {self.images}), got {correct.shape}"
            )
        packed = np.packbits(correct, axis=1)
        for arch, bits in zip(archs, packed, strict=True):
            place = self._place(arch)
            row = self._checksum(arch, bits.tobytes()) + bits.tobytes()
            row = row.ljust(self._row, b"\0")
            written = 0
            while written < len(row):  # a signal may cut a write short
                written += os.pwrite(self._file, row[written:], place + written)
        os.fdatasync(self._file)

    def known(self, archs: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Return which rows were written and fit their checksum, ``[archs]``."""
        return np.array([self._bits(arch) is not None for arch in archs], dtype=np.bool_)

    def read(self, archs: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Return which images were classified correctly, ``[archs, images]``.

        Raises:
            StoreError: If a row was never written, or is damaged.
        """
        packed = self.read_packed(archs)
        return np.unpackbits(packed, axis=1, count=self.images).view(np.bool_)

    def read_packed(self, archs: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Return the same as :func:`numpy.packbits` packs it, an eighth of the memory.

        Raises:
            StoreError: As for :meth:`read`.
        """
        packed = np.zeros((len(archs), self._bytes), dtype=np.uint8)
        missing = []
        for k, arch in enumerate(archs):
            bits = self._bits(arch)
            if bits is None:
                missing.append(arch)
            else:
                packed[k] = np.frombuffer(bits, dtype=np.uint8)
        if missing:
            raise StoreError(
                f"{self.path}: no valid bits of {len(missing)} architectures, such as "
                f"{missing[0]}; rank again to have them made anew"
            )
        return packed

    def _place(self, arch: int) -> int:
        if not 0 <= arch < self.archs:
            raise ValueError(f"archs: wanted 0..{self.archs - 1}, got {arch}")
        return _BEGIN + arch * self._row

    def _bits(self, arch: int) -> bytes | None:
        place = self._place(arch)
        checksum = self._map[place : place + _CHECKSUM.size]
        bits = self._map[place + _CHECKSUM.size : place + _CHECKSUM.size + self._bytes]
        return bits if self._checksum(arch, bits) == checksum else None

    def _checksum(self, arch: int, bits: bytes) -> bytes:
        # With the index: a row that was moved is no row. Never 0: zeros are no row either.
        return _CHECKSUM.pack(zlib.crc32(bits, zlib.crc32(struct.pack("<Q", arch))) or 1)
