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
        bare = []
        for path in images:
            label = label_file(path)
            if not label.is_file():
                bare.append(path)
            found = _record(path, label, split, layout.listing, problems)
            if found is None:
                continue
            record, polygons = found
            if polygons is not None:
                shapes[len(records)] = polygons
            records.append(record)
        problems += _without_labels(bare, len(images), split, file)
    problems += _orphans(root, records)
    if not records:
        raise DataError(f"{file}: `train`, `val` and `test` name no folder with images; paths are relative to {root}")
    spaces = {"boxes": LabelSpace("boxes", layout.listing.names)}
    if any(shapes.values()):
        spaces["mask"] = LabelSpace("mask", ("background", *layout.listing.names))
        for at, polygons in shapes.items():
            records[at] = replace(records[at], labels={**records[at].labels, "mask": ShapeMask(polygons)})
    unnamed = frozenset(spaces) if layout.listing.made_up else frozenset()
    return SourceData("yolo", spaces, records, problems + layout.problems, unnamed)


def _without_labels(bare: list[Path], images: int, split: str, file: Path) -> list[Problem]:
    if bare and len(bare) == images:
        message = f"none of the {images} images has a label file, e.g. {label_file(bare[0])}"
        return [Problem("error" if split == "train" else "warning", "no label files", str(file), message)]
    return [
        Problem("warning", "image without label", str(path), f"no {label_file(path)}: taken for an image of nothing")
        for path in bare
    ]


def _orphans(root: Path, records: list[Record]) -> list[Problem]:
    """Label files below folders `labels` whose image is not there."""
    images = [*images_under(root), *(record.image.path for record in records if isinstance(record.image, FileImage))]
    expected = {label_file(path) for path in images}
    folders = {path.parent for path in expected if "labels" in path.parent.parts}
    return [
        Problem("error", "label without image", str(file), "no image of this name: left out")
        for folder in sorted(folders)
        for file in sorted(folder.glob("*.txt"))
        if file not in expected and file.name != "classes.txt"
    ]


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
