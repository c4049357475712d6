"""A folder of masks beside the images: index PNGs or colour PNGs, named as their images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.formats.base import Problem, SourceData
from pipeline.data.formats.files import SPLITS, images_under
from pipeline.errors import DataError
from pipeline.imaging.masks import ColourMask, IndexMask
from pipeline.labels import IGNORE_INDEX, LabelSpace
from pipeline.records import FileImage, Record

FOLDERS = ("masks", "mask", "annotations", "labels", "SegmentationClass")
_PROBED = 200
"""Masks that are looked at to learn which values occur."""


def find_masks(root: Path) -> Path | None:
    """The folder of masks, if there is one with PNG files."""
    return next((root / n for n in FOLDERS if (root / n).is_dir() and any((root / n).rglob("*.png"))), None)


def read_masks(root: Path) -> SourceData:
    """Records of images with masks; class names from `classes.txt` where it lies in the folder.

    Raises:
        DataError: no mask folder, or no mask with an image of its name.
    """
    folder = find_masks(root)
    if folder is None:
        raise DataError(f"{root}: no folder {', '.join(FOLDERS)} with PNG masks")
    masks = {path.stem: path for path in sorted(folder.rglob("*.png"))}
    pictures = {path.stem: path for path in images_under(root) if folder not in path.parents}
    pairs = [(pictures[stem], masks[stem]) for stem in pictures if stem in masks]
    if not pairs:
        raise DataError(f"{root}: no mask in {folder} has the name of an image")
    problems = [
        Problem("warning", "label without image", str(path), "no image of this name")
        for stem, path in masks.items()
        if stem not in pictures
    ]
    values = _values([mask for _, mask in pairs[:: max(1, len(pairs) // _PROBED)]])
    listing = root / "classes.txt"
    count = len(values)
    names = tuple(listing.read_text().split("\n")[:count]) if listing.is_file() else _names(count)
    if len(names) != count:
        raise DataError(f"{listing}: {len(names)} names, but the masks have {count} values: {values}")
    records = []
    for picture, mask in pairs:
        source = _source(mask, values)
        split = next((SPLITS[part.lower()] for part in picture.relative_to(root).parts if part.lower() in SPLITS), None)
        records.append(Record(FileImage(picture), {"mask": source}, split))
    return SourceData("masks", {"mask": LabelSpace("mask", names)}, records, problems)


def _names(count: int) -> tuple[str, ...]:
    return ("background", "foreground") if count == 2 else tuple(f"class_{i}" for i in range(count))


def _source(mask: Path, values: list[int] | list[tuple[int, int, int]]) -> IndexMask | ColourMask:
    if isinstance(values[0], tuple):
        return ColourMask(mask, tuple(v for v in values if isinstance(v, tuple)))
    return IndexMask(mask, tuple(v for v in values if isinstance(v, int)))


def _values(paths: list[Path]) -> list[int] | list[tuple[int, int, int]]:
    """The pixel values (or colours) that occur, ascending, without the ignored one."""
    numbers: set[int] = set()
    colours: set[tuple[int, int, int]] = set()
    for path in paths:
        try:
            with Image.open(path, formats=("PNG",)) as image:
                plane = np.asarray(image)
        except OSError as error:
            raise DataError(f"mask {path}: {error}") from error
        if plane.ndim == 3:
            colours |= {(int(r), int(g), int(b)) for r, g, b in np.unique(plane[..., :3].reshape(-1, 3), axis=0)}
        else:
            numbers |= {int(value) for value in np.unique(plane)}
    if colours:
        return sorted(colours)
    return sorted(numbers - {IGNORE_INDEX}) if len(numbers) != 2 or 0 not in numbers else sorted(numbers)
