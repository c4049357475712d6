"""Files that a glob names: `*`, `?`, `[...]`, and `**` for any number of folders; links followed, but not in a circle."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Iterator
from pathlib import Path

Found = tuple[bytes, str]
"""An absolute path, and why it cannot be read: empty where it can be tried."""


def divided(pattern: str) -> tuple[Path, list[bytes]]:
    """The folder in front of a pattern's first special character, and the pattern's parts below it."""
    fixed = Path(pattern)
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    return fixed.resolve(), [os.fsencode(part) for part in Path(pattern).parts[len(fixed.parts) :]]


def matching(folder: bytes, parts: list[bytes]) -> Iterator[Found]:
    """Everything below a folder that the parts name, perhaps twice; folders that cannot be read, with the reason.

    As in a folder that is given as the source, `**` leaves hidden folders out.
    """
    return _below(folder, parts, frozenset()) if os.path.isdir(folder) else iter(())


def _below(folder: bytes, parts: list[bytes], above: frozenset[tuple[int, int]]) -> Iterator[Found]:
    first, rest = parts[0], parts[1:]
    deep = first == b"**"
    if deep and rest:
        yield from _below(folder, rest, above)
    inner: list[bytes] = []
    try:
        held = os.stat(folder)
        if (own := (held.st_dev, held.st_ino)) in above:
            return
        with os.scandir(folder) as children:
            for child in children:
                if not deep and not fnmatch.fnmatchcase(child.name, first):
                    continue
                path = os.path.join(folder, child.name)
                if not os.path.isdir(path):
                    if not rest:
                        yield path, ""
                elif not (deep and child.name.startswith(b".")):
                    inner.append(path)
    except OSError as error:
        yield folder, f"the folder cannot be read: {error.strerror or error}"
        return
    below = parts if deep else rest
    for path in inner if below else ():
        yield from _below(path, below, above | {own})
