"""The lines of a YOLO label file: a class and a box or a polygon in fractions of the image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.formats.base import Problem
from pipeline.data.formats.boxes import safe_boxes
from pipeline.data.formats.files import read_text
from pipeline.errors import DataError
from pipeline.records import Boxes


@dataclass(frozen=True, slots=True)
class Listing:
    """The classes of a data.yaml: names in order, the class index of each number, whether names are made up.

    `points` is the number of values of key points behind each box, 0 where there are none.
    """

    names: tuple[str, ...]
    index: dict[int, int]
    made_up: bool = False
    points: int = 0


def read_rows(
    file: Path | None, size: tuple[int, int], listing: Listing, problems: list[Problem]
) -> tuple[Boxes, tuple[tuple[int, Any], ...] | None]:
    """Boxes in pixels, and polygons as (mask class, rings) where every line is one, else None.

    Args:
        file: the label file; None where the image has none: nothing there.
        size: the image's (height, width).
        listing: the classes.
        problems: told of every line that cannot be used.
    """
    height, width = size
    rows, classes, places = [], [], []
    shapes: list[tuple[int, Any]] = []
    try:
        lines = read_text(file).splitlines() if file is not None else []
    except DataError as error:
        problems.append(Problem("error", "broken label", str(file), str(error)))
        lines = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{file}:{number}"
        try:
            kind, values = _numbers(line)
            xs, ys = _corners(values, listing.points)
        except ValueError as error:
            problems.append(Problem("error", "broken label", place, f"{error}: {line.strip()[:60]!r}"))
            continue
        at = listing.index.get(int(kind)) if kind.is_integer() else None
        if at is None:
            message = f"class {kind:g} is not in the list of {len(listing.names)}"
            problems.append(Problem("error", "unknown class", place, message))
            continue
        rows.append([min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height])
        classes.append(at)
        places.append(place)
        if len(values) > 4 and not listing.points:
            ring = [v for x, y in zip(xs, ys, strict=True) for v in (x * width, y * height)]
            shapes.append((at + 1, [ring]))
    boxes = safe_boxes(rows, classes, size, places, problems)
    return boxes, tuple(shapes) if len(shapes) == len(rows) else None


def _numbers(line: str) -> tuple[float, list[float]]:
    try:
        kind, *values = (float(value) for value in line.split())
    except ValueError:
        raise ValueError("not numbers") from None
    if not all(map(math.isfinite, (kind, *values))):
        raise ValueError("not finite numbers")
    return kind, values


def _corners(values: list[float], points: int) -> tuple[list[float], list[float]]:
    """Normalised x and y of a box (cx, cy, w, h) or of a polygon's points; raises ValueError."""
    if points and len(values) == 4 + points:
        values = values[:4]
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise ValueError(f"{len(values)} values behind the class, where 4 (a box) or pairs (a polygon) are expected")
    if max(map(abs, values)) > 2:
        raise ValueError("values above 2, where fractions of the image from 0 to 1 are expected")
    if len(values) == 4:
        cx, cy, w, h = values
        return [cx - w / 2, cx + w / 2], [cy - h / 2, cy + h / 2]
    return values[0::2], values[1::2]
