"""Where images come from: a folder, a glob, a list file, one image, or an fsspec URL; listed without holding the list."""

from __future__ import annotations

import glob
import os
import re
import stat
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.errors import ConfigError, DataError, ImageError, ImageSizeError
from pipeline.imaging.decode import MAX_BYTES
from serving.batch.names import shown
from serving.batch.patterns import Found, divided, matching

RUN = b".batch/run.json"
"""What the output folder of a run holds."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that was found.

    Attributes:
        name: relative to the source, `/` between folders.
        stamp: changes when the file changes.
        problem: why it cannot be read; empty for a file.
        skip: whether the problem is no loss (a link in a circle, a socket).
    """

    name: bytes
    stamp: str = ""
    problem: str = ""
    skip: bool = False


class Source(Protocol):
    """A place of images; `remote` where each read waits for a network."""

    remote: bool

    @property
    def identity(self) -> str:
        """Tells this source from others, for resuming."""

    def entries(self) -> Iterator[Entry]:
        """Everything found, in any order, each name once."""

    def read(self, name: bytes, limit: int | None = None) -> bytes:
        """A file's first `limit` bytes, or all; raises ImageError."""

    def path(self, name: bytes) -> Path | None:
        """The file on this machine, None where there is none."""


class LocalFiles:
    """Files below a folder of this machine.

    Args:
        root: the folder.
        out: the output folder, which is left out where it lies inside.
    """

    remote = False

    def __init__(self, root: Path, out: Path) -> None:
        self.root, self._base = root, os.fsencode(root)
        self._out = os.fsencode(out.resolve())

    @property
    def identity(self) -> str:
        """The folder's absolute path."""
        return shown(os.fsencode(self.root.resolve()))

    def path(self, name: bytes) -> Path | None:
        """The file."""
        return Path(os.fsdecode(os.path.join(self._base, name)))

    def read(self, name: bytes, limit: int | None = None) -> bytes:
        """A file's first `limit` bytes, or all; raises ImageError."""
        try:
            with open(os.path.join(self._base, name), "rb") as file:
                if limit is None and os.fstat(file.fileno()).st_size > MAX_BYTES:
                    raise ImageSizeError(f"{shown(name)}: larger than {MAX_BYTES >> 20} MiB")
                return file.read(-1 if limit is None else limit)
        except OSError as error:
            raise ImageError(f"{shown(name)}: {error.strerror or error}") from error

    def entries(self) -> Iterator[Entry]:
        """Every file below the folder. Links are followed, but not in a circle.

        Hidden folders and those that another run writes into are named, not entered.
        """
        stack: list[tuple[bytes, frozenset[tuple[int, int]]]] = [(b"", frozenset())]
        while stack:
            folder, above = stack.pop()
            place = os.path.join(self._base, folder)
            try:
                held = os.stat(place)
                chain = above | {(held.st_dev, held.st_ino)}
                with os.scandir(place) as children:
                    for child in children:
                        entry = self._entry(folder + child.name)
                        if entry is not None:
                            yield entry
                        elif self._enters(folder + child.name, chain):
                            stack.append((folder + child.name + b"/", chain))
                        elif not self._is_out(folder + child.name):
                            yield self._not_entered(folder + child.name, chain)
            except OSError as error:
                yield Entry(folder or b"./", "", f"the folder cannot be read: {error.strerror or error}")

    def _entry(self, name: bytes) -> Entry | None:
        """One file's Entry; None for a folder."""
        try:
            held = os.stat(os.path.join(self._base, name))
        except OSError as error:
            return Entry(name, "", f"cannot be read: {error.strerror or error}")
        if stat.S_ISDIR(held.st_mode):
            return None
        if not stat.S_ISREG(held.st_mode):
            return Entry(name, "", "not a regular file", skip=True)
        return Entry(name, f"{held.st_size}:{held.st_mtime_ns}")

    def _is_out(self, name: bytes) -> bool:
        return os.path.realpath(os.path.join(self._base, name)) == self._out

    def _enters(self, name: bytes, chain: frozenset[tuple[int, int]]) -> bool:
        held = os.stat(os.path.join(self._base, name))
        hidden = name.rpartition(b"/")[2].startswith(b".")
        in_circle = (held.st_dev, held.st_ino) in chain
        return not in_circle and not hidden and not self._is_out(name) and not self._is_output(name)

    def _is_output(self, name: bytes) -> bool:
        return os.path.lexists(os.path.join(self._base, name, RUN))

    def _not_entered(self, name: bytes, chain: frozenset[tuple[int, int]]) -> Entry:
        held = os.stat(os.path.join(self._base, name))
        if (held.st_dev, held.st_ino) in chain:
            return Entry(name + b"/", "", "a link in a circle", skip=True)
        told = "the output of another batch-predict" if self._is_output(name) else "a hidden folder"
        return Entry(name + b"/", "", told, skip=True)


class ListedFiles(LocalFiles):
    """Files that are named one by one: by a list file or a glob.

    Args:
        root: the folder that all names lie below.
        out: the output folder, whose files are left out.
        given: how to name the source to people.
        found: gives the absolute paths anew at each call, and why one cannot be read.
    """

    def __init__(self, root: Path, out: Path, given: str, found: Callable[[], Iterator[Found]]) -> None:
        super().__init__(root, out)
        self._given, self._found = given, found

    @property
    def identity(self) -> str:
        """The list or pattern as it was given."""
        return shown(os.fsencode(self._given))

    def entries(self) -> Iterator[Entry]:
        """The named files; a name that stands twice is taken once by the plan."""
        for path, problem in self._found():
            name = os.path.relpath(path, self._base)
            if (os.path.realpath(path) + b"/").startswith(self._out + b"/"):
                continue
            entry = Entry(name + b"/", "", problem) if problem else self._entry(name)
            yield entry if entry is not None else Entry(name, "", "is a folder, not an image")


def _named(paths: Iterator[bytes]) -> Iterator[Found]:
    return ((path, "") for path in paths)


def _lines(file: Path) -> Iterator[bytes]:
    """Absolute paths of a list file: one a line, or ended by NUL as `find -print0` writes them."""
    folder = os.fsencode(file.parent.resolve())
    with file.open("rb") as content:
        start = content.read(1 << 16)
        zero = b"\0" in start
        content.seek(len(BOM_UTF8) if start.startswith(BOM_UTF8) else 0)
        rest = b""
        while block := content.read(1 << 16):
            *whole, rest = (rest + block).split(b"\0" if zero else b"\n")
            yield from _absolute(whole, folder, zero)
        yield from _absolute([rest], folder, zero)


def _absolute(lines: list[bytes], folder: bytes, zero: bool) -> Iterator[bytes]:
    for line in lines:
        name = line if zero else line.rstrip(b"\r")
        if name:
            yield os.path.normpath(os.path.join(folder, name))


def _common_root(file: Path) -> Path:
    """The folder below which every path of a list lies."""
    common: bytes | None = None
    for path in _lines(file):
        if (scheme := re.search(rb"/([a-z][a-z0-9+]*):/", path)) and not os.path.lexists(path):
            raise DataError(
                f"list {file} names a URL of {scheme[1].decode()}://; a list names files of this machine, a URL is given"
                " as SOURCE itself"
            )
        folder = os.path.dirname(path)
        common = folder if common is None else os.path.commonpath([common, folder])
    if common is None:
        raise DataError(f"list {file} names no file")
    return Path(os.fsdecode(common))


def open_source(given: str, out: Path) -> Source:
    """The source that `SOURCE` means.

    Raises:
        ConfigError: it lies inside the output folder.
        DataError: it does not exist or cannot be read, or its protocol's package is not installed.
    """
    try:
        return _open(given, out)
    except OSError as error:
        raise DataError(f"{given} cannot be read: {error.strerror or error}") from error


def _open(given: str, out: Path) -> Source:
    if "://" in given:
        from serving.batch.remote import RemoteFiles

        return RemoteFiles(given)
    path = Path(given)
    if path.is_dir():
        if path.resolve().is_relative_to(out.resolve()):
            raise ConfigError(f"{given} lies inside the output folder {out}; name another folder with --out")
        os.scandir(
            path
        ).close()  # of a folder inside that cannot be read, all else is answered; of the source itself, nothing
        return LocalFiles(path, out)
    if path.is_file():
        return _file_source(path, out)
    if glob.has_magic(given):
        root, parts = divided(given)
        return ListedFiles(root, out, f"glob {given}", lambda: matching(os.fsencode(root), parts))
    if path.exists():
        raise DataError(f"{given} is a pipe or a device; a list is read more than once, so write it into a file")
    raise DataError(f"{given} does not exist; give a folder, a glob in quotes, a list file or an fsspec URL")


def _file_source(path: Path, out: Path) -> Source:
    from serving.batch.kinds import looks_like_image

    with path.open("rb") as file:
        head = file.read(64)
    if looks_like_image(os.fsencode(path.name), head):
        folder = path.parent.resolve()
        only = os.path.join(os.fsencode(folder), os.fsencode(path.name))  # a link keeps its own name
        return ListedFiles(folder, out, f"image {os.fsdecode(only)}", lambda: _named(iter([only])))
    return ListedFiles(_common_root(path), out, f"list {path.resolve()}", lambda: _named(_lines(path)))
