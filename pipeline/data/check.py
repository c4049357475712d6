"""`lightning check-data`: everything wrong with a data set, as a table for people and JSON for machines."""

from __future__ import annotations

import json
import sys
import warnings
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from pipeline.arguments import Arguments
from pipeline.data.formats.base import Problem, SourceData
from pipeline.data.formats.detect import read_source
from pipeline.data.formats.files import images_under
from pipeline.data.look import Look, look_at
from pipeline.errors import ConfigError, DataError
from pipeline.records import Boxes, Record

_PIPED_WIDTH = 240


@dataclass
class Report:
    """What was found.

    Attributes:
        root: the data set's folder; names in the table are relative to it.
        format: the readers that fit, joined by `+`; empty where the labels cannot be read at all.
        images: labelled images.
        splits: images per split; `unsplit` where the data set does not say.
        counts: labels per class, by field; for masks, the images in which the class occurs.
        sizes: the most frequent full sizes, as `WIDTHxHEIGHT`.
        problems: everything wrong.
    """

    root: str
    format: str
    images: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def errors(self) -> list[Problem]:
        """The problems that must be mended."""
        return [problem for problem in self.problems if problem.severity == "error"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def check_data(root: Path, format: str = "auto", workers: int | None = None) -> Report:  # noqa: A002  # the option's name
    """Reads every label and every image of a folder.

    Labels that cannot be read at all give a report with that one error.

    Args:
        root: the data set's folder.
        format: `auto`, or readers joined by `+`.
        workers: images decoded at a time; None takes one per core.
    """
    try:
        source = read_source(root, format)
    except DataError as error:
        return Report(str(root), "", problems=[Problem("error", "unusable data set", str(root), str(error))])
    problems = list(source.problems)
    sizes: dict[tuple[int, int], list[tuple[Record, Look]]] = {}
    twins: dict[str, dict[str, Record]] = {}  # by digest and name: one file in two splits is told by its reader
    occurs: dict[str, Counter[int]] = {name: Counter() for name in source.spaces}
    for record, look in zip(source.records, look_at(source.records, workers), strict=True):
        problems += look.problems
        if look.size is None:
            continue
        sizes.setdefault(look.size, []).append((record, look))
        twins.setdefault(look.digest, {}).setdefault(record.image.name, record)
        for name, present in look.classes.items():
            occurs[name].update(present)
    for records in twins.values():
        problems += _duplicates(list(records.values()))
    problems += _unlabelled(root, source) + _odd_sizes(sizes)
    counts = {name: _count(source, name, occurs[name]) for name in source.spaces}
    for name, table in counts.items():
        problems += _imbalance(name, table)
    splits = Counter(record.split or "unsplit" for record in source.records)
    most = sorted(((len(found), size) for size, found in sizes.items()), reverse=True)[:10]
    common = {f"{width}x{height}": number for number, (height, width) in most}
    return Report(str(root), source.format, len(source.records), dict(splits), counts, common, problems)


def _duplicates(twins: list[Record]) -> list[Problem]:
    if len(twins) < 2:
        return []
    names = ", ".join(record.image.name for record in twins[1:4]) + (", …" if len(twins) > 4 else "")
    splits = {record.split for record in twins}
    if len(splits) > 1:
        message = f"the same file as {names}, in other splits: the test would be of what was trained"
        return [Problem("error", "duplicate across splits", twins[0].image.name, message)]
    kinds = {str([(n, v) for n, v in sorted(r.labels.items()) if isinstance(v, (int, tuple))]) for r in twins}
    if len(kinds) > 1:
        message = f"the same file as {names}, with another label: one of them must be wrong"
        return [Problem("warning", "duplicate with another label", twins[0].image.name, message)]
    parted = "; a random split may part them" if None in splits else ""
    return [Problem("warning", "duplicate", twins[0].image.name, f"the same file as {names}{parted}")]


def _unlabelled(root: Path, source: SourceData) -> list[Problem]:
    known = {record.image.name for record in source.records} | {problem.where for problem in source.problems}
    return [
        Problem("warning", "image without label", str(path), "no label names it: left out")
        for path in images_under(root)
        if str(path) not in known
    ]


def _odd_sizes(sizes: dict[tuple[int, int], list[tuple[Record, Look]]]) -> list[Problem]:
    """Images with ten times as many pixels as the most frequent size."""
    if not sizes:
        return []
    height, width = max(sizes, key=lambda size: len(sizes[size]))
    return [
        Problem("warning", "odd size", record.image.name, f"{w} x {h} where most are {width} x {height}{look.turned}")
        for (h, w), found in sorted(sizes.items())
        if h * w > 10 * height * width
        for record, look in found
    ]


def _count(source: SourceData, field_name: str, occurs: Counter[int]) -> dict[str, int]:
    """Labels per class; every class is there, also without a label."""
    total = Counter(dict.fromkeys(range(len(source.spaces[field_name].names)), 0))
    for record in source.records:
        label = record.labels.get(field_name)
        if isinstance(label, Boxes):
            total.update(map(int, label.classes))
        elif isinstance(label, int):
            total[label] += 1
        elif isinstance(label, tuple):
            total.update(label)
    total.update(occurs)
    return {name: total[index] for index, name in enumerate(source.spaces[field_name].names)}


def _imbalance(name: str, table: dict[str, int]) -> list[Problem]:
    found = [
        Problem("warning", "empty class", name, f"class {key!r} has no label")
        for key, value in table.items()
        if value == 0
    ]
    positive = [value for value in table.values() if value]
    if positive and max(positive) > 10 * min(positive):
        most, least = (
            max(table, key=lambda key: table[key]),
            min((k for k in table if table[k]), key=lambda k: table[k]),
        )
        message = f"{most!r} has {table[most]} labels, {least!r} only {table[least]}; consider class_weights"
        found.append(Problem("info", "imbalance", name, message))
    return found


def print_report(report: Report, console: Console) -> None:
    """A readable table; no more than ten problems of a kind, and how many more there are."""
    console.print(f"Data: {_plain(report.root)}", soft_wrap=True)
    if report.format:
        splits = ", ".join(f"{name} {number}" for name, number in sorted(report.splits.items()))
        console.print(f"Format: {report.format}; {report.images} images ({splits})")
        console.print("Sizes: " + ", ".join(f"{size} ({number})" for size, number in report.sizes.items()))
    for name, table in report.counts.items():
        console.print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in table.items()), markup=False)
    if not report.problems:
        console.print("No problems.")
        return
    # A name that is cut short, as tables do by default, names nothing.
    listing = Table("severity", "kind", Column("where", overflow="fold"), Column("what", overflow="fold"))
    kinds = Counter(problem.kind for problem in report.problems)
    shown: Counter[str] = Counter()
    for problem in sorted(report.problems, key=lambda p: ("error", "warning", "info").index(p.severity)):
        shown[problem.kind] += 1
        if shown[problem.kind] <= 10:
            # Paths within the folder; what concerns the folder itself keeps its own, which may be the remedy.
            inside = f"{report.root}/" if report.format else ""
            message = problem.message.removeprefix(f"{problem.where}: ")
            where, message = (text.replace(inside, "") if inside else text for text in (problem.where, message))
            listing.add_row(problem.severity, problem.kind, _plain(where), _plain(message))
    console.print(listing)
    for kind, number in kinds.items():
        if number > 10:
            console.print(f"… and {number - 10} more of kind '{kind}'")
    levels = Counter(problem.severity for problem in report.problems)
    console.print(f"{levels['error']} errors, {levels['warning']} warnings, {levels['info']} remarks.")


def _plain(text: str) -> str:
    """File names hold brackets, which the table would take for its mark-up, and bytes that are no text."""
    return escape(text.encode("utf-8", "backslashreplace").decode())


def main(argv: list[str]) -> int:
    """The command; exit code 1 when there are errors."""
    parser = Arguments("lightning check-data", __doc__)
    parser.add_argument("--data.root", dest="root", type=Path, required=True, help="the data set's folder")
    parser.add_argument("--data.format", dest="format", default="auto", help="readers joined by +, or auto")
    parser.add_argument("--json", type=Path, help="also write the report here")
    given = parser.parse(argv)
    # Oddities that Pillow reads all the same; what it cannot read stands in the report.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    report = check_data(given.root, given.format)
    # In a file or a pipe, lines are as long as they must be, so that names can be searched for.
    print_report(report, Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH))
    if given.json is not None:
        try:
            given.json.parent.mkdir(parents=True, exist_ok=True)
            given.json.write_text(json.dumps(report.to_dict(), indent=1))
        except OSError as error:
            raise ConfigError(f"--json {given.json}: {error.strerror or error}") from error
    return 1 if report.errors else 0
