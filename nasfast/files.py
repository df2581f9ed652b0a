# SPDX-License-Identifier: MIT
"""Small files: written as a whole or not at all, and what changed between two of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def check_target(path: Path, name: str = "out") -> None:
    """Check that a file can be written, before work is done for it.

    Args:
        path: The file, which may be there already.
        name: Of the argument, for the message.

    Raises:
        ValueError: If the name is empty or is that of a folder, its folder is not there, or may
            not be written to.
    """
    if not path.name:
        raise ValueError(f"{name}: wanted the name of a file, got {str(path)!r}")
    if path.is_dir():
        raise ValueError(f"{name}: wanted the name of a file, got the folder {path}")
    if not path.parent.is_dir():
        raise ValueError(f"{name}: there is no folder {str(path.parent)!r} to write into")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ValueError(f"{name}: the folder {str(path.parent)!r} may not be written to")


def write_text(path: Path, text: str) -> None:
    """Write a text file as :func:`write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all.

    Raises:
        OSError: If it cannot be written; what was there before is still there.
    """
    write_parts(path, (content,))


def write_parts(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file as :func:`write_bytes` does, part by part as they are made.

    Raises:
        OSError: If it cannot be written; what was there before is still there.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        if partial.parent.is_dir():
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # as of a write: it names no file
            why = f"not written ({error.strerror})"
            raise OSError(error.errno, why, str(path)) from None
        raise


def read_json(path: Path, kind: type = dict) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        kind: Type of the outermost value, ``dict`` or ``list``.

    Raises:
        ValueError: If it is damaged; the message names the file.
    """
    wanted = "an object" if kind is dict else "a list"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # RecursionError: thousands of brackets
        raise ValueError(f"{path}: damaged: wanted {wanted} in JSON, got: {error}") from None
    if not isinstance(value, kind):
        raise ValueError(f"{path}: damaged: wanted {wanted}, got {value!r:.60}")
    return value


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say what differs between two nested sets of plain values, one entry for each key."""
    old, new = flat(then), flat(now)
    return [
        f"{key}: {old.get(key)!r} then, {new.get(key)!r} now"
        for key in sorted(set(old) | set(new))
        if old.get(key) != new.get(key)
    ]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested plain values by dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found
