# SPDX-License-Identifier: MIT
"""Ground truth: what architectures reach when they are trained on their own.

Two sources: the tables that nasfast computed itself and ships (``digits-nb201-200``), written by
``nasfast build-table``; and ``.npz`` files with one value for each official index.
"""

from __future__ import annotations

import difflib
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nasfast.files import read_json, write_text
from nasfast.spaces.spec import Architecture, CellSpec

_FORMAT = "nasfast-table-1"


@dataclass(frozen=True, eq=False)
class Table:
    """Ground truth of some or all architectures of a space.

    Attributes:
        name: Name of the table, for people.
        truth_name: What one value is, for people.
        truth: Higher is better, float64 ``[num_archs]`` by official index; NaN where unknown.
    """

    name: str
    truth_name: str
    truth: npt.NDArray[np.float64]

    @property
    def known(self) -> npt.NDArray[np.int64]:
        """Official indices with a finite value, ascending."""
        return np.flatnonzero(np.isfinite(self.truth))


def shipped() -> tuple[str, ...]:
    """Return the names of the tables that come with nasfast."""
    files = resources.files("nasfast.tables").iterdir()
    return tuple(sorted(f.name[: -len(".json")] for f in files if f.name.endswith(".json")))


def load(source: str | os.PathLike[str], space: CellSpec, column: str | None = None) -> Table:
    """Load ground truth.

    Args:
        source: Name of a shipped table, or path of a ``.json`` table or an ``.npz`` file.
        space: The space that the values belong to.
        column: Array of an ``.npz`` file: one number for each official index, ``[num_archs]``; NaN
            where unknown. If the file also has an array ``arch_str``, its order is checked.

    Raises:
        FileNotFoundError: If there is neither such a table nor such a file.
        ValueError: If the file is damaged, of another space, or has no such column.
    """
    name, path = os.fspath(source), Path(source)
    if name in shipped():
        path = Path(str(resources.files("nasfast.tables").joinpath(f"{name}.json")))
    elif not path.is_file():
        known = ", ".join(shipped())
        raise FileNotFoundError(
            f"table: {name!r} is neither a file nor a shipped table ({known or 'there are none'})"
        )
    if path.suffix == ".npz":
        return _read_npz(path, space, column)
    if column is not None:
        raise ValueError(f"{path}: a table in JSON has no columns, got column {column!r}")
    return _read_json(path, space)


def _read_json(path: Path, space: CellSpec) -> Table:
    content = read_json(path)
    try:
        if content["format"] != _FORMAT:
            raise ValueError(f"wanted format {_FORMAT!r}, got {content['format']!r}")
        if content["space"] != space.name:
            raise ValueError(f"wanted a table of {space.name}, got one of {content['space']}")
        images, seeds = content["test_images"], len(content["settings"]["seeds"])
        truth = np.full(space.num_archs, np.nan)
        for row in content["rows"]:
            index, correct = row["index"], row["test_correct"]
            sound = (
                str(space.from_index(index)) == row["arch"]
                and np.isnan(truth[index])  # not given twice
                and len(correct) == seeds
                and all(0 <= count <= images for count in correct)
            )
            if not sound:
                raise ValueError(f"the row of index {index} is damaged")
            truth[index] = np.mean(correct) / images
        return Table(str(content["name"]), str(content["truth_name"]), truth)
    except KeyError as error:
        raise ValueError(f"{path}: not a usable table: key {error} is missing") from None
    except (IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{path}: not a usable table: {error}") from None


def _read_npz(path: Path, space: CellSpec, column: str | None) -> Table:
    try:
        with path.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise zipfile.BadZipFile("no zip archive, or its end is missing")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as file:
                names = list(file.files)
                truth = file[column] if column in names else None
                strings = file["arch_str"] if "arch_str" in names else None
    except OSError:
        raise
    except Exception as error:  # damaged bytes fail in any layer: zipfile, zlib, numpy
        raise ValueError(f"{path}: not a usable table: {error}") from None
    if truth is None:
        near = difflib.get_close_matches(column or "", names, n=1, cutoff=0.0)
        raise ValueError(
            f"{path}: wanted one of its arrays as column, got {column!r}; "
            f"nearest: {near[0] if near else 'it has none'}"
        )
    if truth.shape != (space.num_archs,) or truth.dtype.kind not in "fiu":
        raise ValueError(
            f"{path}: wanted numbers [{space.num_archs}] in column {column!r}, "
            f"got {truth.dtype} {list(truth.shape)}"
        )
    if strings is not None:
        _check_order(path, strings, space)
    return Table(f"{path.name}:{column}", str(column), truth.astype(np.float64))


def _check_order(path: Path, strings: npt.NDArray[Any], space: CellSpec) -> None:
    """Check that a file's own list of architectures is the official one."""
    if strings.shape != (space.num_archs,):
        raise ValueError(
            f"{path}: wanted [{space.num_archs}] strings in 'arch_str', got {list(strings.shape)}"
        )
    for index, raw in enumerate(strings.tolist()):
        got = raw.decode(errors="replace") if isinstance(raw, bytes) else str(raw)
        wanted = str(space.from_index(index))
        if got != wanted:
            raise ValueError(
                f"{path}: not in the official order of {space.name}: "
                f"wanted {wanted} at index {index}, got {got}"
            )


def write(
    path: str | os.PathLike[str],
    *,
    name: str,
    truth_name: str,
    space: CellSpec,
    archs: Sequence[Architecture],
    test_correct: npt.NDArray[np.int64],
    train_loss: npt.NDArray[np.float64],
    test_images: int,
    settings: dict[str, Any],
) -> None:
    """Write a table as JSON, one row for each architecture; replaces the file atomically.

    Args:
        path: File to write.
        name: Name of the table.
        truth_name: What one value is, for people.
        space: The space.
        archs: Its rows.
        test_correct: Test images classified correctly, int64 ``[archs, seeds]``.
        train_loss: Mean training loss of the last epoch, float64 ``[archs, seeds]``.
        test_images: Test images.
        settings: Everything that determines the values; ``settings["seeds"]`` lists the seeds.
    """
    rows = [
        {
            "index": space.to_index(arch),
            "arch": str(arch),
            "test_correct": [int(c) for c in correct],
            "train_loss": [round(float(value), 5) for value in loss],
        }
        for arch, correct, loss in zip(archs, test_correct, train_loss, strict=True)
    ]
    rows.sort(key=lambda row: int(str(row["index"])))
    head = {
        "format": _FORMAT,
        "name": name,
        "truth_name": truth_name,
        "space": space.name,
        "test_images": test_images,
        "settings": settings,
    }
    body = ",\n".join(json.dumps(row) for row in rows)
    text = json.dumps(head, indent=1)[:-2] + ',\n "rows": [\n' + body + "\n]}\n"
    write_text(Path(path), text)
