# SPDX-License-Identifier: MIT
"""The scores of a run in one SQLite file; a chunk is one transaction, so a kill loses no score."""

from __future__ import annotations

import json
import math
import os
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from nasfast.files import differences

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS scores (
    weights TEXT NOT NULL,    -- which weight set: 'supernet', 'untrained', 'supernet, fp32'
    arch INTEGER NOT NULL,    -- official index
    loss REAL,                -- mean over images; NULL stands for NaN
    correct INTEGER NOT NULL, -- images classified correctly
    images INTEGER NOT NULL,
    PRIMARY KEY (weights, arch)
) WITHOUT ROWID;
"""


class StoreError(RuntimeError):
    """The score file cannot be used as asked; the message says why and what to do."""


class ScoreStore:
    """Scores by weight set and architecture.

    Args:
        path: SQLite file, made when it does not exist.
        settings: What the scores depend on. A file made under other settings is refused.

    Raises:
        StoreError: If the file is damaged, or was made under other settings.
        OSError: If the file cannot be opened or written.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        try:
            self._db = sqlite3.connect(self.path, isolation_level=None)
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.executescript(_SCHEMA)
                self._check_pages()
                self._check(json.loads(json.dumps(dict(settings), sort_keys=True)))
            except BaseException:
                self._db.close()
                raise
        except sqlite3.Error as error:
            raise self._failure("not usable as a score file", error) from None

    def _failure(self, what: str, error: sqlite3.Error) -> StoreError | OSError:
        """Tell what the machine refuses (disk, permission, lock) from what is wrong in the file."""
        words = f"{self.path}: {what} ({error})"
        return OSError(words) if isinstance(error, sqlite3.OperationalError) else StoreError(words)

    def _check_pages(self) -> None:
        found = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise StoreError(f"{self.path}: damaged ({found}); delete it to score anew")

    def _check(self, settings: dict[str, Any]) -> None:
        rows: dict[str, str] = dict(self._db.execute("SELECT key, value FROM meta"))
        if not rows:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany(
                    "INSERT INTO meta VALUES (?, ?)",
                    [("schema", str(_SCHEMA_VERSION)), ("settings", json.dumps(settings))],
                )
            return
        if rows.get("schema") != str(_SCHEMA_VERSION):
            raise StoreError(
                f"{self.path}: wanted a score file of schema {_SCHEMA_VERSION}, "
                f"got {rows.get('schema')}"
            )
        changed = differences(json.loads(rows["settings"]), settings)
        if changed:
            raise StoreError(
                f"{self.path}: holds scores made under other settings ({'; '.join(changed)}); "
                "use another run folder, or delete this file to score anew"
            )

    def __enter__(self) -> ScoreStore:
        """Return the store."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file; what was added stays."""
        self._db.close()

    def add(
        self,
        weights: str,
        archs: Sequence[int],
        loss: Sequence[float],
        correct: Sequence[int],
        images: int,
    ) -> None:
        """Add the scores of a chunk in one transaction: all of them, or none.

        Args:
            weights: Name of the weight set.
            archs: Official indices.
            loss: Mean loss of each, may be NaN or infinite.
            correct: Images classified correctly, of each.
            images: Images that each was scored on.

        Raises:
            StoreError: If an architecture has a score already.
            OSError: If the disk refuses.
        """
        rows = [
            (weights, int(arch), None if math.isnan(value) else float(value), int(right), images)
            for arch, value, right in zip(archs, loss, correct, strict=True)
        ]
        try:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany("INSERT INTO scores VALUES (?, ?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            raise self._failure(f"{len(rows)} scores not written", error) from None

    def done(self, weights: str) -> set[int]:
        """Return the official indices that have a score."""
        return {arch for (arch,) in self._rows("arch", weights)}

    def origins(self) -> list[str]:
        """Return what computed the scores, in the order of :meth:`add_origin`."""
        try:
            row = self._db.execute("SELECT value FROM meta WHERE key = 'origins'").fetchone()
        except sqlite3.Error as error:
            raise self._failure("not readable", error) from None
        return [] if row is None else json.loads(row[0])

    def add_origin(self, origin: str) -> None:
        """Remember what computes the scores that are added next; known ones stay where they are.

        Raises:
            OSError: If the disk refuses.
        """
        known = self.origins()
        if origin in known:
            return
        row = ("origins", json.dumps([*known, origin]))
        try:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", row)
        except sqlite3.Error as error:
            raise self._failure("origin of the scores not written", error) from None

    def _rows(self, columns: str, weights: str) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(
                f"SELECT {columns} FROM scores WHERE weights = ? ORDER BY arch", (weights,)
            ).fetchall()
        except sqlite3.Error as error:
            raise self._failure("not readable", error) from None

    def read(
        self, weights: str
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return official indices (ascending), mean losses and accuracies, each ``[scores]``."""
        rows = self._rows("arch, loss, correct, images", weights)
        archs = np.array([row[0] for row in rows], dtype=np.int64)
        loss = np.array([math.nan if r[1] is None else r[1] for r in rows], dtype=np.float64)
        accuracy = np.array([row[2] / row[3] for row in rows], dtype=np.float64)
        return archs, loss, accuracy


def stored_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the settings that a score file was made under; none if it cannot tell.

    Why it cannot, :class:`ScoreStore` says.
    """
    if not Path(path).is_file():
        return {}
    try:
        db = sqlite3.connect(path)
        try:
            row = db.execute("SELECT value FROM meta WHERE key = 'settings'").fetchone()
        finally:
            db.close()
        settings = {} if row is None else json.loads(row[0])
    except (sqlite3.Error, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}
