"""Pascal VOC: an XML per image in Annotations, splits in ImageSets/Main."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

from pipeline.data.formats.base import Problem, SourceData
from pipeline.data.formats.boxes import safe_boxes
from pipeline.data.formats.files import SPLITS, images_under
from pipeline.errors import DataError
from pipeline.labels import LabelSpace
from pipeline.records import FileImage, Record


def read_voc(root: Path) -> SourceData:
    """Records of a VOC folder; raises DataError when there is no XML or one cannot be read."""
    files = sorted((root / "Annotations").glob("*.xml"))
    if not files:
        raise DataError(f"{root}: no XML files in {root / 'Annotations'}")
    pictures = {path.stem: path for path in images_under(root)}
    splits = {
        stem: split
        for name, split in SPLITS.items()
        if (listing := root / "ImageSets" / "Main" / f"{name}.txt").is_file()
        for stem in (line.split()[0] for line in listing.read_text().splitlines() if line.strip())
    }
    problems: list[Problem] = []
    parsed = [(file, _parse(file)) for file in files]
    names = tuple(sorted({_text(item, "name", file) for file, tree in parsed for item in tree.iter("object")}))
    records = []
    for file, tree in parsed:
        path = pictures.get(file.stem)
        if path is None:
            problems.append(Problem("error", "label without image", str(file), "no image of this name"))
            continue
        size = _size(tree)
        items = list(tree.iter("object"))
        rows = [
            [float(_text(item, f"bndbox/{side}", file)) for side in ("xmin", "ymin", "xmax", "ymax")] for item in items
        ]
        classes = [names.index(_text(item, "name", file)) for item in items]
        crowd = [item.findtext("difficult", "0").strip() == "1" for item in items]
        boxes = safe_boxes(rows, classes, size, str(file), problems, crowd)
        split = splits.get(file.stem)
        if splits and split is None:
            problems.append(Problem("info", "not in a split", str(file), "in none of ImageSets/Main: left out"))
            continue
        records.append(Record(FileImage(path), {"boxes": boxes}, split, None, size))
    labelled = {file.stem for file in files}
    problems += [
        Problem("warning", "image without label", str(path), "no XML of this name: left out")
        for stem, path in pictures.items()
        if stem not in labelled and path.parent.name == "JPEGImages"
    ]
    return SourceData("voc", {"boxes": LabelSpace("boxes", names)}, records, problems)


def _parse(file: Path) -> ET.Element:
    try:
        # Entities are refused: the standard parser would expand them without end.
        text = file.read_text(encoding="utf-8")
        if "<!ENTITY" in text:
            raise DataError(f"{file}: XML entities are not allowed")
        return ET.fromstring(text)  # noqa: S314  # entities are refused above
    except (OSError, ET.ParseError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not readable as XML: {error}") from error


def _text(item: ET.Element, path: str, file: Path) -> str:
    value = item.findtext(path)
    if value is None:
        raise DataError(f"{file}: an <object> has no <{path}>")
    return value.strip()


def _size(tree: ET.Element) -> tuple[int, int] | None:
    height, width = tree.findtext("size/height"), tree.findtext("size/width")
    return (int(height), int(width)) if height and width and int(height) > 0 and int(width) > 0 else None
