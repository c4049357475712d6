"""COCO JSON: boxes, and polygons or RLE as a semantic mask; one file, or one per split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.data.formats.base import Problem, SourceData
from pipeline.data.formats.boxes import safe_boxes
from pipeline.data.formats.files import images_under, read_json, split_in_name
from pipeline.errors import DataError
from pipeline.imaging.masks import ShapeMask
from pipeline.labels import LabelSpace
from pipeline.records import FieldLabel, FileImage, Record


def find_coco(root: Path) -> list[Path]:
    """JSON files of COCO's layout in the folder or its `annotations`."""
    found = [path for folder in (root, root / "annotations") for path in sorted(folder.glob("*.json"))]
    return [
        path
        for path in found
        if b'"images"' in path.read_bytes()[:100_000_000] and b'"categories"' in path.read_bytes()
    ]


def read_coco(root: Path) -> SourceData:
    """Records of a folder with COCO JSON files; raises DataError for broken files or unlike categories."""
    files = find_coco(root)
    if not files:
        raise DataError(f"{root}: no COCO JSON (with `images` and `categories`) here or in `annotations`")
    by_name = {path.name: path for path in images_under(root)}
    problems: list[Problem] = []
    records: list[Record] = []
    names: tuple[str, ...] | None = None
    has_masks = False
    for file in files:
        content = read_json(file)
        categories = sorted(content["categories"], key=lambda category: int(category["id"]))
        found = tuple(str(category["name"]) for category in categories)
        if names is not None and found != names:
            raise DataError(f"{file}: its categories {list(found)} differ from the other files' {list(names)}")
        names = found
        index = {int(category["id"]): i for i, category in enumerate(categories)}
        rows: dict[int, list[dict[str, Any]]] = {}
        for row in content.get("annotations", []):
            rows.setdefault(int(row["image_id"]), []).append(row)
        split = split_in_name(Path(file.name)) if len(files) > 1 else None
        for entry in content["images"]:
            path = root / entry["file_name"]
            if not path.is_file():
                path = by_name.get(Path(entry["file_name"]).name, path)
            if not path.is_file():
                problems.append(
                    Problem("error", "missing image", str(file), f"{entry['file_name']} is not in the folder")
                )
                continue
            mine = rows.get(int(entry["id"]), [])
            record = _record(path, entry, mine, index, split, file, problems)
            has_masks |= "mask" in record.labels
            records.append(record)
    spaces = {"boxes": LabelSpace("boxes", names or ())}
    if has_masks:
        spaces["mask"] = LabelSpace("mask", ("background", *(names or ())))
    return SourceData("coco", spaces, records, problems)


def _record(
    path: Path,
    entry: dict[str, Any],
    rows: list[dict[str, Any]],
    index: dict[int, int],
    split: str | None,
    file: Path,
    problems: list[Problem],
) -> Record:
    size = (int(entry["height"]), int(entry["width"])) if "height" in entry and "width" in entry else None
    known = [row for row in rows if int(row["category_id"]) in index]
    if len(known) < len(rows):
        where, extra = f"{file}: {path.name}", len(rows) - len(known)
        problems.append(Problem("error", "unknown class", where, f"{extra} annotations of categories not in the list"))
    xyxy = [[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in known)]
    classes = [index[int(row["category_id"])] for row in known]
    crowd = [bool(row.get("iscrowd", 0)) for row in known]
    labels: dict[str, FieldLabel] = {"boxes": safe_boxes(xyxy, classes, size, f"{file}: {path.name}", problems, crowd)}
    shapes = tuple(
        (i + 1, row["segmentation"]) for i, row in zip(classes, known, strict=True) if row.get("segmentation")
    )
    if shapes:
        labels["mask"] = ShapeMask(shapes)
    return Record(FileImage(path), labels, split, None, size)
