# SPDX-License-Identifier: MIT
"""What a run computed, in SQLite files; a chunk is one transaction, so a kill loses no score."""

from __future__ import annotations

import json
import math
import os
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from nasfast.files import differences
from nasfast.origins import origin_of

_META = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


class StoreError(RuntimeError):
    """A store cannot be used as asked; the message says why and what to do."""


class Store:
    """Rows by weight set and architecture, all made under the same settings.

    Args:
        path: SQLite file, made when it does not exist.
        settings: What the rows depend on. A file made under other settings is refused.

    Attributes:
        table: Table of the rows; its key is ``weights`` and ``arch``, the official index.
        columns: SQL of its other columns.
        version: Of the table.
        noun: One of its rows; a plural is made with an s.
        again: What to do to make them anew.

    Raises:
        StoreError: If the file is damaged, or was made under other settings.
        OSError: If the file cannot be opened or written.
    """

    table: ClassVar[str]
    columns: ClassVar[str]
    version: ClassVar[int] = 1
    noun: ClassVar[str]
    again: ClassVar[str]

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        with self._failing(f"not usable as a {self.noun} file"):
            self._db = sqlite3.connect(self.path, isolation_level=None)
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.executescript(_META + self._schema())
                self._check_pages()
                self._check(json.loads(json.dumps(dict(settings), sort_keys=True)))
            except BaseException:
                self._db.close()
                raise

    def _schema(self) -> str:
        # weights: which weight set, such as 'supernet' or 'untrained'
        return (
            f"CREATE TABLE IF NOT EXISTS {self.table} (weights TEXT NOT NULL, "
            f"arch INTEGER NOT NULL, {self.columns}, PRIMARY KEY (weights, arch)) WITHOUT ROWID;"
        )

    @contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        """Tell what the machine refuses (disk, permission, lock) from what is wrong in the file."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OSError(f"{self.path}: {what} ({error})") from None
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: {what} ({error})") from None

    def _check_pages(self) -> None:
        found = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise StoreError(f"{self.path}: damaged ({found}); delete it to {self.again}")

    def _check(self, settings: dict[str, Any]) -> None:
        rows: dict[str, str] = dict(self._db.execute("SELECT key, value FROM meta"))
        if not rows:
            meta = [("schema", str(self.version)), ("settings", json.dumps(settings))]
            self._write(("INSERT INTO meta VALUES (?, ?)", meta))
            return
        if rows.get("schema") != str(self.version):
            raise StoreError(
                f"{self.path}: wanted a {self.noun} file of schema {self.version}, "
                f"got {rows.get('schema')}"
            )
        changed = differences(json.loads(rows["settings"]), settings)
        if changed:
            raise StoreError(
                f"{self.path}: holds {self.noun}s made under other settings "
                f"({'; '.join(changed)}); use another run folder, or delete this file to "
                f"{self.again}"
            )

    def __enter__(self) -> Self:
        """Return the store."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file; what was added stays."""
        self._db.close()

    def _insert(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Add rows in one transaction: all of them, or none."""
        with self._failing(f"{len(rows)} {self.noun}s not written"):
            self._write((self._insertion(rows), rows))

    def _insertion(self, rows: Sequence[tuple[Any, ...]]) -> str:
        places = ", ".join("?" * len(rows[0])) if rows else ""
        return f"INSERT INTO {self.table} VALUES ({places})"

    def _write(self, *statements: tuple[str, Sequence[tuple[Any, ...]]]) -> None:
        """Run each statement on its rows, all in one transaction."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for statement, rows in statements:
                self._db.executemany(statement, rows)

    def done(self, weights: str) -> set[int]:
        """Return the official indices that have a row."""
        return {arch for (arch,) in self._rows("arch", weights)}

    def origins(self) -> list[str]:
        """Return what computed the rows, in the order of :meth:`add_origin`."""
        with self._failing("not readable"):
            row = self._db.execute("SELECT value FROM meta WHERE key = 'origins'").fetchone()
        return [] if row is None else json.loads(row[0])

    def add_origin(self, origin: str) -> None:
        """Remember what computes the rows that are added next; known ones stay where they are.

        Raises:
            OSError: If the disk refuses.
        """
        known = self.origins()
        if origin in known:
            return
        row = ("origins", json.dumps([*known, origin]))
        with self._failing(f"origin of the {self.noun}s not written"):
            self._write(("INSERT OR REPLACE INTO meta VALUES (?, ?)", [row]))

    def note_origin(self, where: str) -> None:
        """Remember what computes now; say once that a run was continued on another machine.

        Args:
            where: Backend, and instruction set if it chose one.
        """
        self.add_origin(origin_of(where, self.path, f"{self.noun}s", self.origins()))

    def _rows(self, columns: str, weights: str) -> list[tuple[Any, ...]]:
        with self._failing("not readable"):
            return self._db.execute(
                f"SELECT {columns} FROM {self.table} WHERE weights = ? ORDER BY arch", (weights,)
            ).fetchall()


class ScoreStore(Store):
    """Scores: mean loss and what was classified correctly."""

    table = "scores"
    columns = """
    loss REAL,                -- mean over images; NULL stands for NaN
    correct INTEGER NOT NULL, -- images classified correctly
    images INTEGER NOT NULL
    """
    noun = "score"
    again = "score anew"

    def add(
        self,
        weights: str,
        archs: Sequence[int],
        loss: Sequence[float],
        correct: Sequence[int],
        images: int,
        *,
        replace: Collection[int] = (),
    ) -> None:
        """Add the scores of a chunk in one transaction: all of them, or none.

        Args:
            weights: Name of the weight set.
            archs: Official indices.
            loss: Mean loss of each, may be NaN or infinite.
            correct: Images classified correctly, of each.
            images: Images that each was scored on.
            replace: Architectures whose score, if they have one, is replaced.

        Raises:
            StoreError: If another architecture has a score already.
            OSError: If the disk refuses.
        """
        rows = [
            (weights, int(arch), None if math.isnan(value) else float(value), int(right), images)
            for arch, value, right in zip(archs, loss, correct, strict=True)
        ]
        old = [(weights, int(arch)) for arch in archs if arch in replace]
        delete = f"DELETE FROM {self.table} WHERE weights = ? AND arch = ?"
        with self._failing(f"{len(rows)} {self.noun}s not written"):
            self._write((delete, old), (self._insertion(rows), rows))

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
    """Return the settings that a store was made under; none if it cannot tell.

    Why it cannot, :class:`Store` says.
    """
    if not Path(path).is_file():
        return {}
    try:
        with closing(sqlite3.connect(path)) as db:
            row = db.execute("SELECT value FROM meta WHERE key = 'settings'").fetchone()
        settings = {} if row is None else json.loads(row[0])
    except (sqlite3.Error, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}
