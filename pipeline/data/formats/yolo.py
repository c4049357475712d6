"""YOLO txt with data.yaml, in Ultralytics' layout: labels/ beside images/, one line a box, normalised cx cy w h."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipeline.data.formats.base import Problem, SourceData
from pipeline.data.formats.boxes import safe_boxes
from pipeline.data.formats.files import images_under
from pipeline.errors import DataError, ImageError
from pipeline.imaging.decode import image_size
from pipeline.labels import LabelSpace
from pipeline.records import Boxes, FileImage, Record


def find_yolo(root: Path) -> Path | None:
    """The YAML file that names classes and splits, if there is one."""
    found = [path for pattern in ("data.yaml", "*.yaml", "*.yml") for path in sorted(root.glob(pattern))]
    return next((path for path in found if "names" in path.read_text(errors="replace")), None)


def read_yolo(root: Path) -> SourceData:
    """Records of a YOLO folder; raises DataError for a data.yaml without names or without splits."""
    file = find_yolo(root)
    if file is None:
        raise DataError(f"{root}: no data.yaml with `names`")
    try:
        content: dict[str, Any] = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise DataError(f"{file}: not valid YAML: {error}") from error
    given = content["names"]
    names = tuple(str(given[key]) for key in sorted(given)) if isinstance(given, dict) else tuple(map(str, given))
    problems: list[Problem] = []
    records: list[Record] = []
    for split in ("train", "val", "test"):
        for entry in _entries(content.get(split)):
            for path in _listed(root, content.get("path"), entry, file):
                records += _record(path, split, names, problems)
    if not records:
        raise DataError(f"{file}: `train`, `val` and `test` name no folder with images; paths are relative to {root}")
    return SourceData("yolo", {"boxes": LabelSpace("boxes", names)}, records, problems)


def _entries(value: Any) -> list[str]:
    return [] if not value else [str(v) for v in value] if isinstance(value, list) else [str(value)]


def _listed(root: Path, base: Any, entry: str, file: Path) -> list[Path]:
    """Images of one entry: a folder or a list file, beside data.yaml or under its `path`."""
    # Exports often say '../train/images' and mean a folder beside data.yaml.
    places = [root / entry, root / entry.removeprefix("../"), root / str(base or "") / entry]
    place = next((p for p in places if p.exists()), None)
    if place is None:
        raise DataError(f"{file}: {entry!r} does not exist beside it")
    if place.is_dir():
        return images_under(place)
    return [(root / line.strip()) for line in place.read_text().splitlines() if line.strip()]


def _record(path: Path, split: str, names: tuple[str, ...], problems: list[Problem]) -> list[Record]:
    parts = list(path.parts)
    at = next((i for i in range(len(parts) - 1, -1, -1) if parts[i] == "images"), None)
    label = Path(*parts[:at], "labels", *parts[at + 1 :]) if at is not None else path
    label = label.with_suffix(".txt")
    try:
        height, width = image_size(path)
    except ImageError as error:
        problems.append(Problem("error", "unreadable image", str(path), str(error)))
        return []
    # In this format a missing file means: nothing there.
    lines = label.read_text().splitlines() if label.is_file() else []
    rows, classes = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            kind, *values = (float(value) for value in line.split())
        except ValueError:
            problems.append(Problem("error", "broken label", f"{label}:{number}", f"not numbers: {line!r}"))
            continue
        if not 0 <= kind < len(names):
            problems.append(Problem("error", "unknown class", f"{label}:{number}", f"class {kind:g} of {len(names)}"))
            continue
        xs, ys = _corners(values)
        if not xs:
            problems.append(Problem("error", "broken label", f"{label}:{number}", f"{len(values)} values"))
            continue
        rows.append([min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height])
        classes.append(int(kind))
    boxes: Boxes = safe_boxes(rows, classes, (height, width), str(label), problems)
    return [Record(FileImage(path), {"boxes": boxes}, split, None, (height, width))]


def _corners(values: list[float]) -> tuple[list[float], list[float]]:
    """Normalised x and y of a box (cx, cy, w, h) or of a polygon's points."""
    if len(values) == 4:
        cx, cy, w, h = values
        return [cx - w / 2, cx + w / 2], [cy - h / 2, cy + h / 2]
    if len(values) >= 6 and len(values) % 2 == 0:
        return values[0::2], values[1::2]
    return [], []
