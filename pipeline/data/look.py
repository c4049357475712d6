"""One image looked at closely: decoded, hashed, its labels and masks held against it; several at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from pipeline.data.formats.base import Problem
from pipeline.data.formats.masks import mask_values
from pipeline.data.intake import size_problem
from pipeline.errors import DataError, ImageError
from pipeline.hardware import cpu_limit
from pipeline.imaging.decode import FORMATS, read_image
from pipeline.imaging.masks import ColourMask, IndexMask
from pipeline.labels import IGNORE_INDEX
from pipeline.records import Boxes, FieldLabel, FileImage, Record


@dataclass(slots=True)
class Look:
    """What was seen.

    Attributes:
        size: full upright (height, width); None where the image cannot be decoded.
        digest: of the file's bytes.
        orientation: EXIF's, 1 to 8.
        classes: class indices that occur, by mask field.
        problems: everything wrong with this image and its labels.
    """

    size: tuple[int, int] | None = None
    digest: str = ""
    orientation: int = 1
    classes: dict[str, list[int]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def turned(self) -> str:
        """A remark for messages where the picture is stored turned, else nothing."""
        return f", EXIF-rotated (orientation {self.orientation}); it is turned upright" if self.orientation > 1 else ""


def look_at(records: list[Record], workers: int | None = None) -> Iterator[Look]:
    """A Look per Record, in their order, with progress on stderr; `workers` at a time, None takes one per core."""
    # Decoders and hashes let other threads run, and threads need no start.
    with ThreadPoolExecutor(workers or cpu_limit()) as pool:
        yield from _tracked(pool.map(look, records), len(records))


def _tracked(looks: Iterable[Look], total: int) -> Iterator[Look]:
    return iter(track(looks, "reading images", total=total, console=Console(stderr=True), transient=True))


def look(record: Record) -> Look:
    """Decodes one image and holds its labels against it."""
    assert isinstance(record.image, FileImage)
    path, name = record.image.path, record.image.name
    seen = Look()
    try:
        seen.size = read_image(path)[1]
    except ImageError as error:
        seen.problems.append(Problem("error", "unreadable image", name, str(error)))
        return seen
    seen.digest, seen.orientation = hashlib.sha256(path.read_bytes()).hexdigest(), _orientation(path)
    if (problem := size_problem(record, seen.size, seen.orientation)) is not None:
        seen.problems.append(problem)
    elif seen.orientation > 1:
        seen.problems.append(Problem("info", "EXIF-rotated", name, f"orientation {seen.orientation}: turned upright"))
    for field_name, label in record.labels.items():
        if not isinstance(label, (int, tuple, Boxes)):
            _look_at_mask(field_name, label, record, seen)
    return seen


def _orientation(path: Path) -> int:
    """EXIF orientation of a readable image, 1 where there is none."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            value = image.getexif().get(0x0112, 1)
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, Image.DecompressionBombError):
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _look_at_mask(field_name: str, label: FieldLabel, record: Record, seen: Look) -> None:
    assert seen.size is not None
    assert not isinstance(label, (int, tuple, Boxes))
    name = record.image.name
    try:
        mask = label.read(seen.size)
        unknown = _unknown_values(label)
    except DataError as error:
        seen.problems.append(Problem("error", "bad mask", name, str(error)))
        return
    present = np.flatnonzero(np.bincount(mask.reshape(-1), minlength=256)).tolist()
    seen.classes[field_name] = [index for index in present if index != IGNORE_INDEX]
    if unknown:
        message = (
            f"{', '.join(map(str, unknown[:5]))}{', …' if len(unknown) > 5 else ''} of no class: ignored in training"
        )
        seen.problems.append(Problem("error", "unknown mask value", name, message))
    if present == [IGNORE_INDEX]:
        message = "every pixel of its mask is ignored or of no class"
        seen.problems.append(Problem("warning", "empty mask", name, message))


def _unknown_values(label: object) -> list[object]:
    """Pixel values or colours of a mask file that belong to no class and are not the ignored one."""
    if isinstance(label, IndexMask):
        return sorted(mask_values(label.path) - {*label.values, IGNORE_INDEX}, key=str)
    if isinstance(label, ColourMask):
        found = {(v, v, v) if isinstance(v, int) else v for v in mask_values(label.path)}
        return sorted(found - set(label.colours), key=str)
    return []
