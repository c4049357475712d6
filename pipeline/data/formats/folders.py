"""A folder per class, perhaps below a folder per split."""

from __future__ import annotations

from pathlib import Path

from pipeline.data.formats.base import Problem, SourceData
from pipeline.data.formats.files import SPLITS, images_under
from pipeline.errors import DataError
from pipeline.labels import LabelSpace
from pipeline.records import FileImage, Record

Classes = dict[str, list[Path]]
"""Images by class folder."""


def class_folders(root: Path) -> dict[str | None, Classes]:
    """Images of every class folder, by split (None where the data set has no split folders).

    A folder `train` with pictures of its own is a class (a vehicle), one with only folders of pictures is a split.
    """
    # Hidden folders and those of masks hold no class: the same list of images as everywhere else.
    tree: dict[str, list[Path]] = {}
    for path in images_under(root):
        parts = path.relative_to(root).parts
        if len(parts) > 1:
            tree.setdefault(parts[0], []).append(path)
    own = {name for name, paths in tree.items() if any(path.parent == root / name for path in paths)}
    if not any(name.lower() in SPLITS and name not in own for name in tree):
        return {None: tree} if tree else {}
    out: dict[str | None, Classes] = {}
    for name, paths in tree.items():
        if name.lower() in SPLITS:
            for kind, images in _by_class(root / name, paths).items():
                out.setdefault(SPLITS[name.lower()], {}).setdefault(kind, []).extend(images)
    return out


def _by_class(split: Path, paths: list[Path]) -> Classes:
    out: Classes = {}
    for path in paths:
        parts = path.relative_to(split).parts
        if len(parts) > 1:
            out.setdefault(parts[0], []).append(path)
    return out


def read_folders(root: Path) -> SourceData:
    """Records of a folder per class; raises DataError when there are no images in class folders."""
    found = class_folders(root)
    names = tuple(sorted({name for classes in found.values() for name in classes}))
    records = [
        Record(FileImage(path), {"label": names.index(name)}, split)
        for split, classes in found.items()
        for name, paths in classes.items()
        for path in paths
    ]
    if not records:
        raise DataError(f"{root}: no images in folders named for their class")
    problems = []
    for split, classes in found.items():
        if split == "train" and (missing := [name for name in names if name not in classes]):
            message = f"classes without training images: {', '.join(missing)}"
            problems.append(Problem("warning", "class not in train", str(root), message))
    return SourceData("folders", {"label": LabelSpace("classes", names)}, records, problems)
