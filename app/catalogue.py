"""What people decide about runs and adapters: the order of the queue, titles, notes, favourites.

Everything here could be lost without losing work: runs, adapters and datasets are folders and
files, and the state of a run is read from its directory alone.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Waiting:
    """A run in the queue, and how many attempts it had when it was put there: once it has more,
    a trainer has taken it."""

    run: str
    attempt: int


@dataclass(frozen=True)
class Remark:
    """What a person wrote about a run or an adapter; the title replaces its file name on cards."""

    title: str = ""
    note: str = ""
    favourite: bool = False


class Catalogue:
    """The catalogue in one SQLite file, safe to use from many threads and processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as database:
            database.execute("PRAGMA journal_mode=WAL")
            version = database.execute("PRAGMA user_version").fetchone()[0]
            for step in _MIGRATIONS[version:]:
                step(database)
            database.execute(f"PRAGMA user_version={len(_MIGRATIONS)}")

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        database = sqlite3.connect(self.path, timeout=_PATIENCE_SECONDS)
        try:
            with database:
                yield database
        finally:
            database.close()

    def queue(self) -> list[Waiting]:
        """The waiting runs, next one first."""
        with self._open() as database:
            rows = database.execute("SELECT run, attempt FROM queue ORDER BY position").fetchall()
        return [Waiting(*row) for row in rows]

    def enqueue(self, waiting: Waiting) -> None:
        """Puts a run at the end of the queue; one that waits already keeps its place."""
        with self._open() as database:
            database.execute(
                "INSERT OR IGNORE INTO queue (run, attempt) VALUES (?, ?)",
                (waiting.run, waiting.attempt),
            )

    def dequeue(self, run: str) -> bool:
        """Takes a run out of the queue, and says whether it was in it."""
        with self._open() as database:
            return database.execute("DELETE FROM queue WHERE run = ?", (run,)).rowcount > 0

    def remark(self, subject: str) -> Remark:
        """What was written about a subject; nothing yet is an empty remark."""
        return self.remarks().get(subject, Remark())

    def remarks(self) -> dict[str, Remark]:
        """All remarks by subject."""
        with self._open() as database:
            rows = database.execute("SELECT subject, title, note, favourite FROM remarks")
            return {row[0]: Remark(row[1], row[2], bool(row[3])) for row in rows.fetchall()}

    def write_remark(self, subject: str, remark: Remark) -> None:
        """Replaces what was written about a subject."""
        with self._open() as database:
            database.execute(
                "INSERT OR REPLACE INTO remarks (subject, title, note, favourite) VALUES (?,?,?,?)",
                (subject, remark.title, remark.note, remark.favourite),
            )

    def forget(self, subject: str) -> None:
        """Removes a subject's remark, when the subject itself is removed."""
        with self._open() as database:
            database.execute("DELETE FROM remarks WHERE subject = ?", (subject,))


def _first_version(database: sqlite3.Connection) -> None:
    database.execute(
        "CREATE TABLE queue (position INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT UNIQUE NOT NULL, "
        "attempt INTEGER NOT NULL)"
    )
    database.execute(
        "CREATE TABLE remarks (subject TEXT PRIMARY KEY, title TEXT NOT NULL, note TEXT NOT NULL, "
        "favourite INTEGER NOT NULL)"
    )


# Each entry brings the file from the version of its index to the next one.
_MIGRATIONS: list[Callable[[sqlite3.Connection], None]] = [_first_version]
