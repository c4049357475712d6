"""COCO JSON: boxes, and polygons or RLE as a semantic mask; one file, or one per split."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.data.formats.base import Problem, SourceData
from pipeline.data.formats.boxes import safe_boxes
from pipeline.data.formats.coco_shapes import corners, wrong_shape
from pipeline.data.formats.files import SPLITS, Pictures, header_size, read_json, split_in_name
from pipeline.errors import DataError
from pipeline.imaging.masks import ShapeMask
from pipeline.labels import LabelSpace
from pipeline.records import FieldLabel, FileImage, Record


def find_coco(root: Path) -> list[Path]:
    """JSON files of COCO's layout in the folder, its `annotations`, or its split folders.

    Where some are called `instances…`, those alone: captions and key points stand beside them in COCO itself.
    """
    splits = [path for path in sorted(root.iterdir()) if path.is_dir() and path.name.lower() in SPLITS]
    files = [path for folder in (root, root / "annotations", *splits) for path in sorted(folder.glob("*.json"))]
    found = [path for path in files if _is_coco(path.read_bytes())]
    return [path for path in found if path.name.startswith("instances")] or found


def _is_coco(data: bytes) -> bool:
    return b'"images"' in data and (b'"categories"' in data or b'"annotations"' in data)


@dataclass
class _Reading:
    """What is collected over the files: class names, Records, problems."""

    root: Path
    pictures: Pictures
    names: list[str] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def read_coco(root: Path) -> SourceData:
    """Records of a folder with COCO JSON files; raises DataError for broken files."""
    files = find_coco(root)
    if not files:
        raise DataError(f"{root}: no COCO JSON (with `images` and `categories`) here or in `annotations`")
    reading = _Reading(root, Pictures(root))
    for file in files:
        split = split_in_name(file.relative_to(root)) if len(files) > 1 else None
        _read_file(file, split, reading)
    return _read(reading)


def read_coco_file(file: Path, images: Path) -> SourceData:
    """Records of one COCO JSON file whose images lie below a folder; raises DataError for a broken file."""
    reading = _Reading(images, Pictures(images))
    _read_file(file, None, reading)
    return _read(reading)


def _read(reading: _Reading) -> SourceData:
    spaces = {"boxes": LabelSpace("boxes", tuple(reading.names))}
    if any("mask" in record.labels for record in reading.records):
        spaces["mask"] = LabelSpace("mask", ("background", *reading.names))
    return SourceData("coco", spaces, reading.records, reading.problems)


def _read_file(file: Path, split: str | None, reading: _Reading) -> None:
    content = read_json(file)
    entries, categories, annotations = (_list_of(content, key, file) for key in ("images", "categories", "annotations"))
    if entries is None or categories is None or annotations is None:
        # COCO's own test split has images without annotations: not labelled, which is not the same as empty.
        reading.problems.append(Problem("info", "no labels", str(file), "no categories or annotations in it: left out"))
        return
    index = _class_indices(categories, file, reading.names)
    _refuse_double_ids(entries, file)
    rows: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for number, row in enumerate(annotations):
        rows.setdefault(str(row.get("image_id")), []).append((number, row))
    near, records = _near(file, reading.root, split), list[Record]()
    for number, entry in enumerate(entries):
        place = f"{file}: images[{number}]"
        if not isinstance(entry.get("file_name"), str) or "id" not in entry:
            raise DataError(f"{place} has no `file_name` or no `id`")
        mine = rows.pop(str(entry["id"]), [])
        path = reading.pictures.named(entry["file_name"], place, reading.problems, near, split)
        if path is not None:
            records.append(_record(path, entry, mine, index, split, file, reading.problems))
    if not any(_painted(record) for record in records):
        # No outline in the whole file: it labels boxes alone.
        records = [record.only({"boxes"}) for record in records]
    reading.records += records
    if rows:
        extra = sum(map(len, rows.values()))
        message = f"{extra} annotations of images that are not listed: left out"
        reading.problems.append(Problem("warning", "label of no image", str(file), message))


def _painted(record: Record) -> bool:
    mask = record.labels.get("mask")
    return isinstance(mask, ShapeMask) and bool(mask.shapes)


def _refuse_double_ids(entries: list[dict[str, Any]], file: Path) -> None:
    """Raises DataError where two images have one id: whose the annotations are cannot be known."""
    first: dict[str, int] = {}
    for number, entry in enumerate(entries):
        if (known := first.setdefault(str(entry.get("id")), number)) != number and "id" in entry:
            raise DataError(f"{file}: images[{known}] and images[{number}] have the same `id` {entry['id']!r}")


def _near(file: Path, root: Path, split: str | None) -> list[Path]:
    """Folders that a file's image names may be relative to."""
    folders = [file.parent, root / "images"]
    if split is not None:
        base = [folder for folder in (root, root / "images") if folder.is_dir()]
        folders += [c for b in base for c in sorted(b.iterdir()) if split_in_name(Path(c.name)) == split and c.is_dir()]
    return folders


def _list_of(content: Any, key: str, file: Path) -> list[dict[str, Any]] | None:
    """A top-level list of objects, None where it is not there; raises DataError for anything else."""
    if not isinstance(content, dict):
        raise DataError(f"{file}: not COCO JSON: an object with `images`, `annotations` and `categories` is expected")
    value = content.get(key)
    if value is None:
        return None
    if not isinstance(value, list):
        raise DataError(f"{file}: `{key}` must be a list, not {type(value).__name__}")
    wrong = next((i for i, item in enumerate(value) if not isinstance(item, dict)), None)
    if wrong is not None:
        raise DataError(f"{file}: {key}[{wrong}] must be an object, not {value[wrong]!r}")
    return value


def _class_indices(categories: list[dict[str, Any]], file: Path, names: list[str]) -> dict[str, int]:
    """Class index by category id, which need not be contiguous; classes of one name in several files are one."""
    for number, category in enumerate(categories):
        if "id" not in category or "name" not in category:
            raise DataError(f"{file}: categories[{number}] has no `id` or no `name`")
    own = [str(category["name"]) for category in categories]
    if twice := {name for name in own if own.count(name) > 1}:
        raise DataError(f"{file}: several categories have the name {', '.join(sorted(twice))}")
    ordered = sorted(categories, key=lambda c: (0, c["id"], "") if isinstance(c["id"], int) else (1, 0, str(c["id"])))
    names += [str(c["name"]) for c in ordered if str(c["name"]) not in names]
    return {str(category["id"]): names.index(str(category["name"])) for category in ordered}


def _record(
    path: Path,
    entry: dict[str, Any],
    rows: list[tuple[int, dict[str, Any]]],
    index: dict[str, int],
    split: str | None,
    file: Path,
    problems: list[Problem],
) -> Record:
    size = _size(entry) or header_size(path)
    xyxy, classes, crowd, places = [], [], [], []
    shapes: list[tuple[int, Any]] = []
    for number, row in rows:
        place = f"{file}: annotations[{number}]"
        kind = index.get(str(row.get("category_id")))
        if kind is None:
            message = f"category {row.get('category_id')!r} of {path.name} is not in the list"
            problems.append(Problem("error", "unknown class", place, message))
            continue
        shape = row.get("segmentation") or None
        if shape is not None and (wrong := wrong_shape(shape, size)):
            problems.append(Problem("error", "broken label", place, f"segmentation of {path.name}: {wrong}"))
            continue
        box = corners(row.get("bbox"), shape)
        if box is None:
            problems.append(Problem("error", "broken label", place, f"bbox {row.get('bbox')!r} is not four numbers"))
            continue
        xyxy.append(box)
        classes.append(kind)
        crowd.append(bool(row.get("iscrowd", 0)))
        places.append(place)
        if shape is not None:
            shapes.append((kind + 1, shape))
    labels: dict[str, FieldLabel] = {"boxes": safe_boxes(xyxy, classes, size, places, problems, crowd)}
    if len(shapes) == len(xyxy):
        labels["mask"] = ShapeMask(tuple(shapes))
    elif shapes:
        # The others would be painted as background.
        message = f"{len(xyxy) - len(shapes)} of {len(xyxy)} objects of {path.name} have no segmentation: no mask of it"
        problems.append(Problem("warning", "incomplete mask", f"{file}: {entry['file_name']}", message))
    return Record(FileImage(path), labels, split, None, size)


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
    try:
        height, width = int(entry["height"]), int(entry["width"])
    except (KeyError, TypeError, ValueError):
        return None
    return (height, width) if height > 0 and width > 0 else None
