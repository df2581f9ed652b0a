# SPDX-License-Identifier: MIT
"""Reading named files out of a folder or a tar archive, in memory."""

import gzip
import tarfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, cast

__all__ = ["ArchiveError", "existing_path", "read_archive", "read_folder"]

_GZIP_MAGIC = b"\x1f\x8b"
_DRAIN_BYTES = 1 << 20
# Far above the largest official archive (186 MB): a damaged header must not ask for all memory,
# nor a small file unfold for minutes.
_MAX_BYTES = 1 << 30


class ArchiveError(ValueError):
    """An archive is damaged, cut off, or holds what an official one does not."""


def existing_path(path: Path, what: str) -> Path:
    """Return `path`, or raise FileNotFoundError saying that `what` was wanted there."""
    if not path.exists():
        raise FileNotFoundError(f"path must be {what}, got {path}, which does not exist")
    return path


def read_folder(folder: Path, names: Collection[str]) -> dict[str, bytes]:
    """Contents of the files `names` of `folder`.

    Raises:
        FileNotFoundError: If one is missing; the message lists all that are.
    """
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} must hold {', '.join(names)}; missing: {missing}")
    return {name: (folder / name).read_bytes() for name in names}


def read_archive(path: Path, names: Collection[str]) -> dict[str, bytes]:
    """Contents of those members of a tar archive, gzip-compressed or not, that are in `names`.

    Nothing is written to disk. The archive is read to its end, so that the checksum at the end
    of a gzip file is verified.

    Args:
        path: The archive.
        names: Full member names, with ``/``.

    Returns:
        Content by name, for the names that are there.

    Raises:
        ArchiveError: If the archive is cut off, damaged or no tar archive, if a member's name
            leads out of the archive, if a wanted member is no regular file or comes twice, or if
            all of it unfolds to more than 1 GiB.
    """
    with path.open("rb") as raw:
        compressed = raw.read(2) == _GZIP_MAGIC
        raw.seek(0)
        # These are no IO[bytes] for the type checker, though they read like one.
        unpacked = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if compressed else raw
        stream = _Limited(unpacked, path)
        try:
            found = _read_members(cast(IO[bytes], stream), path, names)
            while stream.read(_DRAIN_BYTES):
                pass
        except ArchiveError:
            raise
        # Damaged bytes fail in any layer: gzip, tarfile, or the numbers in a member's header.
        except Exception as error:
            raise ArchiveError(
                f"{path} must be a whole tar or tar.gz archive, but reading it failed "
                f"({type(error).__name__}: {error!s:.200}); it may be cut off or damaged"
            ) from error
    return found


class _Limited:
    """The read side of a stream, up to 1 GiB."""

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        self._stream, self._path, self._left = stream, path, _MAX_BYTES

    def read(self, size: int) -> bytes:
        """Read some bytes."""
        content = self._stream.read(min(size, self._left + 1))
        self._left -= len(content)
        if self._left < 0:
            raise ArchiveError(f"{self._path} must unfold to at most {_MAX_BYTES} bytes")
        return content


def _read_members(stream: IO[bytes], path: Path, names: Collection[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if name.startswith("/") or ".." in name.split("/"):
                raise ArchiveError(f"{path} holds a member outside itself: {member.name!r}")
            if name not in names:
                continue
            # A sparse file has holes, which may be longer than everything else.
            regular = member.isreg() and not member.issparse()
            content = archive.extractfile(member) if regular else None
            if content is None:
                raise ArchiveError(
                    f"{path}: {name} must be a regular file, got a link, folder or sparse file"
                )
            if name in found:
                raise ArchiveError(f"{path}: {name} must come once, got two members of that name")
            if member.size > _MAX_BYTES:
                raise ArchiveError(
                    f"{path}: {name} must have at most {_MAX_BYTES} bytes, got {member.size}"
                )
            found[name] = content.read()
    return found
