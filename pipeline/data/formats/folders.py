"""A folder per class, perhaps below a folder per split."""

from __future__ import annotations

from pathlib import Path

from pipeline.data.formats.base import SourceData
from pipeline.data.formats.files import SPLITS, images_under
from pipeline.errors import DataError
from pipeline.labels import LabelSpace
from pipeline.records import FileImage, Record


def class_folders(root: Path) -> dict[str | None, list[Path]]:
    """Class folders by split (None where the data set has no split folders)."""
    children = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    splits = [path for path in children if path.name.lower() in SPLITS]
    if splits and len(splits) == len(children):
        return {SPLITS[p.name.lower()]: sorted(c for c in p.iterdir() if c.is_dir()) for p in splits}
    return {None: children}


def read_folders(root: Path) -> SourceData:
    """Records of a folder per class; raises DataError when there are no images in class folders."""
    found = class_folders(root)
    names = tuple(sorted({folder.name for folders in found.values() for folder in folders if images_under(folder)}))
    records = [
        Record(FileImage(path), {"label": names.index(folder.name)}, split)
        for split, folders in found.items()
        for folder in folders
        for path in images_under(folder)
    ]
    if not records:
        raise DataError(f"{root}: no images in folders named for their class")
    return SourceData("folders", {"label": LabelSpace("classes", names)}, records)
