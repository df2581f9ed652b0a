# SPDX-License-Identifier: MIT
"""What NAS-Bench-201 and NATS-Bench have officially, and what a source is compared with."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nasfast.spaces import NATS_SSS, NB201
from nasfast.tables.importers import Check, Imported, Source
from nasfast.tables.official_columns import OfficialColumns, Release

SIZE_SPACE = NATS_SSS.name
NATS_CELLS = "NATS-Bench topology space v1.0"
_SEEDS = (777, 888, 999)

# Mean test accuracy of all runs, in percent, published with two digits.
_BEST_CELLS = {"cifar10": (6111, 94.37), "cifar100": (9930, 73.51), "ImageNet16-120": (857, 47.31)}
_BEST_SIZES = {"cifar10": 93.65, "cifar100": 71.34, "ImageNet16-120": 47.40}
_CLOSE = 0.0051  # half of the last published digit


def cell_texts() -> list[str]:
    """Strings of the topology space by official index."""
    return [str(NB201.from_index(index)) for index in range(NB201.num_archs)]


def size_texts() -> list[str]:
    """Strings of the size space by official index."""
    return [str(NATS_SSS.from_index(index)) for index in range(NATS_SSS.num_archs)]


@functools.cache
def cells(name: str) -> Release:
    """The topology space: 12 epochs and 200."""
    best = dict(_BEST_CELLS)
    if name != NATS_CELLS:
        # With fewer runs the published values are the same, but maybe not whose they are.
        best = {dataset: (-1, value) for dataset, (_, value) in best.items()}
    return Release(name, NB201.name, cell_texts(), {12: (111, 777), 200: _SEEDS}, best)


@functools.cache
def sizes() -> Release:
    """The size space: 1 epoch, 12 and 90."""
    seeds = dict.fromkeys((1, 12, 90), _SEEDS)
    best = {dataset: (-1, value) for dataset, value in _BEST_SIZES.items()}
    return Release("NATS-Bench size space v1.0", SIZE_SPACE, size_texts(), seeds, best)


def check_texts(texts: Any, release: Release) -> None:
    """Compare a source's own list of architectures with the official one.

    Raises:
        ValueError: If it is another.
    """
    wanted = release.texts
    if not isinstance(texts, list) or len(texts) != len(wanted):
        count = f"{len(texts):,}" if isinstance(texts, list) else type(texts).__name__
        raise ValueError(
            f"meta_archs: wanted the {len(wanted):,} architectures of {release.name}, got {count}"
        )
    for index, (got, text) in enumerate(zip(texts, wanted, strict=True)):
        if got != text:
            raise ValueError(
                f"meta_archs: not in the official order of {release.name}: wanted {text} at index "
                f"{index}, got {got!r:.200}"
            )


def finished(
    columns: OfficialColumns,
    sources: list[Source],
    notes: Sequence[str] = (),
    checks: Sequence[Check] = (),
) -> Imported:
    """Say what a source has, lacks, and whether it agrees with what is known.

    Raises:
        ValueError: If it has no results.
    """
    if not len(columns.rows):
        raise ValueError("has no results of any architecture")
    release = columns.release
    return Imported(
        space=release.space,
        release=release.name,
        columns=columns,
        sources=sources,
        missing=columns.missing(),
        checks=[*checks, *_checks(columns)],
        notes=[*columns.notes(), *notes],
    )


def _listed(seeds: Mapping[int, Iterable[int]]) -> str:
    each = (f"{', '.join(map(str, sorted(of)))} for {epochs}" for epochs, of in seeds.items())
    return "; ".join(each)


def _checks(columns: OfficialColumns) -> Iterator[Check]:
    release, rows = columns.release, columns.rows
    whole = len(rows) == len(release.texts)
    odd = columns.other_seeds()
    wanted, got = (_listed(seeds) for seeds in (release.seeds, columns.seeds()))
    got += f" (others: {', '.join(odd)})" if odd else ""
    yield Check("numbers of runs by epochs, of", wanted, got, not odd)
    for dataset, (index, value) in release.best.items():
        accuracy = columns.mean_test_accuracy(dataset)
        if accuracy is None:
            continue
        if index in rows:
            mean = float(accuracy[np.searchsorted(rows, index)])
            name = f"mean test accuracy of architecture {index} on {dataset}"
            yield Check(name, f"{value:.2f}", f"{mean:.2f}", abs(mean - value) < _CLOSE)
        if whole and np.isfinite(accuracy).any():
            place = int(np.nanargmax(accuracy))
            best = float(accuracy[place])
            good = abs(best - value) < _CLOSE and index in (-1, rows[place])
            at = f" at {index}" if index >= 0 else ""
            name = f"best mean test accuracy on {dataset}"
            yield Check(name, f"{value:.2f}{at}", f"{best:.2f} at {rows[place]}", good)


def folder_source(folder: Path, files: Sequence[Path]) -> Source:
    """Name the files of a folder as one source: their contents one after the other."""
    value, size = hashlib.sha256(), 0
    for file in files:
        content = file.read_bytes()
        value.update(content)
        size += len(content)
    return Source(f"{folder.name}/ ({len(files):,} files)", size, value.hexdigest())
