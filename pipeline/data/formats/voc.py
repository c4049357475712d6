"""Pascal VOC: an XML per image in Annotations or beside the images, splits in ImageSets/Main."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

from pipeline.data.formats.base import Problem, SourceData
from pipeline.data.formats.boxes import safe_boxes
from pipeline.data.formats.files import Pictures, folder_split, header_size, read_text
from pipeline.errors import DataError
from pipeline.labels import LabelSpace
from pipeline.records import FileImage, Record

_SIDES = ("xmin", "ymin", "xmax", "ymax")


def find_voc(root: Path) -> list[Path]:
    """XML annotations: in `Annotations` (or `annotations/xmls`), else beside the images or one folder below."""
    for folder in (root / "Annotations", root / "annotations", root / "annotations" / "xmls"):
        if found := sorted(path for path in folder.glob("*.xml") if not path.name.startswith(".")):
            return found
    beside = sorted([*root.glob("*.xml"), *root.glob("*/*.xml")])
    return [path for path in beside if b"<annotation" in path.read_bytes()[:2000]]


def read_voc(root: Path) -> SourceData:
    """Records of a VOC folder; raises DataError when there is no XML."""
    files = find_voc(root)
    if not files:
        raise DataError(f"{root}: no XML annotations in {root / 'Annotations'} or beside the images")
    problems: list[Problem] = []
    pictures = Pictures(root)
    splits = read_image_sets(root, "Main", problems)
    parsed = [(file, found) for file in files if (found := _parse(file, problems)) is not None]
    names = tuple(sorted({name for _, found in parsed for name, _, _, _ in found.objects}))
    records = []
    for file, found in parsed:
        split = splits.get(file.stem) if splits else folder_split(file, root)
        try:
            path = pictures.find(file.stem, split=split) or pictures.find(found.filename, split=split)
        except DataError as error:
            problems.append(Problem("error", "ambiguous image", str(file), str(error)))
            continue
        if path is None:
            problems.append(Problem("error", "label without image", str(file), "no image of this name: left out"))
            continue
        if splits and split is None:
            message = f"in no list of ImageSets/Main: left out, with its labels in {file.name}"
            problems.append(Problem("info", "not in a split", str(path), message))
            continue
        size = found.size or header_size(path)
        boxes = safe_boxes(
            [row for _, row, _, _ in found.objects],
            [names.index(name) for name, _, _, _ in found.objects],
            size,
            [f"{file}:{line}" for _, _, _, line in found.objects],
            problems,
            [difficult for _, _, difficult, _ in found.objects],
        )
        records.append(Record(FileImage(path), {"boxes": boxes}, split, None, size))
    return SourceData("voc", {"boxes": LabelSpace("boxes", names)}, records, problems)


def read_image_sets(root: Path, kind: str, problems: list[Problem]) -> dict[str, str]:
    """Split by image stem, from ImageSets/KIND; `trainval` counts where there is no `train`."""
    folder = root / "ImageSets" / kind
    train = "train" if (folder / "train.txt").is_file() else "trainval"
    out: dict[str, str] = {}
    for name, split in ((train, "train"), ("val", "val"), ("test", "test")):
        listing = folder / f"{name}.txt"
        if not listing.is_file():
            continue
        for number, line in enumerate(read_text(listing).splitlines(), 1):
            if not line.strip():
                continue
            stem = line.split()[0]
            if out.setdefault(stem, split) != split:
                message = f"{stem} stands in {out[stem]} and in {split}"
                problems.append(Problem("error", "in two splits", f"{listing}:{number}", message))
    return out


class _Annotation:
    """One XML: `size` (height, width) or None, `filename`, and objects as (class, xyxy, difficult, line)."""

    def __init__(self, size: tuple[int, int] | None, filename: str) -> None:
        self.size, self.filename = size, filename
        self.objects: list[tuple[str, list[float], bool, int]] = []


def _parse(file: Path, problems: list[Problem]) -> _Annotation | None:
    """An XML's content; what is broken is told, and None when all of it is."""
    data = file.read_bytes()
    # Entities are refused: they could expand without end. Zero bytes would hide them in UTF-16.
    if b"<!ENTITY" in data.replace(b"\0", b""):
        problems.append(Problem("error", "broken label", str(file), "XML entities are not allowed"))
        return None
    try:
        tree = ET.fromstring(data)  # noqa: S314  # entities are refused above
    except (ET.ParseError, ValueError, LookupError) as error:
        line = getattr(error, "position", (1, 0))[0]
        problems.append(Problem("error", "broken label", f"{file}:{line}", f"not readable as XML: {error}"))
        return None
    found = _Annotation(_size(tree), (tree.findtext("filename") or "").strip())
    lines = [data[: match.start()].count(b"\n") + 1 for match in re.finditer(rb"<object\b", data)]
    for number, item in enumerate(tree.findall("object")):
        line = lines[number] if number < len(lines) else 1
        name = (item.findtext("name") or "").strip()
        sides = [(item.findtext(f"bndbox/{side}") or "").strip() for side in _SIDES]
        try:
            row = [float(side) for side in sides]
        except ValueError:
            given = ", ".join(f"{side} {value!r}" for side, value in zip(_SIDES, sides, strict=True))
            problems.append(Problem("error", "broken label", f"{file}:{line}", f"not four numbers: {given}"))
            continue
        if not name:
            problems.append(Problem("error", "broken label", f"{file}:{line}", "an <object> has no <name>"))
            continue
        difficult = (item.findtext("difficult") or "0").strip() == "1"
        found.objects.append((name, row, difficult, line))
    return found


def _size(tree: ET.Element) -> tuple[int, int] | None:
    try:
        height, width = (int(float(tree.findtext(f"size/{side}") or 0)) for side in ("height", "width"))
    except (ValueError, OverflowError):
        return None
    return (height, width) if height > 0 and width > 0 else None
