# SPDX-License-Identifier: MIT
"""``.npz`` files: read without pickles, written as a whole with the same bytes every time."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nasfast.files import write_bytes
from nasfast.spaces.space import Space

Arrays = dict[str, npt.NDArray[Any]]


def read_arrays(path: Path, wanted: Collection[str]) -> tuple[list[str], Arrays]:
    """Read some arrays of a file; zip's checksums tell whether they are as they were written.

    Args:
        path: The file.
        wanted: Names of arrays; those that the file does not have are left out.

    Returns:
        The names of all its arrays, and those wanted by name.

    Raises:
        ValueError: If it is no ``.npz`` file, or damaged.
    """
    stream = io.BytesIO(path.read_bytes())
    try:
        if not zipfile.is_zipfile(stream):
            raise zipfile.BadZipFile("no zip archive, or its end is missing")
        stream.seek(0)
        with np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in wanted if name in file.files}
            odd = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
            if odd:  # NumPy returns a member without an array's beginning as bytes
                raise ValueError(f"{odd[0]!r} is no array")
            return list(file.files), arrays
    except Exception as error:  # damaged bytes fail in any layer: zipfile, zlib, numpy
        raise ValueError(f"{path}: not a usable table: {error!s:.200}") from None


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write a compressed file; replaces what was there as a whole or not at all."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy")  # with a fixed date
            archive.writestr(entry, content.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)
    write_bytes(path, buffer.getvalue())


def check_order(strings: npt.NDArray[Any], space: Space, indices: npt.NDArray[np.int64]) -> None:
    """Check that a file's own list of architectures has them at the given official indices.

    Raises:
        ValueError: If not.
    """
    if strings.shape != indices.shape:
        raise ValueError(
            f"wanted [{len(indices)}] strings in 'arch_str', got {list(strings.shape)}"
        )
    try:
        texts = strings.tolist()
    except (SystemError, ValueError):  # damaged text is no text
        raise ValueError("wanted strings in 'arch_str', got characters that do not exist") from None
    for index, raw in zip(indices.tolist(), texts, strict=True):
        got = raw.decode(errors="replace") if isinstance(raw, bytes) else str(raw)
        wanted = str(space.from_index(index))
        if got != wanted:
            raise ValueError(
                f"not in the official order of {space.name}: wanted {wanted} at index {index}, "
                f"got {got:.200}"
            )
