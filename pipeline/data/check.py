"""`lightning check-data`: everything wrong with a data set, as a table for people and JSON for machines."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from pipeline.data.formats.base import Problem, SourceData
from pipeline.data.formats.detect import read_source
from pipeline.data.formats.files import images_under
from pipeline.errors import DataError, ImageError
from pipeline.imaging.decode import read_image
from pipeline.labels import IGNORE_INDEX
from pipeline.records import Boxes, FileImage, Record


@dataclass
class Report:
    """What was found.

    Attributes:
        format: the readers that fit, joined by `+`.
        images: labelled images.
        splits: images per split; `unsplit` where the data set does not say.
        counts: labels per class, by field.
        sizes: the most frequent full sizes, as `WIDTHxHEIGHT`.
        problems: everything wrong.
    """

    format: str
    images: int
    splits: dict[str, int]
    counts: dict[str, dict[str, int]]
    sizes: dict[str, int]
    problems: list[Problem] = field(default_factory=list)

    @property
    def errors(self) -> list[Problem]:
        """The problems that refuse the data."""
        return [problem for problem in self.problems if problem.severity == "error"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def check_data(root: Path, format: str = "auto") -> Report:  # noqa: A002  # the option's name
    """Reads every label and every image of a folder; raises DataError when its labels cannot be read at all."""
    source = read_source(root, format)
    problems = list(source.problems)
    sizes: Counter[tuple[int, int]] = Counter()
    digests: dict[str, list[Record]] = {}
    for record in track(source.records, "reading images", console=Console(stderr=True), transient=True):
        assert isinstance(record.image, FileImage)
        try:
            size = read_image(record.image.path)[1]
        except ImageError as error:
            problems.append(Problem("error", "unreadable image", record.image.name, str(error)))
            continue
        sizes[size] += 1
        digests.setdefault(hashlib.sha256(record.image.path.read_bytes()).hexdigest(), []).append(record)
        problems += _of_record(record, size)
    for twins in digests.values():
        problems += _duplicates(twins)
    problems += _unlabelled(root, source) + _odd_sizes(sizes)
    counts = {name: _count(source, name) for name in source.spaces}
    for name, table in counts.items():
        problems += _imbalance(name, table)
    splits = Counter(record.split or "unsplit" for record in source.records)
    common = {f"{width}x{height}": number for (height, width), number in sizes.most_common(10)}
    return Report(source.format, len(source.records), dict(splits), counts, common, problems)


def _of_record(record: Record, size: tuple[int, int]) -> list[Problem]:
    """Sizes and values of one image's labels."""
    found = []
    name = record.image.name
    if record.size is not None and record.size != size:
        message = f"the labels say {record.size[1]} x {record.size[0]}, the upright image is {size[1]} x {size[0]}"
        found.append(Problem("error", "size differs", name, message))
    for label in record.labels.values():
        if isinstance(label, (int, tuple, Boxes)):
            continue
        try:
            mask = label.read(size)
        except DataError as error:
            found.append(Problem("error", "bad mask", name, str(error)))
            continue
        ignored = float((mask == IGNORE_INDEX).mean())
        if ignored == 1:
            found.append(Problem("warning", "empty mask", name, "every pixel of its mask is ignored or of no class"))
    return found


def _duplicates(twins: list[Record]) -> list[Problem]:
    if len(twins) < 2:
        return []
    names = ", ".join(record.image.name for record in twins[1:4])
    splits = {record.split for record in twins}
    if len(splits) > 1:
        message = f"the same file as {names}, in other splits: the test would be of what was trained"
        return [Problem("error", "duplicate across splits", twins[0].image.name, message)]
    return [Problem("warning", "duplicate", twins[0].image.name, f"the same file as {names}")]


def _unlabelled(root: Path, source: SourceData) -> list[Problem]:
    known = {record.image.name for record in source.records} | {problem.where for problem in source.problems}
    return [
        Problem("warning", "image without label", str(path), "no label names it: left out")
        for path in images_under(root)
        if str(path) not in known
    ]


def _odd_sizes(sizes: Counter[tuple[int, int]]) -> list[Problem]:
    """Images ten times as large, in pixels, as the most frequent size."""
    if not sizes:
        return []
    (height, width), _ = sizes.most_common(1)[0]
    giants = sorted(size for size in sizes if size[0] * size[1] > 10 * height * width)
    return [
        Problem("warning", "odd size", f"{sizes[g]} images", f"{g[1]} x {g[0]} where most are {width} x {height}")
        for g in giants
    ]


def _count(source: SourceData, field_name: str) -> dict[str, int]:
    names = source.spaces[field_name].names
    total: Counter[str] = Counter()
    for record in source.records:
        label = record.labels.get(field_name)
        if isinstance(label, Boxes):
            total.update(names[int(kind)] for kind in label.classes)
        elif isinstance(label, int):
            total[names[label]] += 1
        elif isinstance(label, tuple):
            total.update(names[i] for i in label)
        elif label is not None:
            total["labelled images"] += 1
    return {name: total[name] for name in (*names, "labelled images") if name in total or name in names}


def _imbalance(name: str, table: dict[str, int]) -> list[Problem]:
    classes = {key: value for key, value in table.items() if key != "labelled images"}
    if "labelled images" in table or not classes:
        return []
    found = [
        Problem("warning", "empty class", name, f"class {key!r} has no label")
        for key, value in classes.items()
        if value == 0
    ]
    positive = [value for value in classes.values() if value]
    if positive and max(positive) > 10 * min(positive):
        message = f"the largest class has {max(positive)} labels, the smallest {min(positive)}; consider class_weights"
        found.append(Problem("info", "imbalance", name, message))
    return found


def print_report(report: Report, console: Console) -> None:
    """A readable table; no more than ten problems of a kind, and how many more there are."""
    splits = ", ".join(f"{name} {number}" for name, number in sorted(report.splits.items()))
    console.print(f"Format: {report.format}; {report.images} images ({splits})")
    console.print("Sizes: " + ", ".join(f"{size} ({number})" for size, number in report.sizes.items()))
    for name, table in report.counts.items():
        console.print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in table.items()))
    if not report.problems:
        console.print("No problems.")
        return
    listing = Table("severity", "kind", "where", "what")
    shown: Counter[str] = Counter()
    for problem in sorted(report.problems, key=lambda p: ("error", "warning", "info").index(p.severity)):
        shown[problem.kind] += 1
        if shown[problem.kind] <= 10:
            listing.add_row(problem.severity, problem.kind, problem.where, problem.message)
    console.print(listing)
    for kind, number in shown.items():
        if number > 10:
            console.print(f"… and {number - 10} more of kind '{kind}'")


def main(argv: list[str]) -> int:
    """The command; exit code 1 when there are errors."""
    parser = argparse.ArgumentParser(prog="lightning check-data", description=__doc__)
    parser.add_argument("--data.root", dest="root", type=Path, required=True, help="the data set's folder")
    parser.add_argument("--data.format", dest="format", default="auto", help="readers joined by +, or auto")
    parser.add_argument("--json", type=Path, help="also write the report here")
    given = parser.parse_args(argv)
    report = check_data(given.root, given.format)
    print_report(report, Console())
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(report.to_dict(), indent=1))
    return 1 if report.errors else 0
