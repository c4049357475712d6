"""Listing image files, and reading small text and JSON files with errors that name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.imaging.decode import SUFFIXES

SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Names of folders and files that mean a split."""


MASK_FOLDERS = ("masks", "mask", "annotations", "labels", "SegmentationClass", "SegmentationObject")
"""Folders whose pictures are labels, not images."""


def images_under(root: Path) -> list[Path]:
    """All image files under a folder, sorted; hidden ones and those in mask folders left out."""
    found = (path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(
        path
        for path in found
        if not any(part.startswith(".") or part in MASK_FOLDERS for part in path.relative_to(root).parts[:-1])
    )


def read_json(path: Path) -> Any:
    """A JSON file's content; raises DataError naming file and line."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error


def split_in_name(path: Path) -> str | None:
    """The split that a path's parts name, the last one first; None when none does."""
    for part in reversed((*path.parent.parts, path.stem)):
        for word in (part.lower(), *part.lower().replace("-", "_").split("_")):
            if word in SPLITS:
                return SPLITS[word]
    return None
