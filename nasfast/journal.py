# SPDX-License-Identifier: MIT
"""A journal: finished work in an append-only file, so that a killed command goes on.

One JSON object a line behind its checksum (CRC-32, eight hexadecimal digits), on the disk before
:meth:`Journal.append` returns. The first line holds what the work depends on. A line that a kill
cut short has no end and does not count.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nasfast.files import differences

_FORMAT = "nasfast-journal-1"


class Journal:
    """Records of finished work; one process at a time.

    Args:
        path: File, made when it does not exist.
        settings: What the records depend on, as plain values.

    Attributes:
        records: Records in the order in which they were added.

    Raises:
        ValueError: If the file is damaged, or its records depend on other settings.
        OSError: If the file cannot be written, or another process is writing it.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.records: list[dict[str, Any]] = []
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._lock()
            self._open(json.loads(json.dumps(dict(settings))))
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"{self.path}: another process is writing it") from None

    def _open(self, settings: dict[str, Any]) -> None:
        lines = self.path.read_bytes().split(b"\n")
        whole = sum(len(line) + 1 for line in lines[:-1])
        os.ftruncate(self._file, whole)
        os.lseek(self._file, whole, os.SEEK_SET)
        if whole == 0:
            self._write({"format": _FORMAT, "settings": settings})
            return
        try:
            head, *self.records = [self._read(*numbered) for numbered in enumerate(lines[:-1])]
        except RecursionError:  # thousands of brackets
            raise ValueError(f"{self.path}: damaged (nested); delete it to begin anew") from None
        if head.get("format") != _FORMAT or not isinstance(head.get("settings"), dict):
            raise ValueError(f"{self.path}: damaged (no journal); delete it to begin anew")
        changed = differences(head["settings"], settings)
        if changed:
            raise ValueError(
                f"{self.path}: holds work of another configuration ({'; '.join(changed):.500}); "
                "delete it to begin anew"
            )

    def _read(self, number: int, line: bytes) -> dict[str, Any]:
        checksum, _, content = line.partition(b" ")
        try:
            value = json.loads(content) if checksum == _checksum(content) else None
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ValueError(f"{self.path}: damaged (line {number + 1}); delete it to begin anew")
        return value

    def _write(self, record: Mapping[str, Any]) -> None:
        content = json.dumps(dict(record)).encode()
        line = _checksum(content) + b" " + content + b"\n"
        while line:
            line = line[os.write(self._file, line) :]
        os.fsync(self._file)

    def append(self, record: dict[str, Any]) -> None:
        """Add a record: all of it, or nothing of it.

        Raises:
            OSError: If the disk refuses.
        """
        self._write(record)
        self.records.append(record)

    def remove(self) -> None:
        """Remove the file: what it was for is done."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; what was added stays."""
        os.close(self._file)

    def __enter__(self) -> Journal:
        """Return the journal."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()


def _checksum(content: bytes) -> bytes:
    return f"{zlib.crc32(content):08x}".encode()
