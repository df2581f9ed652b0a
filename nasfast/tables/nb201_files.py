# SPDX-License-Identifier: MIT
"""The official files of NAS-Bench-201: ``NAS-Bench-201-v1_0-e61699.pth`` and ``-v1_1-096897.pth``.

``torch.save`` wrote them: a dictionary with ``meta_archs`` (strings by index), ``arch2infos`` (for
each index the runs of 200 epochs under ``"full"`` and of 12 under ``"less"``) and
``evaluated_indexes``. The archive of single architectures, ``NAS-Bench-201-v1_1-archive``, has one
file ``NNNNNN-FULL.pth`` for each with what ``arch2infos`` has, weights included.

The authors' package unpickles such a file as it is, which may run any code that the file names,
and needs 28 GB, so it would need a process of its own. Here the file is read as
:mod:`nasfast.tables.official_pickles` says: nothing that it names is run, and curves are all that
is kept: about 1.8 GB for all architectures, 1.2 GB from single ones (``bench/import_official.py``;
straight lines from 400). Both come to the same numbers (``test_tables_nb201`` compares them).
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from nasfast.tables.importers import Imported, Importer, OnProgress, digest
from nasfast.tables.official_columns import OfficialColumns
from nasfast.tables.official_pickles import OfficialUnpickler
from nasfast.tables.official_releases import cells, check_texts, finished, folder_source
from nasfast.tables.official_runs import ArchRuns, by_schedule
from nasfast.unpickling import shown

_MAGIC = 0x1950A86A20F9469CFC6C  # of torch.save before PyTorch 1.6
_OLD_START = b"\x80\x02\x8a\x0a" + _MAGIC.to_bytes(10, "little")
_ONE_FILE = ("meta_archs", "arch2infos", "evaluated_indexes")
_SINGLE = re.compile(r"(\d{6})-(FULL|SIMPLE)\.pth")
_RELEASES = {"e61699": "NAS-Bench-201 v1.0", "096897": "NAS-Bench-201 v1.1"}


@dataclass(frozen=True, slots=True)
class Done:
    """An architecture with one schedule whose runs were taken over."""

    index: int
    epochs: int


def taking(columns: OfficialColumns, after: Callable[[], None]) -> Callable[[ArchRuns], Done]:
    """Return what takes architectures over as a pickle is read, and tells of each."""

    def on_arch(found: ArchRuns) -> Done:
        columns.add(found)
        after()
        return Done(found.index, found.epochs)

    return on_arch


def check_one_file(value: Any, columns: OfficialColumns) -> None:
    """Check the dictionary around what was taken over.

    Raises:
        ValueError: If it is not as the authors write it, or says something else than it has.
    """
    lacking = [key for key in _ONE_FILE if not isinstance(value, dict) or key not in value]
    if lacking:
        raise ValueError(f"lacks {', '.join(lacking)}")
    check_texts(value["meta_archs"], columns.release)
    infos, listed = value["arch2infos"], value["evaluated_indexes"]
    if not isinstance(infos, dict) or not isinstance(listed, list):
        raise ValueError("arch2infos or evaluated_indexes: not of the official form")
    for index, found in infos.items():
        if {entry.index for entry in by_schedule(found)} != {index}:
            raise ValueError(f"arch2infos[{index!r:.40}]: has results of another architecture")
    if sorted(map(str, listed)) != sorted(map(str, infos)):
        raise ValueError(
            f"evaluated_indexes: lists {len(listed):,} architectures, but there are results of "
            f"{len(infos):,}, or of others"
        )


@contextmanager
def wrapped(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file leads to into one kind of error that names it."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise ValueError(f"{path}: damaged: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    # Damaged bytes fail in any layer: zipfile, bz2, the opcodes of a pickle, its numbers.
    except Exception as error:
        reason = f"{type(error).__name__}: {shown(str(error), 200)}"
        raise ValueError(f"{path}: cut off or damaged ({reason})") from None


@contextmanager
def torch_pickle(path: Path) -> Iterator[BinaryIO]:
    """Open the pickle in a file of ``torch.save``, of either format, where it begins.

    Raises:
        ValueError: If it is no such file.
    """
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            file.seek(0)
            magic, _, _ = (OfficialUnpickler(file, 1 << 16).load() for _ in range(3))
            if magic != _MAGIC:
                raise ValueError("does not begin as a file of torch.save")
            yield file
            OfficialUnpickler(file, 1 << 30).load()  # names of weights: to see that all is there
            return
        archive = zipfile.ZipFile(file)
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1 or archive.getinfo(names[0]).compress_type != zipfile.ZIP_STORED:
            raise ValueError("wanted a file of torch.save with one data.pkl, stored as it is")
        with archive.open(names[0]) as member:
            yield cast(BinaryIO, member)


def _why_not_torch(path: Path) -> str | None:
    with path.open("rb") as file:
        start = file.read(len(_OLD_START))
    if start == _OLD_START or start[:2] == b"PK":
        return None
    return "no file of torch.save"


def why_not_file(path: Path) -> str | None:
    """Say why a path is not the one file; None: it is."""
    if not path.is_file() or path.suffix != ".pth":
        return "no .pth file"
    return _why_not_torch(path)


def why_not_archive(path: Path) -> str | None:
    """Say why a path is not the folder of single architectures; None: it is."""
    if not path.is_dir():
        return "no folder"
    return None if _singles(path) else "a folder without NNNNNN-FULL.pth"


def read_file(path: Path, on_progress: OnProgress) -> Imported:
    """Read the one file.

    Args:
        path: The file.
        on_progress: Called after each architecture and schedule with bytes read and bytes in all.

    Raises:
        ValueError: If it is damaged or of another release.
    """
    columns, size = OfficialColumns(cells(_release(path))), path.stat().st_size
    with wrapped(path), torch_pickle(path) as stream:
        on_arch = taking(columns, lambda: on_progress(min(stream.tell(), size), size))
        check_one_file(OfficialUnpickler(stream, size, on_arch).load(), columns)
        return finished(columns, [digest(path)], [_release_note(path)])


def read_archive(path: Path, on_progress: OnProgress) -> Imported:
    """Read the folder of single architectures; weights are passed over.

    Raises:
        ValueError: If a file is damaged, of another release, or of another architecture than its
            name says.
    """
    files = _singles(path)
    columns = OfficialColumns(cells(_release(path)))
    sizes = [file.stat().st_size for file in files.values()]
    done = 0
    for (index, file), size in zip(files.items(), sizes, strict=True):
        with wrapped(file), torch_pickle(file) as stream:
            found = by_schedule(OfficialUnpickler(stream, size).load())
            if found[0].index != index:
                raise ValueError(f"wanted results of architecture {index}, got {found[0].index}")
            for runs in found:
                columns.add(runs)
        done += size
        on_progress(done, sum(sizes))
    with wrapped(path):
        return finished(columns, [folder_source(path, list(files.values()))], [_release_note(path)])


def _singles(folder: Path) -> dict[int, Path]:
    """Files of single architectures by index; with and without weights are the same to us."""
    found: dict[int, Path] = {}
    for file in sorted(folder.iterdir(), reverse=True):  # SIMPLE before FULL
        match = _SINGLE.fullmatch(file.name)
        if match:
            found.setdefault(int(match[1]), file)
    return dict(sorted(found.items()))


def _release(path: Path) -> str:
    """Name the release by the checksum in the official file's name."""
    for part, name in _RELEASES.items():
        if part in path.name:
            return name
    return _RELEASES["e61699"] if "v1_0" in path.name else _RELEASES["096897"]


def _release_note(path: Path) -> str:
    if any(part in path.name for part in (*_RELEASES, "v1_0", "v1_1")):
        return f"release taken from the file's name: {_release(path)}"
    return f"the file's name does not say which release it is; taken as {_release(path)}"


IMPORTERS = (
    Importer("NAS-Bench-201 .pth", why_not_file, read_file),
    Importer("NAS-Bench-201 archive", why_not_archive, read_archive),
)
