"""The list of files in order, on disk: sorted by SQLite, so that a million names cost no more memory than a hundred."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from serving.batch.journal import sync
from serving.batch.names import stem
from serving.batch.sources import Entry


@dataclass(frozen=True, slots=True)
class Item:
    """One file to answer for.

    Attributes:
        name: relative to the source.
        problem: why it cannot be read, known from listing; empty where it shall be read.
        skip: whether the problem is no loss.
        shared: whether another file has the same name but for its ending, so that outputs keep the whole name.
    """

    name: bytes
    problem: str = ""
    skip: bool = False
    shared: bool = False

    @property
    def base(self) -> bytes:
        """The name that files made from this image bear, without their ending."""
        return self.name if self.shared else stem(self.name)


@dataclass(frozen=True, slots=True)
class Part:
    """A run of items that is stored as one file: either all of its answers stand, or none."""

    digest: str
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Changes:
    """How the files differ from an earlier listing."""

    added: int
    removed: int
    changed: int
    examples: tuple[bytes, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self.added or self.removed or self.changed)


class Plan:
    """The files of a run, by name.

    Args:
        path: the SQLite file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._store = _open(path)

    @classmethod
    def build(cls, path: Path, entries: Iterable[Entry]) -> Plan:
        """Lists anew into a file; one that stood there is replaced."""
        path.unlink(missing_ok=True)
        plan = cls(path)
        store = plan._store
        store.execute("PRAGMA journal_mode=OFF")
        store.execute(
            "CREATE TABLE files (name BLOB PRIMARY KEY, stamp TEXT, problem TEXT, skip INT, stem BLOB, shared INT)"
            " WITHOUT ROWID"
        )
        store.execute("BEGIN")
        rows = ((e.name, e.stamp, e.problem, e.skip, stem(e.name), False) for e in entries)
        store.executemany("INSERT OR IGNORE INTO files VALUES (?,?,?,?,?,?)", rows)
        store.execute("CREATE INDEX stems ON files (stem)")
        store.execute(
            "UPDATE files SET shared=1 WHERE stem IN (SELECT stem FROM files GROUP BY stem HAVING count(*) > 1)"
            " OR EXISTS (SELECT 1 FROM files AS other WHERE other.name = files.stem AND other.name != files.name)"
        )
        store.execute("COMMIT")
        return plan

    def __len__(self) -> int:
        """Number of entries."""
        return int(self._store.execute("SELECT count(*) FROM files").fetchone()[0])

    def parts(self, size: int) -> Iterator[Part]:
        """The items in order of their names' bytes, `size` at a time."""
        cursor = self._store.execute("SELECT name, stamp, problem, skip, shared FROM files ORDER BY name")
        while rows := list(islice(cursor, size)):
            state = hashlib.sha256(repr(rows).encode()).hexdigest()[:32]
            yield Part(state, tuple(Item(bytes(r[0]), r[2], bool(r[3]), bool(r[4])) for r in rows))

    def digest(self) -> str:
        """Changes when a file is added, removed or changed."""
        state = hashlib.sha256()
        for row in self._store.execute("SELECT name, stamp, problem FROM files ORDER BY name"):
            state.update(repr(row).encode())
        return state.hexdigest()

    def changes_since(self, earlier: Path) -> Changes:
        """How the files differ from those of an earlier plan."""
        store = self._store
        store.execute("ATTACH ? AS old", (str(earlier),))
        try:
            added = "SELECT name FROM main.files WHERE name NOT IN (SELECT name FROM old.files)"
            removed = "SELECT name FROM old.files WHERE name NOT IN (SELECT name FROM main.files)"
            changed = "SELECT n.name FROM main.files n JOIN old.files o ON n.name=o.name WHERE n.stamp!=o.stamp"
            counts = [store.execute(f"SELECT count(*) FROM ({q})").fetchone()[0] for q in (added, removed, changed)]  # noqa: S608  # the three above
            found = [r[0] for q in (added, removed, changed) for r in store.execute(f"{q} LIMIT 1")]
            return Changes(counts[0], counts[1], counts[2], tuple(bytes(name) for name in found))
        finally:
            store.execute("DETACH old")

    def move(self, path: Path) -> None:
        """Gives the file another name, with all of it on disk before."""
        self._store.close()
        sync(self.path)
        self.path.replace(path)
        self.path, self._store = path, _open(path)

    def close(self) -> None:
        """Closes the file."""
        self._store.close()


def _open(path: Path) -> sqlite3.Connection:
    store = sqlite3.connect(path, isolation_level=None)
    store.execute("PRAGMA synchronous=OFF")
    return store
