"""Listing images and mask pictures, finding an image by the name a label file gives, and reading text and JSON."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.formats.base import Problem
from pipeline.errors import DataError, ImageError
from pipeline.imaging.decode import SUFFIXES, image_size

SPLITS = {
    "train": "train", "training": "train", "trainval": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Names of folders and files that mean a split."""

MASK_SUFFIXES = frozenset({".png", ".bmp", ".tif", ".tiff", ".gif"})
"""Lossless endings; a JPEG cannot hold class indices."""

_LABEL_FOLDER = re.compile(r"(?P<of>.*?)[_-]?(masks?|labels?|annot|annotations?|gt|segmentation(class|object))$")
_IMAGE_FOLDERS = frozenset({"image", "images", "img", "imgs", "jpegimages", "pngimages", "pictures", "photos"})


def images_under(root: Path) -> list[Path]:
    """All image files under a folder, sorted; hidden ones and those in folders of masks left out."""
    return sorted(path for path, label in _pictures(root) if not label)


def masks_under(root: Path) -> list[Path]:
    """All pictures in folders of masks (`masks`, `labels`, `SegmentationClass`, ...), sorted."""
    return sorted(
        path
        for path, label in _pictures(root)
        if label and path.suffix.lower() in MASK_SUFFIXES and "SegmentationObject" not in path.parts
    )


def _pictures(root: Path) -> Iterable[tuple[Path, bool]]:
    """Every picture under a folder, and whether it lies in a folder of masks; links are followed, but not round."""
    seen: set[str] = set()
    labels: set[str] = set()
    for folder, children, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            children.clear()
            continue
        seen.add(real)
        pictures = [n for n in sorted(names) if not n.startswith(".") and Path(n).suffix.lower() in SUFFIXES]
        children[:] = sorted(child for child in children if not child.startswith("."))
        for child in children:
            path = f"{folder}/{child}"
            if folder in labels or _is_label_folder(Path(path), children, bool(pictures)):
                labels.add(path)
        for name in pictures:
            yield Path(folder, name), folder in labels


def _is_label_folder(folder: Path, siblings: list[str], images_beside: bool) -> bool:
    """Whether a folder's pictures are labels.

    The name alone does not say: `mask` may be a class. So images must stand beside it, or its pictures look like masks.
    """
    match = _LABEL_FOLDER.match(folder.name.lower())
    if match is None:
        return False
    others = {sibling.lower() for sibling in siblings} - {folder.name.lower()}
    if match["of"]:
        return match["of"] in others
    return images_beside or bool(others & (_IMAGE_FOLDERS | SPLITS.keys())) or _look_like_masks(folder)


def _look_like_masks(folder: Path) -> bool:
    """Whether the first three pictures are lossless and have few values, which photographs have not."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)[:3]
    if not found or any(path.suffix.lower() not in MASK_SUFFIXES for path in found):
        return False
    for path in found:
        try:
            with Image.open(path, formats=("PNG", "BMP", "TIFF", "GIF")) as image:
                plane = np.asarray(image if image.mode in {"1", "L", "P", "I", "I;16"} else image.convert("RGB"))
        except (OSError, ValueError, SyntaxError):
            return False
        if len(np.unique(plane.reshape(-1, plane.shape[2]) if plane.ndim == 3 else plane.reshape(-1, 1), axis=0)) > 64:
            return False
    return True


class Pictures:
    """The images under a folder, found by the names that label files give them."""

    def __init__(self, root: Path) -> None:
        self.root, self.paths = root, images_under(root)
        self._known = set(self.paths)
        self._names: dict[str, list[Path]] = {}
        self._stems: dict[str, list[Path]] = {}
        for path in self.paths:
            self._names.setdefault(path.name, []).append(path)
            self._stems.setdefault(path.stem, []).append(path)

    def find(self, name: str, near: Iterable[Path] = (), split: str | None = None) -> Path | None:
        """The image that `name` means, None when there is none.

        Args:
            name: a path relative to one of the folders, a bare file name, or a name without its ending.
            near: folders to look in before the root.
            split: decides between images of one name in several split folders.

        Raises:
            DataError: several images bear the name.
        """
        given = name.strip().replace("\\", "/")
        if not given:
            return None
        for folder in (*near, self.root):
            path = Path(os.path.normpath(folder / given))
            if path in self._known:
                return path
        last = Path(given).name
        same = self._names.get(last) or self._stems.get(last) or []
        if len(same) > 1:
            tail = [path for path in same if str(path).endswith(f"/{given.removeprefix('./')}")]
            same = tail or same
        if len(same) > 1 and split is not None:
            same = [path for path in same if folder_split(path, self.root) == split] or same
        if len(same) > 1:
            listed = ", ".join(str(path.relative_to(self.root)) for path in same[:3])
            raise DataError(f"{name!r} may be any of {listed}; give the path from {self.root}")
        return same[0] if same else None

    def named(
        self, name: str, place: str, problems: list[Problem], near: Iterable[Path] = (), split: str | None = None
    ) -> Path | None:
        """Like `find`, for a label at `place`: no image, or several of that name, is told, and None."""
        try:
            path = self.find(name, near, split)
        except DataError as error:
            problems.append(Problem("error", "ambiguous image", place, str(error)))
            return None
        if path is None:
            problems.append(Problem("error", "label without image", place, f"{name!r} is not in the folder: left out"))
        return path


def header_size(path: Path) -> tuple[int, int] | None:
    """Upright (height, width) from the image's header, None where it cannot be read."""
    try:
        return image_size(path)
    except ImageError:
        return None


def read_text(path: Path) -> str:
    """A text file's content, a byte order mark taken off; raises DataError naming the file and the line."""
    try:
        data = path.read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8 text ({error.reason})") from error


def read_json(path: Path) -> Any:
    """A JSON file's content; raises DataError naming file and line."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno})") from error
    except RecursionError as error:
        raise DataError(f"{path}: not valid JSON: nested too deeply") from error


def split_in_name(path: Path) -> str | None:
    """The split that a path's parts name, the last one first; `train2017` is `train`; None when none does."""
    for part in reversed((*path.parent.parts, path.stem)):
        for word in (part.lower(), *re.split(r"[-_.\s]", part.lower())):
            if (name := word.rstrip("0123456789")) in SPLITS:
                return SPLITS[name]
    return None


def folder_split(path: Path, root: Path) -> str | None:
    """The split that a folder between the root and the file names, None when none does."""
    parts = path.relative_to(root).parent.parts if path.is_relative_to(root) else ()
    names = (part.lower().rstrip("0123456789") for part in reversed(parts))
    return next((SPLITS[name] for name in names if name in SPLITS), None)
