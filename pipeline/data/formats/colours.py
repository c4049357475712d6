"""The class list of masks: `classes.txt` and the like, with names alone, or with a pixel value or a colour each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pipeline.data.formats.files import read_text
from pipeline.errors import DataError

LISTS = ("classes.txt", "label_colors.txt", "labelmap.txt", "class_dict.csv", "colors.txt")
"""File names that are looked for in the data set's folder and in that of the masks."""

Value = int | tuple[int, int, int]
Listing = list[tuple[str, Value | None]]
"""Class names in order, each with its pixel value, its RGB colour, or None."""


def find_list(*folders: Path) -> Path | None:
    """The first class list in the folders, None when there is none."""
    return next((folder / name for folder in folders for name in LISTS if (folder / name).is_file()), None)


def read_list(file: Path) -> Listing:
    """A class list; lines are `name`, `value name`, `name r g b` or `r g b name`, separated by blanks, commas or colons.

    Raises:
        DataError: an empty list, a line that cannot be read, or lines of several kinds.
    """
    lines = [(i, line.strip()) for i, line in enumerate(read_text(file).splitlines(), 1)]
    rows = [(i, line) for i, line in lines if line and not line.startswith("#")]
    if rows and re.sub(r"\s", "", rows[0][1].lower()) in {"name,r,g,b", "r,g,b,name", "class,r,g,b", "value,name"}:
        rows = rows[1:]
    if not rows:
        raise DataError(
            f"{file}: no class in it; give one name a line, a colour r g b behind it where masks are colours"
        )
    for parse in (_coloured, _numbered):
        found = [parse(line) for _, line in rows]
        known = [entry for entry in found if entry is not None]
        if len(known) == len(rows):
            return _distinct(known, file)
        if parse is _coloured and len(known) > len(rows) / 2:
            number, line = next(row for row, entry in zip(rows, found, strict=True) if entry is None)
            raise DataError(f"{file}:{number}: {line!r} has no colour of three numbers from 0 to 255")
    return _distinct([(line, None) for _, line in rows], file)


def _coloured(line: str) -> tuple[str, Value | None] | None:
    tokens = [token for token in re.split(r"[\s,:;]+", line) if token]
    for numbers, name in ((tokens[-3:], tokens[:-3]), (tokens[:3], tokens[3:])):
        if name and len(numbers) == 3 and all(token.isdecimal() and int(token) <= 255 for token in numbers):
            return " ".join(name), (int(numbers[0]), int(numbers[1]), int(numbers[2]))
    return None


def _numbered(line: str) -> tuple[str, Value | None] | None:
    match = re.fullmatch(r"(\d{1,3})[\s,:;]+(\S.*)", line)
    return (match[2].strip(), int(match[1])) if match and int(match[1]) <= 255 else None


def _distinct(rows: Listing, file: Path) -> Listing:
    names: list[Any] = [name for name, _ in rows]
    values: list[Any] = [value for _, value in rows if value is not None]
    for what, items in (("name", names), ("value", values)):
        twice = next((item for item in items if items.count(item) > 1), None)
        if twice is not None:
            raise DataError(f"{file}: the {what} {twice!r} stands there twice")
    return rows
