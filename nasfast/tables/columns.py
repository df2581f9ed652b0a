# SPDX-License-Identifier: MIT
"""One file of named columns, mapped into memory: format ``nasfast-table-1``.

A safetensors file, so that other programs read it too. Its metadata have three entries, sorted:

=============  =================================================================================
``checksums``  JSON: CRC-32 of each column (of its type, its shape and its bytes), and of the
               header under the name ``""``
``format``     ``nasfast-table-1``
``header``     JSON: what the columns are of; :mod:`nasfast.tables.curve_table` says what is in it
=============  =================================================================================

The first axis of every column is the row. Opening reads the names and no column, so it takes as
long for 500 MB as for one.

Written here and not by the safetensors library because that takes a second copy of all columns in
memory and cannot replace a file as a whole; reading goes through the library's own checks first.
"""

from __future__ import annotations

import difflib
import json
import os
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nasfast.files import write_parts

FORMAT = "nasfast-table-1"
Column = npt.NDArray[Any]

_TYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8,
}  # fmt: skip
_CODES = {np.dtype(dtype): code for code, dtype in _TYPES.items()}
_BLOCK = 1 << 24  # bytes that are copied at once at most


def write_columns(
    path: str | os.PathLike[str], header: Mapping[str, Any], columns: Mapping[str, Column]
) -> None:
    """Write a file of columns as a whole or not at all; the same content gives the same bytes.

    Columns are asked for one after the other, twice each, so a mapping that makes them on demand
    keeps no more than one of them in memory.

    Args:
        path: File to write.
        header: Plain values.
        columns: Numbers ``[rows, ...]`` by name; at least one, all with the same rows.

    Raises:
        ValueError: If columns differ in rows or are of a type that the format does not have.
        OSError: If it cannot be written; what was there before is still there.
    """
    entries: dict[str, tuple[str, tuple[int, ...], int]] = {}  # code, shape, CRC-32
    for name in sorted(columns):
        column = columns[name]
        code = _CODES.get(column.dtype)
        if code is None or column.ndim < 1:
            raise ValueError(
                f"columns[{name!r}]: wanted numbers [rows, ...], "
                f"got {column.dtype} {list(column.shape)}"
            )
        entries[name] = (code, column.shape, _checksum(code, column))
    _one_row_count({name: entry[1] for name, entry in entries.items()})
    text = json.dumps(header, sort_keys=True, allow_nan=False)
    checksums = {"": zlib.crc32(text.encode())} | {n: entry[2] for n, entry in entries.items()}
    listing: dict[str, Any] = {
        "__metadata__": {
            "checksums": json.dumps(checksums, sort_keys=True),
            "format": FORMAT,
            "header": text,
        }
    }
    # Wide types first: then every column begins at a multiple of its item's size.
    order = sorted(entries, key=lambda name: (-np.dtype(_TYPES[entries[name][0]]).itemsize, name))
    offset = 0
    for name in order:
        code, shape, _ = entries[name]
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(_TYPES[code]).itemsize
        listing[name] = {
            "dtype": code, "shape": list(shape), "data_offsets": [offset, offset + size],
        }  # fmt: skip
        offset += size
    head = json.dumps(listing, separators=(",", ":")).encode()
    head = head.ljust((len(head) + 7) // 8 * 8)

    def parts() -> Iterator[bytes | memoryview]:
        yield len(head).to_bytes(8, "little")
        yield head
        for name in order:
            yield from _blocks(columns[name])

    write_parts(Path(path), parts())


class Columns:
    """The columns of a file, read when they are used.

    Attributes:
        path: The file.
        header: What the columns are of, plain values.
        names: Names of the columns, sorted.
        rows: Length of the first axis of every column.
    """

    def __init__(
        self,
        path: Path,
        header: dict[str, Any],
        arrays: dict[str, Column],
        checksums: dict[str, int],
    ) -> None:
        self.path = path
        self.header = header
        self.names = tuple(sorted(arrays))
        self.rows = _one_row_count({name: array.shape for name, array in arrays.items()})
        self._arrays = arrays
        self._checksums = checksums

    def array(self, name: str) -> Column:
        """Return a column as a read-only view of the file.

        Raises:
            ValueError: If there is none of this name.
        """
        if name not in self._arrays:
            near = difflib.get_close_matches(name, self.names, n=1, cutoff=0.0)
            raise ValueError(
                f"{self.path}: wanted one of its {len(self.names)} columns, got {name!r}; "
                f"nearest: {near[0]}"
            )
        return self._arrays[name]

    def damaged(self, names: Collection[str] | None = None) -> list[str]:
        """Return which columns have other bytes than were written; reads some, or all if None.

        Raises:
            ValueError: If there is none of a name.
        """
        arrays = {name: self.array(name) for name in sorted(set(names or self.names))}
        return [
            name
            for name, array in arrays.items()
            if _checksum(_CODES[array.dtype], array) != self._checksums[name]
        ]

    def check(self, names: Collection[str] | None = None) -> None:
        """Compare columns with their checksums.

        Args:
            names: The columns, which are read; the whole file if left out.

        Raises:
            ValueError: If columns are damaged; the message names them.
        """
        damaged = self.damaged(names)
        if damaged:
            looked = "columns" if names is None else "columns that are used"
            raise ValueError(
                f"{self.path}: damaged: the checksum does not fit in {len(damaged)} of "
                f"{len(set(names or self.names))} {looked}: {', '.join(damaged)}"
            )


def is_columns(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file says that it is one of columns; it may still be damaged."""
    with Path(path).open("rb") as file:
        start = file.read(4096)
    return start[8:9] == b"{" and f'"format":"{FORMAT}"'.encode() in _head(Path(path), start)


def _head(path: Path, start: bytes) -> bytes:
    """Return the JSON at the beginning of a safetensors file, as much as there is."""
    size = int.from_bytes(start[:8], "little")
    if size + 8 <= len(start) or size > path.stat().st_size:
        return start[8 : 8 + size]
    with path.open("rb") as file:
        file.seek(8)
        return file.read(size)


def open_columns(path: str | os.PathLike[str]) -> Columns:
    """Open a file of columns without reading them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such file, or if what it says of its columns is damaged.
    """
    from safetensors import SafetensorError, safe_open  # only for files

    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"table not found: {path}")
    try:
        with safe_open(str(file), framework="numpy") as opened:
            metadata: dict[str, str] = opened.metadata() or {}
    except (SafetensorError, OSError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path}: wanted a table written by nasfast import (format {FORMAT!r}), "
            f"got format {metadata.get('format')!r}"
        )
    try:
        checksums = json.loads(metadata["checksums"])
        if zlib.crc32(metadata["header"].encode()) != checksums[""]:
            raise ValueError("the checksum of the header does not fit")
        header = json.loads(metadata["header"])
        if not isinstance(header, dict):
            raise ValueError("the header is no object")
        arrays = _mapped(file)
        if set(arrays) != set(checksums) - {""}:
            raise ValueError("columns and checksums are not of the same names")
        return Columns(file, header, arrays, checksums)
    except KeyError as error:
        raise ValueError(f"{path}: damaged: its metadata lack {error}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged: {error}") from None


def _mapped(path: Path) -> dict[str, Column]:
    """Return the columns of a safetensors file, whose listing the library has found sound."""
    content = np.memmap(path, dtype=np.uint8, mode="r")
    size = int.from_bytes(content[:8].tobytes(), "little")
    listing = json.loads(content[8 : 8 + size].tobytes())
    arrays: dict[str, Column] = {}
    for name, entry in listing.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _TYPES:
            raise ValueError(f"column {name!r} is of type {entry['dtype']}")
        first, last = (8 + size + offset for offset in entry["data_offsets"])
        view = content[first:last].view(np.ndarray)
        arrays[name] = view.view(_TYPES[entry["dtype"]]).reshape(entry["shape"])
    return arrays


def _one_row_count(shapes: Mapping[str, tuple[int, ...]]) -> int:
    rows = {shape[:1] for shape in shapes.values()}
    if len(rows) != 1 or () in rows:
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise ValueError(f"columns: wanted the same number of rows in each, got {listed or 'none'}")
    return rows.pop()[0]


def _checksum(code: str, column: Column) -> int:
    value = zlib.crc32(f"{code} {list(column.shape)}".encode())
    for block in _blocks(column):
        value = zlib.crc32(block, value)
    return value


def _blocks(column: Column) -> Iterator[memoryview]:
    """Yield a column's bytes, little-endian and row by row."""
    if not column.size:
        return
    rows = max(1, _BLOCK // max(1, column.nbytes // len(column)))
    for first in range(0, len(column), rows):
        yield np.ascontiguousarray(column[first : first + rows]).data.cast("B")
