"""Decoded, pre-shrunk arrays kept in a folder between runs, bounded in bytes."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

_HEADER = 128
"""Bytes that NumPy's file format puts before the numbers."""


class DiskCache:
    """Arrays uint8 by key, one file each, written through a temporary file; safe to share among processes.

    It stores while there is room and never fails a run: what cannot be read or written is simply decoded again.

    Args:
        folder: made when the first array is stored.
        limit: most bytes in the folder.
        writers: processes that store at the same time; each gets its share of the room.
    """

    def __init__(self, folder: Path, limit: int, writers: int = 1) -> None:
        self.folder, self.limit, self.writers = folder, limit, writers
        self._room: int | None = None

    def get(self, key: str) -> Pixels | None:
        """The array of a key, None where it is not stored."""
        try:
            found: Pixels = np.load(self._path(key), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return found if found.dtype == np.uint8 else None

    def put(self, key: str, array: Pixels) -> None:
        """Stores an array while there is room."""
        if self._room is None:
            self._room = (self.limit - self._used()) // self.writers
        needed = array.nbytes + _HEADER
        if needed > self._room:
            return
        path = self._path(key)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                np.save(file, array, allow_pickle=False)
            part.replace(path)
            self._room -= needed
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink()
            self._room = 0  # full or read-only: no use trying again

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.npy"

    def _used(self) -> int:
        return sum(file.stat().st_size for file in self.folder.glob("*/*.npy")) if self.folder.is_dir() else 0


def file_key(path: Path) -> str:
    """Path, size and time of change, so that an edited file is decoded anew."""
    state = path.stat()
    return f"{path.absolute()}|{state.st_size}|{state.st_mtime_ns}"
