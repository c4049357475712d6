"""Which formats a folder holds, and one SourceData of them all, joined by file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pipeline.data.formats.base import SourceData
from pipeline.data.formats.coco import find_coco, read_coco
from pipeline.data.formats.folders import class_folders, read_folders
from pipeline.data.formats.masks import find_masks, read_masks
from pipeline.data.formats.table import find_table, read_table
from pipeline.data.formats.voc import read_voc
from pipeline.data.formats.yolo import find_yolo, read_yolo
from pipeline.errors import DataError, nearest
from pipeline.records import Record

READERS: dict[str, Callable[[Path], SourceData]] = {
    "coco": read_coco,
    "voc": read_voc,
    "yolo": read_yolo,
    "masks": read_masks,
    "table": read_table,
    "folders": read_folders,
}
"""Readers by the name `data.format` gives; `a+b` joins several."""


def detect(root: Path) -> str:
    """The formats of a folder as `coco+masks+table`; raises DataError when none is found."""
    if not root.is_dir():
        raise DataError(f"data.root {root} is not a folder")
    found = []
    if find_coco(root):
        found.append("coco")
    if (root / "Annotations").is_dir():
        found.append("voc")
    if not found and find_yolo(root) is not None:
        return "yolo"
    if find_masks(root) is not None:
        found.append("masks")
    if find_table(root) is not None:
        found.append("table")
    if not found and any(folder for folders in class_folders(root).values() for folder in folders):
        found.append("folders")
    if not found:
        raise DataError(
            f"{root}: no known labels found; formats: COCO JSON, VOC Annotations/, YOLO data.yaml, a masks/ folder,"
            f" a CSV or Parquet table with a `file` column, or a folder per class"
        )
    return "+".join(found)


def read_source(root: Path, format: str = "auto") -> SourceData:  # noqa: A002  # the config's name for it
    """A folder's label fields and Records; `auto` finds the formats out.

    Raises:
        DataError: no labels found, an unknown format, or broken label files.
    """
    parts = (detect(root) if format == "auto" else format).split("+")
    for part in parts:
        if part not in READERS:
            raise DataError(f"data.format: unknown format {part!r}{nearest(part, READERS)}")
    sources = [READERS[part](root) for part in parts]
    merged = sources[0]
    for other in sources[1:]:
        merged = _join(merged, other)
    if not merged.records:
        raise DataError(
            f"{root}: {merged.format} labels found, but no image; run `lightning check-data --data.root {root}`"
        )
    return merged


def _join(first: SourceData, second: SourceData) -> SourceData:
    """Records of the same file become one; where both label a field, the second wins (real masks over drawn ones)."""
    records: dict[str, Record] = {record.image.name: record for record in first.records}
    for record in second.records:
        known = records.get(record.image.name)
        if known is None:
            records[record.image.name] = record
            continue
        records[record.image.name] = replace(
            known,
            labels={**known.labels, **record.labels},
            split=known.split or record.split,
            group=known.group or record.group,
            size=known.size or record.size,
        )
    spaces = {**first.spaces, **second.spaces}
    return SourceData(
        f"{first.format}+{second.format}", spaces, list(records.values()), first.problems + second.problems
    )
