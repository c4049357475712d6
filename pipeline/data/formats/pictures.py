"""Pictures without labels, below a folder of any shape: for heads that learn from the images themselves."""

from __future__ import annotations

from pathlib import Path

from pipeline.data.formats.base import SourceData
from pipeline.data.formats.files import SPLITS, images_under
from pipeline.errors import DataError
from pipeline.records import FileImage, Record


def read_pictures(root: Path) -> SourceData:
    """A Record per picture, labelled for nothing; folders `train`, `val` and `test` at the top are splits.

    Raises:
        DataError: there are no pictures.
    """
    paths = images_under(root)
    if not paths:
        raise DataError(f"{root}: no pictures")
    return SourceData("images", {}, [Record(FileImage(path), {}, _split(path.relative_to(root))) for path in paths])


def _split(path: Path) -> str | None:
    return SPLITS.get(path.parts[0].lower()) if len(path.parts) > 1 else None
