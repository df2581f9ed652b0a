# SPDX-License-Identifier: MIT
"""What a run computed, in SQLite files; a chunk is one transaction, so a kill loses no score."""

from __future__ import annotations

import itertools
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
            # Of a table that is not as it should be, SQLite says no more than "error".
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
            kind = StoreError if code == sqlite3.SQLITE_ERROR else OSError
            raise kind(f"{self.path}: {what} ({error!s:.200})") from None
        except (sqlite3.Error, UnicodeDecodeError) as error:  # it may quote damaged names
            raise StoreError(f"{self.path}: {what} ({error!s:.200})") from None

    def _damaged(self, why: str) -> StoreError:
        line = " ".join(why.split())
        return StoreError(f"{self.path}: damaged ({line:.200}); delete it to {self.again}")

    def _check_pages(self) -> None:
        found = self._db.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise self._damaged(found)
        # A view or a trigger would be run by what reads and writes rows.
        parts = self._db.execute("SELECT type, name FROM sqlite_schema").fetchall()
        if sorted(parts) != sorted([("table", "meta"), ("table", self.table)]):
            raise self._damaged("it holds more than its tables")

    def _meta(self, key: str, kind: type) -> Any:
        """Return what is stored under a key, JSON of a type; an empty one if nothing is."""
        with self._failing("not readable"):
            row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        try:
            value = kind() if row is None else json.loads(row[0])
        except (TypeError, ValueError, RecursionError) as error:
            raise self._damaged(f"{key}: {error}") from None
        if not isinstance(value, kind):
            raise self._damaged(f"{key}: wanted a {kind.__name__}")
        return value

    def _check(self, settings: dict[str, Any]) -> None:
        rows: dict[Any, Any] = dict(self._db.execute("SELECT key, value FROM meta"))
        if not rows:
            if self._db.execute(f"SELECT count(*) FROM {self.table}").fetchone() != (0,):
                raise self._damaged("its settings are missing")
            meta = [("schema", str(self.version)), ("settings", json.dumps(settings))]
            self._write(("INSERT INTO meta VALUES (?, ?)", meta))
            return
        if rows.get("schema") != str(self.version):
            raise StoreError(
                f"{self.path}: wanted a {self.noun} file of schema {self.version}, "
                f"got {' '.join(str(rows.get('schema')).split()):.40}"
            )
        changed = differences(self._meta("settings", dict), settings)
        if changed:
            raise StoreError(
                f"{self.path}: holds {self.noun}s made under other settings "
                f"({'; '.join(changed):.2000}); use another run folder, or delete this file to "
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

    def _insert(
        self, rows: Sequence[tuple[Any, ...]],
        *others: tuple[str, Sequence[tuple[Any, ...]]],
    ) -> None:  # fmt: skip
        """Add rows in one transaction, and run other statements: all of it, or nothing."""
        with self._failing(f"{len(rows)} {self.noun}s not written"):
            self._write((self._insertion(rows), rows), *others)

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
        found: list[str] = self._meta("origins", list)
        if not all(isinstance(origin, str) for origin in found):
            raise self._damaged("origins: wanted words")
        return found

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

    def work(self) -> dict[str, dict[str, float]]:
        """Return what computing the rows took, by weight set: sums over all calls.

        Rows of earlier versions of nasfast are not counted.
        """
        found: dict[str, dict[str, float]] = self._meta("work", dict)
        sums = [value for part in found.values() if isinstance(part, dict)
                for value in part.values()]  # fmt: skip
        if not all(isinstance(part, dict) for part in found.values()) or not all(
            isinstance(value, int | float) for value in sums
        ):
            raise self._damaged("work: wanted numbers")
        return found

    def _worked(
        self, weights: str, amounts: Mapping[str, float]
    ) -> tuple[str, Sequence[tuple[Any, ...]]]:
        """Return the statement that adds to :meth:`work`, for the transaction of the rows."""
        work = self.work()
        sums = work.get(weights, {})
        work[weights] = {key: sums.get(key, 0) + value for key, value in amounts.items()}
        return "INSERT OR REPLACE INTO meta VALUES (?, ?)", [("work", json.dumps(work))]

    def _rows(self, columns: str, weights: str) -> list[tuple[Any, ...]]:
        """Return columns, of which the first is the architecture."""
        with self._failing("not readable"):
            rows = self._db.execute(
                f"SELECT {columns} FROM {self.table} WHERE weights = ? ORDER BY arch", (weights,)
            ).fetchall()
        # SQLite lets a column hold anything, and believes in the order that it finds.
        archs = [row[0] for row in rows]
        if not all(type(arch) is int and arch >= 0 for arch in archs):
            raise self._damaged("an architecture without a number")
        if any(a >= b for a, b in itertools.pairwise(archs)):
            raise self._damaged("architectures out of order")
        return rows


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
        work: Mapping[str, float] | None = None,
    ) -> None:
        """Add the scores of a chunk in one transaction: all of them, or none.

        Args:
            weights: Name of the weight set.
            archs: Official indices.
            loss: Mean loss of each, may be NaN or infinite.
            correct: Images classified correctly, of each.
            images: Images that each was scored on.
            replace: Architectures whose score, if they have one, is replaced.
            work: What computing them took, numbers by name, for :meth:`Store.work`.

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
        took = [] if work is None else [self._worked(weights, work)]
        with self._failing(f"{len(rows)} {self.noun}s not written"):
            self._write((delete, old), (self._insertion(rows), rows), *took)

    def read(
        self, weights: str
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return official indices (ascending), mean losses and accuracies, each ``[scores]``.

        Raises:
            StoreError: If a score is none.
        """
        rows = self._rows("arch, loss, correct, images", weights)
        for arch, loss_of, correct, images in rows:
            counts = type(correct) is type(images) is int and 0 <= correct <= images > 0
            if not counts or not isinstance(loss_of, float | None):
                raise self._damaged(f"the score of architecture {arch}")
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
    except (sqlite3.Error, TypeError, ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}
