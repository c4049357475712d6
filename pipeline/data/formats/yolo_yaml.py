"""data.yaml of a YOLO data set: its classes, and the folders or lists of its splits."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.data.formats.base import Problem
from pipeline.data.formats.files import SPLITS, images_under, read_text
from pipeline.data.formats.yolo_rows import Listing
from pipeline.errors import DataError

_KEYS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


_MOST_CLASSES = 100_000
"""Class numbers above this are another format's, and naming them all would fill the memory."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What data.yaml says: the classes, the data set's folder, and folders or list files by split."""

    listing: Listing
    base: Path
    splits: dict[str, list[Path]]
    problems: list[Problem] = field(default_factory=list)


def find_yolo(root: Path) -> Path | None:
    """The YAML file that names classes and splits, else a `labels` folder with text files beside `images`."""
    found = dict.fromkeys(path for mask in ("data.yaml", "*.yaml", "*.yml") for path in sorted(root.glob(mask)))
    for path in found:
        lines = path.read_text(errors="replace").splitlines()
        if any(line.startswith(("names", "nc")) for line in lines) and any(
            line.startswith(("train", "val")) for line in lines
        ):
            return path
    if (root / "images").is_dir() and any((root / "labels").rglob("*.txt")):
        return root / "labels"
    return None


def read_layout(file: Path, root: Path) -> Layout:
    """Classes and splits of a data.yaml (or of a bare `labels` folder); raises DataError."""
    if file.is_dir():
        return _bare(root)
    try:
        content = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise DataError(
            f"{file}{f':{mark.line + 1}' if mark else ''}: not valid YAML: {error}".replace("\n", " ")
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: a mapping with `names`, `train` and `val` is expected")
    listing = _listing(content, file)
    base = _base(content.get("path"), root)
    splits: dict[str, list[Path]] = {}
    problems: list[Problem] = []
    for key, split in _KEYS.items():
        entries = content.get(key)
        for entry in entries if isinstance(entries, list) else [entries] if entries else []:
            place = _place(str(entry), base, root)
            if place is not None:
                splits.setdefault(split, []).append(place)
            elif split == "test":
                # Exports often name a test folder that they do not contain.
                message = f"`{key}`: {str(entry)!r} does not exist: left out"
                problems.append(Problem("warning", "missing split", str(file), message))
            else:
                raise DataError(f"{file}: `{key}`: {str(entry)!r} exists neither in {base} nor beside {file.name}")
    if splits.get("train") and splits.get("train") == splits.get("val"):
        message = "`train` and `val` are the same images: the scores say nothing about new ones"
        problems.append(Problem("warning", "same images in splits", str(file), message))
    return Layout(listing, base, splits, problems)


def _base(given: Any, root: Path) -> Path:
    """The data set's folder: `path`, absolute or beside data.yaml; data.yaml's own where that is not there."""
    place = Path(os.path.normpath(root / str(given or ".")))
    return place if place.is_dir() else root


def _place(entry: str, base: Path, root: Path) -> Path | None:
    # Exports often say '../train/images' and mean a folder beside data.yaml.
    names = (entry, entry.removeprefix("../"))
    return next((folder / name for folder in (base, root) for name in names if (folder / name).exists()), None)


def _listing(content: dict[str, Any], file: Path) -> Listing:
    names, count = content.get("names"), content.get("nc")
    made_up = names is None
    if names is None and isinstance(count, int):
        names = [f"class_{i}" for i in range(count)]
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise DataError(f"{file}: `names` must be a list of class names, or a mapping of numbers to names")
    try:
        numbered = {int(key): str(name) for key, name in names.items()}
    except (TypeError, ValueError) as error:
        raise DataError(f"{file}: the keys of `names` must be class numbers: {error}") from error
    if isinstance(count, int) and count != len(numbered):
        raise DataError(f"{file}: nc is {count}, but `names` has {len(numbered)} classes")
    ordered = sorted(numbered)
    shown = tuple(numbered[key] for key in ordered)
    if twice := {name for name in shown if shown.count(name) > 1}:
        raise DataError(f"{file}: several classes have the name {', '.join(sorted(twice))}")
    shape = content.get("kpt_shape")
    if shape is not None and not (isinstance(shape, list) and all(isinstance(side, int) for side in shape)):
        raise DataError(f"{file}: `kpt_shape` must be two whole numbers, not {shape!r}")
    points = math.prod(shape) if shape else 0
    return Listing(shown, {key: at for at, key in enumerate(ordered)}, made_up, points)


def _bare(root: Path) -> Layout:
    """A data set without data.yaml: names from classes.txt or made up, splits from the folders below `images`."""
    file = next((p for p in (root / "classes.txt", root / "labels" / "classes.txt") if p.is_file()), None)
    if file is not None:
        names = tuple(line.strip() for line in read_text(file).splitlines() if line.strip())
    else:
        kinds = {kind for path in (root / "labels").rglob("*.txt") for kind in _kinds(path)}
        if max(kinds, default=0) > _MOST_CLASSES:
            raise DataError(f"{root / 'labels'}: class number {max(kinds)} in a label file; are these YOLO's?")
        names = tuple(f"class_{i}" for i in range(max(kinds, default=0) + 1))
    splits: dict[str, list[Path]] = {}
    for folder in sorted(path for path in (root / "images").iterdir() if path.is_dir() and images_under(path)):
        name = SPLITS.get(folder.name.lower().rstrip("0123456789"))
        if name is not None:
            splits.setdefault(name, []).append(folder)
    listing = Listing(names, {i: i for i in range(len(names))}, file is None)
    return Layout(listing, root, splits or {"": [root / "images"]})


def _kinds(path: Path) -> set[int]:
    """The class numbers in a label file; lines that are none are told when the file is read."""
    firsts = (line.split()[0] for line in path.read_text(errors="replace").splitlines() if line.strip())
    return {int(first) for first in firsts if first.isdecimal()}
