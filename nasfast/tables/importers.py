# SPDX-License-Identifier: MIT
"""Official benchmark files become one file of columns.

A reader of a kind of source is an :class:`Importer`; :func:`importers` lists them. It finds out
whether a source is of its kind (quickly: from names and first bytes), and reads it into columns as
:mod:`nasfast.tables.curve_table` names them. Everything else, such as what an incomplete source
means, is done here once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nasfast.files import check_target
from nasfast.tables.columns import Column, is_columns
from nasfast.tables.curve_table import write_curve_table

SUFFIX = ".table"

OnProgress = Callable[[int, int], None]  # bytes read so far, bytes in all


@dataclass(frozen=True)
class Source:
    """One file that was read.

    Attributes:
        name: Its name, without the folder.
        bytes: Its size.
        sha256: Of its content, hexadecimal.
    """

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Check:
    """A known fact of the official release, compared with what was read.

    Attributes:
        name: What is compared, for people.
        wanted: The fact.
        got: What the source says.
        good: Whether they agree.
    """

    name: str
    wanted: str
    got: str
    good: bool


@dataclass(frozen=True)
class Imported:
    """What a reader found.

    Attributes:
        space: Name of the space, ``"nb201"``, ``"nats-sss"`` or ``"nb101"``.
        release: Which official release, for people: ``"NAS-Bench-101 only108"``.
        columns: As :mod:`nasfast.tables.curve_table` says; may be made on demand.
        sources: The files read.
        missing: Sentences: what the official release has and this source has not.
        checks: Known facts, compared.
        notes: Further sentences for the report, such as what was left out on purpose.
    """

    space: str
    release: str
    columns: Mapping[str, Column]
    sources: list[Source]
    missing: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Importer:
    """A kind of source.

    Attributes:
        name: For people: ``"NAS-Bench-101 tfrecord"``.
        why_not: Says in a few words why a path is not of this kind; None: it is. It looks at names
            and first bytes only, and never raises for a path that exists.
        read: Reads a source of this kind; raises ValueError, naming what is damaged and where.
    """

    name: str
    why_not: Callable[[Path], str | None]
    read: Callable[[Path, OnProgress], Imported]


def import_table(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    partial: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Convert official benchmark files into one file of columns.

    Args:
        source: File or folder as the benchmark's authors publish it.
        out: File to write, replaced as a whole or not at all.
        partial: Write also what is not the whole official release; the file says what is missing.
        on_progress: Called with bytes read and bytes in all.

    Returns:
        The report, plain values: the header of the file, its rows and its reader.

    Raises:
        FileNotFoundError: If there is no such source.
        ValueError: If its kind is unknown, if it is damaged, if it is not the whole release and
            ``partial`` is not given, or if ``out`` cannot be written, belongs to the source, or is
            there and no such table; nothing is written.
        OSError: If the file cannot be written.
    """
    from nasfast import __version__

    path, target = Path(source), Path(out)
    importer = find_importer(path)
    _check_out(target, path)
    found = importer.read(path, on_progress or (lambda done, total: None))
    bad = [f"{c.name}: wanted {c.wanted}, got {c.got}" for c in found.checks if not c.good]
    if (found.missing or bad) and not partial:
        listed = "; ".join([*found.missing, *bad])
        raise ValueError(
            f"{path}: not the whole of {found.release}: {listed}. Nothing is written; --partial "
            "writes what there is"
        )
    header = {
        "space": found.space,
        "release": found.release,
        "sources": [asdict(entry) for entry in found.sources],
        "missing": found.missing,
        "checks": [asdict(check) for check in found.checks],
        "notes": found.notes,
        "importer": __version__,
    }
    write_curve_table(target, header, found.columns)
    key = "index" if "index" in found.columns else "hash"
    return {**header, "reader": importer.name, "rows": len(found.columns[key])}


def _check_out(target: Path, source: Path) -> None:
    """Check that nothing is lost if a table is written there; before anything is read."""
    check_target(target)
    if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"out: wanted a file outside the source, got {target}")
    if not target.exists():
        return
    if target.samefile(source):
        raise ValueError(f"out: wanted another file than the source, got {target}")
    if not target.is_file() or not is_columns(target):
        raise ValueError(
            f"out: {target} is there and is no table that nasfast import wrote: name another file"
        )


def find_importer(path: Path) -> Importer:
    """Find the reader of a source.

    Raises:
        FileNotFoundError: If there is no such source.
        ValueError: If its kind is unknown; the message says why each kind is not its.
    """
    if not path.exists():
        raise FileNotFoundError(f"source not found: {path}")
    reasons = []
    for importer in importers():
        reason = importer.why_not(path)
        if reason is None:
            return importer
        reasons.append(f"{importer.name}: {reason}")
    raise ValueError(f"{path}: of no known kind. Not {'; not '.join(reasons)}")


def importers() -> tuple[Importer, ...]:
    """Return the readers of all known kinds, in the order in which they are tried."""
    from nasfast.tables import nats_files, nb101_files, nb201_files  # they import the classes above

    return (nb101_files.IMPORTER, *nb201_files.IMPORTERS, *nats_files.IMPORTERS)


def digest(path: Path) -> Source:
    """Read a file once more to name it in a report."""
    return digests(path)[0]


def digests(path: Path) -> tuple[Source, str]:
    """Read a file once more; return also its MD5, as names of official files have its end."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            sha256.update(piece)
            md5.update(piece)
    return Source(path.name, path.stat().st_size, sha256.hexdigest()), md5.hexdigest()
