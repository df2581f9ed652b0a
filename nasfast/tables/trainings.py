# SPDX-License-Identifier: MIT
"""Tables of whole trainings, as ``nasfast build-table`` writes them: format ``nasfast-table-2``.

An ``.npz`` file without pickles, compressed:

==================  =====================================================================
``nasfast_table``   header: JSON in UTF-8, uint8; names, images, epochs and all settings
``measured``        JSON likewise: seconds and machine, the only part that no setting fixes
``index``           official index of each architecture, ascending, int32 ``[archs]``
``arch_str``        its string, bytes ``[archs]``
``network``         which architectures are the same function, int32 ``[archs]``, numbered by
                    first appearance
``train_loss``      mean loss of each epoch, float16 ``[trainings, seeds, epochs]``
``valid_correct``   validation images classified correctly at the end, ``[trainings, seeds]``
``test_correct``    test images likewise
``diverged_at``     step at which the loss left the finite numbers, -1: none, int32 likewise
==================  =====================================================================

With merging ``"linear"`` a training belongs to a network, and its architectures copy the result;
with ``"none"`` every architecture has a training of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nasfast.spaces.spec import Architecture, CellSpec, IntArray
from nasfast.tables.arrays import Arrays, check_order, read_arrays, write_arrays
from nasfast.tables.table import Table

FORMAT = "nasfast-table-2"
HEADER = "nasfast_table"
_RESULTS = ("train_loss", "valid_correct", "test_correct", "diverged_at")
_NAMES = (HEADER, "measured", "index", "arch_str", "network", *_RESULTS)
_LARGEST = float(np.finfo(np.float16).max)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Trainings:
    """What trainings came to, in the precision in which they are measured.

    Attributes:
        train_loss: Mean loss of each epoch, before its steps, float64
            ``[trainings, seeds, epochs]``.
        valid_correct: Validation images classified correctly at the end, int64
            ``[trainings, seeds]``.
        test_correct: Test images likewise.
        diverged_at: Step at which loss or gradient left the finite numbers, -1: none, int32
            ``[trainings, seeds]``.
    """

    train_loss: Floats
    valid_correct: npt.NDArray[np.int64]
    test_correct: npt.NDArray[np.int64]
    diverged_at: IntArray


@dataclass(frozen=True, eq=False)
class TrainingTable(Table):
    """Ground truth with the trainings that it comes from.

    The value of an architecture is its mean test accuracy over all seeds. A training that diverged
    has no accuracy: NaN, and so has every mean with it.

    Attributes:
        index: Official index of each architecture, ascending, int64 ``[archs]``.
        network: Architectures with one number are the same function, int32 ``[archs]``.
        seeds: Seeds of initial weights and minibatches.
        merging: ``"linear"``: architectures of one function share a training; ``"none"``: each has
            its own.
        valid_accuracy: Of the trained network on validation images, float64 ``[archs, seeds]``.
        test_accuracy: On test images, likewise.
        train_loss: Mean loss of each epoch, before its steps, float32
            ``[archs, seeds, epochs]``, with three decimal digits.
        diverged_at: Step at which the training diverged, -1: none, int32 ``[archs, seeds]``.
        settings: Everything that determines the values.
        measured: Seconds, machine and versions.
    """

    index: npt.NDArray[np.int64]
    network: IntArray
    seeds: tuple[int, ...]
    merging: str
    valid_accuracy: Floats
    test_accuracy: Floats
    train_loss: npt.NDArray[np.float32]
    diverged_at: IntArray
    settings: dict[str, Any]
    measured: dict[str, Any]


def read(path: Path, space: CellSpec, column: str | None = None) -> TrainingTable:
    """Read a table of trainings.

    Args:
        path: The file.
        space: The space that it belongs to.
        column: What ``truth`` is: ``"test"`` (the default) or ``"valid"`` for the accuracy, mean
            of all seeds; ``"test/1"`` for that of seed 1 alone.

    Raises:
        ValueError: If the file is damaged, of another space, or has no such column.
    """
    header, arrays = _contents(path)
    try:
        _check(header, arrays, space)
        table = _table(header, arrays, space)
    except KeyError as error:
        raise ValueError(f"{path}: not a usable table: key {error} is missing") from None
    except (IndexError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: not a usable table: {error}") from None
    return table if column in (None, "test") else _with_column(path, table, column or "")


def identity(path: Path) -> dict[str, Any]:
    """Return what a stored table is of: name, truth_name, settings, and the official indices.

    Raises:
        ValueError: If the file is damaged, or no table of trainings.
    """
    header, arrays = _contents(path)
    found = {key: header.get(key) for key in ("name", "truth_name", "settings")}
    return {**found, "archs": arrays["index"].tolist()}


def write(
    path: Path,
    trainings: Trainings,
    *,
    name: str,
    truth_name: str,
    archs: Sequence[Architecture],
    network: IntArray,
    merging: str,
    images: tuple[int, int],
    settings: dict[str, Any],
    measured: dict[str, Any],
) -> None:
    """Write a table; replaces the file as a whole or not at all.

    Args:
        path: File to write, ``.npz``.
        trainings: Results; one row for each network, or for each architecture, as merging says.
        name: Name of the table.
        truth_name: What one value is, for people.
        archs: Architectures in official order.
        network: Number of each one's function by first appearance, int32 ``[archs]``.
        merging: ``"linear"`` or ``"none"``.
        images: Validation and test images.
        settings: Everything that determines the values; ``settings["seeds"]`` lists the seeds.
        measured: Seconds and machine.

    Raises:
        OSError: If it cannot be written; what was there before is still there.
    """
    space = archs[0].spec
    header = {
        "format": FORMAT,
        "name": name,
        "truth_name": truth_name,
        "space": space.name,
        "valid_images": images[0],
        "test_images": images[1],
        "epochs": trainings.train_loss.shape[2],
        "merging": merging,
        "settings": settings,
    }
    loss = trainings.train_loss
    # A large loss is still finite: only divergence leaves the finite numbers.
    stored = np.where(np.isfinite(loss), np.minimum(loss, _LARGEST), loss).astype(np.float16)
    write_arrays(
        path,
        {
            HEADER: _packed(header),
            "measured": _packed(measured),
            "index": np.array([space.to_index(arch) for arch in archs], dtype=np.int32),
            "arch_str": np.array([str(arch) for arch in archs], dtype="S"),
            "network": network.astype(np.int32),
            "train_loss": stored,
            "valid_correct": trainings.valid_correct.astype(np.min_scalar_type(images[0])),
            "test_correct": trainings.test_correct.astype(np.min_scalar_type(images[1])),
            "diverged_at": trainings.diverged_at.astype(np.int32),
        },
    )


def _packed(values: dict[str, Any]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(json.dumps(values, indent=1).encode(), dtype=np.uint8)


def _unpacked(array: npt.NDArray[Any]) -> dict[str, Any]:
    if array.dtype != np.uint8 or array.ndim != 1:
        raise ValueError(f"wanted JSON as uint8, got {array.dtype} {list(array.shape)}")
    values = json.loads(array.tobytes())
    if not isinstance(values, dict):
        raise ValueError(f"wanted an object in JSON, got {values!r:.60}")
    return values


def _contents(path: Path) -> tuple[dict[str, Any], Arrays]:
    """Return header and arrays, as far as they can be told without the space."""
    names, arrays = read_arrays(path, _NAMES)
    missing = [name for name in _NAMES if name not in names]
    if missing:
        raise ValueError(f"{path}: not a usable table: array {missing[0]!r} is missing")
    try:
        header = _unpacked(arrays[HEADER])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a usable table: header: {error}") from None
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{path}: not a usable table: wanted format {FORMAT!r}, got {header.get('format')!r}"
        )
    return header, arrays


def _check(header: dict[str, Any], arrays: Arrays, space: CellSpec) -> None:
    if header["space"] != space.name:
        raise ValueError(f"wanted a table of {space.name}, got one of {header['space']}")
    index, network = arrays["index"], arrays["network"]
    numbers = header["settings"]["seeds"]
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise ValueError(f"settings.seeds: wanted a list of integers, got {numbers!r:.60}")
    rows, seeds = len(index), len(numbers)
    for name in ("index", "network"):
        array = arrays[name]
        if array.dtype != np.int32 or array.shape != (rows,) or not rows:
            raise ValueError(f"{name}: wanted int32 [{rows}], got {array.dtype} {[*array.shape]}")
    if (np.diff(index) <= 0).any() or index[0] < 0 or index[-1] >= space.num_archs:
        raise ValueError(f"index: wanted ascending numbers in 0..{space.num_archs - 1}")
    check_order(arrays["arch_str"], space, index.astype(np.int64))
    _, first = np.unique(network, return_index=True)
    if (network[np.sort(first)] != np.arange(len(first))).any():
        raise ValueError("network: wanted numbers by first appearance")
    if header["merging"] not in ("linear", "none"):
        raise ValueError(f"merging: wanted 'linear' or 'none', got {header['merging']!r}")
    trainings = len(first) if header["merging"] == "linear" else rows
    for name in _RESULTS:
        size, kinds = [trainings, seeds], "iu"
        if name == "train_loss":
            size, kinds = [*size, header["epochs"]], "f"
        array = arrays[name]
        if list(array.shape) != size or array.dtype.kind not in kinds:
            raise ValueError(f"{name}: wanted numbers {size}, got {array.dtype} {[*array.shape]}")
    for part in ("valid", "test"):
        counts, images = arrays[f"{part}_correct"], header[f"{part}_images"]
        if not isinstance(images, int) or images < 1 or counts.min() < 0 or counts.max() > images:
            raise ValueError(f"{part}_correct: wanted counts of at most {images!r} images")
    finished = arrays["diverged_at"] < 0
    if not np.isfinite(arrays["train_loss"][finished]).all():
        raise ValueError("train_loss: not finite in a training that is not marked as diverged")


def _table(header: dict[str, Any], arrays: Arrays, space: CellSpec) -> TrainingTable:
    index, network = arrays["index"].astype(np.int64), arrays["network"]
    training = network if header["merging"] == "linear" else np.arange(len(index))
    diverged = arrays["diverged_at"]
    accuracy = {
        part: np.where(diverged < 0, arrays[f"{part}_correct"] / header[f"{part}_images"], np.nan)
        for part in ("valid", "test")
    }
    return TrainingTable(
        name=str(header["name"]),
        truth_name=str(header["truth_name"]),
        truth=_by_index(space.num_archs, index, accuracy["test"][training].mean(axis=1)),
        index=index,
        network=network,
        seeds=tuple(header["settings"]["seeds"]),
        merging=header["merging"],
        valid_accuracy=accuracy["valid"][training],
        test_accuracy=accuracy["test"][training],
        train_loss=arrays["train_loss"][training].astype(np.float32),
        diverged_at=diverged[training],
        settings=header["settings"],
        measured=_unpacked(arrays["measured"]),
    )


def _by_index(size: int, index: npt.NDArray[np.int64], values: Floats) -> Floats:
    truth = np.full(size, np.nan)
    truth[index] = values
    return truth


def _with_column(path: Path, table: TrainingTable, column: str) -> TrainingTable:
    """Return the table with another truth."""
    part, _, seed = column.partition("/")
    seeds = [str(number) for number in table.seeds]
    if part not in ("test", "valid") or (column != part and seed not in seeds):
        raise ValueError(
            f"{path}: wanted column 'test' or 'valid', or one of its seeds {', '.join(seeds)} as "
            f"in 'test/{seeds[0]}', got {column!r}"
        )
    accuracy = table.valid_accuracy if part == "valid" else table.test_accuracy
    values = accuracy[:, seeds.index(seed)] if seed else accuracy.mean(axis=1)
    words = f"{'validation' if part == 'valid' else 'test'} accuracy of {table.name}"
    words += f", seed {seed}" if seed else f", mean of {len(seeds)} seeds"
    fields = {**vars(table), "name": f"{table.name}:{column}", "truth_name": words}
    fields["truth"] = _by_index(len(table.truth), table.index, values)
    return TrainingTable(**fields)
