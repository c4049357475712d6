"""YOLO txt with data.yaml, in Ultralytics' layout: labels/ beside images/, one line a box (or polygon), normalised."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.data.formats.base import Problem, SourceData
from pipeline.data.formats.files import images_under, read_text
from pipeline.data.formats.yolo_rows import Listing, read_rows
from pipeline.data.formats.yolo_yaml import find_yolo, read_layout
from pipeline.errors import DataError, ImageError
from pipeline.imaging.decode import image_size
from pipeline.imaging.masks import ShapeMask
from pipeline.labels import LabelSpace
from pipeline.records import FileImage, Record

__all__ = ["find_yolo", "read_yolo"]


def read_yolo(root: Path) -> SourceData:
    """Records of a YOLO folder; lines with polygons give boxes and, where an image has nothing else, a mask.

    Raises:
        DataError: a data.yaml without classes or splits, or one that names folders that are not there.
    """
    file = find_yolo(root)
    if file is None:
        raise DataError(f"{root}: no data.yaml with `names`, and no `labels` beside `images`")
    layout = read_layout(file, root)
    problems: list[Problem] = []
    records: list[Record] = []
    shapes: dict[int, tuple[tuple[int, Any], ...]] = {}
    for split, places in layout.splits.items():
        images = list(dict.fromkeys(path for place in places for path in _listed(place, layout.base)))
        without = 0
        for path in images:
            label = label_file(path)
            without += not label.is_file()
            found = _record(path, label, split, layout.listing, problems)
            if found is None:
                continue
            record, polygons = found
            if polygons is not None:
                shapes[len(records)] = polygons
            records.append(record)
        if images and without == len(images):
            message = f"none of the {without} images has a label file, e.g. {label_file(images[0])}"
            problems.append(Problem("error" if split == "train" else "warning", "no label files", str(file), message))
    if not records:
        raise DataError(f"{file}: `train`, `val` and `test` name no folder with images; paths are relative to {root}")
    spaces = {"boxes": LabelSpace("boxes", layout.listing.names)}
    if any(shapes.values()):
        spaces["mask"] = LabelSpace("mask", ("background", *layout.listing.names))
        for at, polygons in shapes.items():
            records[at] = replace(records[at], labels={**records[at].labels, "mask": ShapeMask(polygons)})
    unnamed = frozenset(spaces) if layout.listing.made_up else frozenset()
    return SourceData("yolo", spaces, records, problems + layout.problems, unnamed)


def label_file(image: Path) -> Path:
    """Where an image's label file stands: `images` in its path replaced by `labels`, else beside it."""
    parts = image.parts
    at = next((i for i in range(len(parts) - 2, -1, -1) if parts[i] == "images"), None)
    beside = image.with_suffix(".txt")
    if at is None:
        return beside
    path = Path(*parts[:at], "labels", *parts[at + 1 :]).with_suffix(".txt")
    return beside if not path.is_file() and beside.is_file() else path


def _listed(place: Path, base: Path) -> list[Path]:
    """Images of a folder, or of a text file with a path a line, relative to it, to the data set, or absolute."""
    if place.is_dir():
        return images_under(place)
    out = []
    for line in read_text(place).splitlines():
        name = line.strip()
        if name:
            # The file itself is told where none of the places holds it.
            options = [Path(os.path.normpath(folder / name)) for folder in (place.parent, base)]
            out.append(next((path for path in options if path.is_file()), options[0]))
    return out


def _record(
    path: Path, label: Path, split: str, listing: Listing, problems: list[Problem]
) -> tuple[Record, tuple[tuple[int, Any], ...] | None] | None:
    """An image's Record and its polygons in pixels (None where a line is no polygon); None without a readable image."""
    if not path.is_file():
        message = f"listed for {split}, but not there: left out"
        problems.append(Problem("error", "label without image", str(path), message))
        return None
    try:
        size = image_size(path)
    except ImageError as error:
        problems.append(Problem("error", "unreadable image", str(path), f"{error}: left out"))
        return None
    # In this format a missing or empty file means: nothing there.
    boxes, polygons = read_rows(label if label.is_file() else None, size, listing, problems)
    return Record(FileImage(path), {"boxes": boxes}, split or None, None, size), polygons
