"""Which formats a folder holds, and one SourceData of them all, joined by file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.data.formats.base import Problem, SourceData
from pipeline.data.formats.coco import find_coco, read_coco
from pipeline.data.formats.folders import class_folders, read_folders
from pipeline.data.formats.masks import find_masks, read_masks
from pipeline.data.formats.pictures import read_pictures
from pipeline.data.formats.table import find_tables, read_table
from pipeline.data.formats.voc import find_voc, read_voc
from pipeline.data.formats.yolo import find_yolo, read_yolo
from pipeline.errors import DataError, nearest
from pipeline.records import Record


class Format(NamedTuple):
    """One format: `find` answers something true where a folder holds it, `read` reads it.

    A format that is not `joins` is one of pictures in folders of any name: it counts where no other is found.
    """

    find: Callable[[Path], Any]
    read: Callable[[Path], SourceData]
    joins: bool = True


READERS = {
    "coco": Format(find_coco, read_coco),
    "voc": Format(find_voc, read_voc),
    "yolo": Format(find_yolo, read_yolo),
    "masks": Format(find_masks, read_masks),
    "table": Format(find_tables, read_table),
    "folders": Format(class_folders, read_folders, joins=False),
    # Never found out: that labels were not recognised must not pass for there being none.
    "images": Format(lambda _: None, read_pictures, joins=False),
}
"""Formats by the name `data.format` gives; `a+b` joins several, later ones winning. A new format is one line here."""


def detect(root: Path) -> str:
    """The formats of a folder as `coco+masks+table`; raises DataError when none is found."""
    if not root.is_dir():
        raise DataError(f"data.root {root} is not a folder")
    found = [name for name, format_ in READERS.items() if format_.joins and format_.find(root)]
    found = found or [name for name, format_ in READERS.items() if not format_.joins and format_.find(root)]
    if not found:
        raise DataError(
            f"{root}: no known labels found; formats: COCO JSON, VOC Annotations/, YOLO data.yaml, a masks/ folder,"
            f" a CSV or Parquet table with a `file` column, or a folder per class{_deeper(root)}"
        )
    return "+".join(found)


def _deeper(root: Path) -> str:
    """A hint where the data set lies one folder below."""
    for child in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if any(format_.find(child) for format_ in READERS.values()):
            return f"; do you mean data.root {child}?"
    return ""


def read_source(root: Path, format: str = "auto") -> SourceData:  # noqa: A002  # the config's name for it
    """A folder's label fields and Records; `auto` finds the formats out.

    Raises:
        DataError: no labels found, an unknown format, or broken label files.
    """
    parts = (detect(root) if format == "auto" else format).split("+")
    if (wrong := unknown_format("+".join(parts))) is not None:
        raise DataError(wrong)
    if not root.is_dir():
        raise DataError(f"data.root {root} is not a folder")
    sources = [_once(READERS[part].read(root)) for part in parts]
    merged = sources[0]
    for other in sources[1:]:
        merged = _join(merged, other, root)
    if parts == ["folders"] and len(merged.spaces["label"].names) == 1 and (hint := _deeper(root)):
        raise DataError(f"{root}: only one folder with images, so only one class{hint}")
    if format == "auto" and parts == ["folders"] and (inner := _labelled_class(merged, root)):
        raise DataError(
            f"{root}: no class folders, for {inner} holds labels of its own; give that as data.root, several such as"
            " data.sources, or say data.format folders"
        )
    if not merged.records and not any(problem.severity == "error" for problem in merged.problems):
        raise DataError(
            f"{root}: {merged.format} labels found, but no image; run `lightning check-data --data.root {root}`"
        )
    merged.problems += _parted_groups(merged.records)
    return merged


def unknown_format(format: str) -> str | None:  # noqa: A002  # the config's name for it
    """What is wrong with a value of `data.format`, None when nothing is."""
    wrong = next((part for part in format.split("+") if part not in READERS and format != "auto"), None)
    return None if wrong is None else f"data.format: unknown format {wrong!r}{nearest(wrong, ('auto', *READERS))}"


def _labelled_class(source: SourceData, root: Path) -> Path | None:
    """The first class folder that is a data set in itself: its labels would be passed over, its name made a class."""
    finders = [format_.find for name, format_ in READERS.items() if format_.joins and name != "masks"]
    children = (root / name for name in source.spaces["label"].names)
    return next((child for child in children if child.is_dir() and any(find(child) for find in finders)), None)


def _once(source: SourceData) -> SourceData:
    """Each image once per split; one with other labels, or in two splits, is an error."""
    stated = any(problem.kind == "same images in splits" for problem in source.problems)
    first: dict[str, Record] = {}
    kept, problems = [], []
    for record in source.records:
        known = first.setdefault(record.image.name, record)
        if known is record:
            kept.append(record)
        elif known.split != record.split:
            kept.append(record)
            if not stated:
                message = f"listed for {known.split} and for {record.split}: the test would be of what was trained"
                problems.append(Problem("error", "in two splits", record.image.name, message))
        elif _image_labels(known) != _image_labels(record):
            message = "listed twice, with other labels; for several labels an image, write them as `a|b`"
            problems.append(Problem("error", "listed twice", record.image.name, message))
        else:
            problems.append(Problem("warning", "listed twice", record.image.name, "only the first entry is used"))
    return replace(source, records=kept, problems=[*source.problems, *problems])


def _parted_groups(records: list[Record]) -> list[Problem]:
    splits: dict[str, set[str]] = {}
    for record in records:
        if record.group is not None and record.split is not None:
            splits.setdefault(record.group, set()).add(record.split)
    return [
        Problem("warning", "group in two splits", group, f"the data set puts it into {' and '.join(sorted(found))}")
        for group, found in splits.items()
        if len(found) > 1
    ]


def _image_labels(record: Record) -> dict[str, int | tuple[int, ...]]:
    return {name: label for name, label in record.labels.items() if isinstance(label, (int, tuple))}


def _join(first: SourceData, second: SourceData, root: Path) -> SourceData:
    """Records of the same file become one; where both label a field, the second wins (real masks over drawn ones)."""
    problems = [*first.problems, *second.problems]
    spaces = {**first.spaces, **second.spaces}
    drop: set[str] = set()
    for name in first.spaces.keys() & second.spaces.keys():
        ours, theirs = first.spaces[name], second.spaces[name]
        if ours.kind != theirs.kind or (ours.kind != "mask" and ours.names != theirs.names):
            raise DataError(
                f"{root}: {first.format} and {second.format} both label {name!r}, in different ways;"
                f" choose one by data.format ({first.format} or {second.format})"
            )
        if name in second.unnamed and len(ours.names) == len(theirs.names):
            spaces[name] = ours
        elif ours.names != theirs.names:
            # Numbers of one list mean nothing in the other.
            drop.add(name)
            message = f"{first.format} and {second.format} name its classes differently: only {second.format} is used"
            problems.append(Problem("info", "other class list", f"{root}: {name}", message))
    records = {_key(r): replace(r, labels={k: v for k, v in r.labels.items() if k not in drop}) for r in first.records}
    by_name = {record.image.name: key for key, record in records.items()}
    for record in second.records:
        key = _key(record) if _key(record) in records else by_name.get(record.image.name)
        if key is None:
            records[_key(record)] = record
            continue
        known = records[key]
        if known.split is not None and record.split is not None and known.split != record.split:
            message = f"{first.format} says {known.split}, {second.format} says {record.split}"
            problems.append(Problem("error", "in two splits", record.image.name, message))
        records[key] = replace(
            known,
            labels={**known.labels, **record.labels},
            split=known.split or record.split,
            group=known.group or record.group,
            size=known.size or record.size,
        )
    unnamed = (first.unnamed - second.spaces.keys()) | (second.unnamed - first.spaces.keys())
    return SourceData(f"{first.format}+{second.format}", spaces, list(records.values()), problems, unnamed)


def _key(record: Record) -> tuple[str, str | None]:
    return record.image.name, record.split
