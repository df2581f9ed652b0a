# SPDX-License-Identifier: MIT
"""The official files of NATS-Bench, of its topology space (tss) and its size space (sss).

A folder, ``NATS-tss-v1_0-3ffb9-simple`` or ``NATS-sss-v1_0-50262-simple``, has
``meta.pickle.pbz2`` and a file ``NNNNNN.pickle.pbz2`` for each architecture; one that ends in
``-full`` has the weights too. ``NATS-tss-v1_0-3ffb9.pickle.pbz2`` is the same in one file. All are
pickles in bzip2, read as :mod:`nasfast.tables.official_pickles` says, so nothing that they name is
run. The one file has in its name the last five digits of its MD5. The index of an architecture is
the same in tss and in NAS-Bench-201.
"""

from __future__ import annotations

import bz2
import io
import re
from pathlib import Path
from typing import BinaryIO, cast

from nasfast.tables.importers import Check, Imported, Importer, OnProgress, digests
from nasfast.tables.nb201_files import check_one_file, taking, wrapped
from nasfast.tables.official_columns import OfficialColumns, Release
from nasfast.tables.official_pickles import OfficialUnpickler
from nasfast.tables.official_releases import (
    NATS_CELLS,
    cells,
    check_texts,
    finished,
    folder_source,
    sizes,
)
from nasfast.tables.official_runs import by_schedule

META = "meta.pickle.pbz2"
_SINGLE = re.compile(r"(\d{1,6})\.pickle\.pbz2")
_SUFFIX = re.compile(r"-([0-9a-f]{5})\.pickle\.pbz2$")
# Of one architecture unpacked: twenty runs of 1.5 million weights are 120 MB.
_MOST_BYTES = 1 << 28
_LARGEST = 1 << 36  # of all architectures unpacked, without weights: about 10 GB


def why_not_folder(path: Path) -> str | None:
    """Say why a path is not a folder of NATS-Bench; None: it is."""
    if not path.is_dir():
        return "no folder"
    if not (path / META).is_file():
        return f"a folder without {META}"
    return None if _singles(path) else "a folder without NNNNNN.pickle.pbz2"


def why_not_file(path: Path) -> str | None:
    """Say why a path is not NATS-Bench in one file; None: it is."""
    if not path.is_file() or not path.name.endswith(".pickle.pbz2"):
        return "no .pickle.pbz2 file"
    with path.open("rb") as file:
        return None if file.read(3) == b"BZh" else "not packed by bzip2"


def read_folder(path: Path, on_progress: OnProgress) -> Imported:
    """Read a folder, one architecture at a time.

    Args:
        path: The folder.
        on_progress: Called after each architecture with bytes read and bytes in all.

    Raises:
        ValueError: If a file is damaged, of another release, or of another architecture than its
            name says.
    """
    with wrapped(path / META):
        meta = _unpacked(path / META)
        texts = meta.get("meta_archs") if isinstance(meta, dict) else None
        release = _release_of(texts)
        check_texts(texts, release)
    columns, files = OfficialColumns(release), _singles(path)
    total, done = sum(file.stat().st_size for file in files.values()), 0
    for index, file in files.items():
        with wrapped(file):
            found = by_schedule(_unpacked(file))
            if found[0].index != index:
                raise ValueError(f"wanted results of architecture {index}, got {found[0].index}")
            for runs in found:
                columns.add(runs)
        done += file.stat().st_size
        on_progress(done, total)
    with wrapped(path):
        return finished(columns, [folder_source(path, [path / META, *files.values()])])


def read_file(path: Path, on_progress: OnProgress) -> Imported:
    """Read the one file.

    Its space is known by its name; its list of architectures is compared with the official one, and
    its MD5 with the digits in its name.

    Raises:
        ValueError: If it is damaged or of another release.
    """
    release = sizes() if "sss" in path.name else cells(NATS_CELLS)
    columns, size = OfficialColumns(release), path.stat().st_size
    with wrapped(path), path.open("rb") as file:
        stream = cast(BinaryIO, bz2.BZ2File(file))
        on_arch = taking(columns, lambda: on_progress(file.tell(), size))
        check_one_file(OfficialUnpickler(stream, _LARGEST, on_arch).load(), columns)
        source, md5 = digests(path)
        suffix = _SUFFIX.search(path.name)
        if suffix is None:
            note = "the file's name lacks the last five digits of its MD5, as published ones have"
            return finished(columns, [source], notes=[note])
        check = Check("end of the file's MD5, as in its name", suffix[1], md5[-5:],
                      md5.endswith(suffix[1]))  # fmt: skip
        return finished(columns, [source], checks=[check])


def _unpacked(path: Path) -> object:
    with bz2.open(path) as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"unpacks to more than {_MOST_BYTES >> 20} MiB")
    return OfficialUnpickler(io.BytesIO(content), len(content)).load()


def _release_of(texts: object) -> Release:
    """Tell the space by the form of its strings."""
    first = texts[0] if isinstance(texts, list) and texts else None
    return sizes() if isinstance(first, str) and ":" in first else cells(NATS_CELLS)


def _singles(folder: Path) -> dict[int, Path]:
    """Files of single architectures by index."""
    matches = ((file, _SINGLE.fullmatch(file.name)) for file in folder.iterdir())
    return dict(sorted((int(match[1]), file) for file, match in matches if match))


IMPORTERS = (
    Importer("NATS-Bench folder", why_not_folder, read_folder),
    Importer("NATS-Bench .pickle.pbz2", why_not_file, read_file),
)
