"""What tells one data set from another: names, sizes of files and labels of its images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.records import Boxes, FileImage, Record


def facts(record: Record) -> Iterator[str | bytes]:
    """An image's name and file size, and each of its labels; paths as the data set was given them."""
    yield repr((record.image.name, sorted(record.labels)))
    if isinstance(record.image, FileImage):
        yield repr(_bytes(record.image.path))
    for _, label in sorted(record.labels.items()):
        if isinstance(label, Boxes):
            yield label.xyxy.tobytes() + label.classes.tobytes()
            continue
        yield repr(label)
        path = getattr(label, "path", None)
        if isinstance(path, Path):
            yield repr(_bytes(path))


def _bytes(path: Path) -> int | None:
    """A file's size; None where it is gone."""
    try:
        return path.stat().st_size
    except OSError:
        return None
