"""What every reader gives: SourceData, the label fields and Records of one source, and the Problems met on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pipeline.labels import LabelSpace
from pipeline.records import Record

DROPPED = frozenset({"label without image", "unreadable image"})
"""Kinds of error that a run survives by leaving the image out, as long as they are few."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong in a data set.

    Attributes:
        severity: `error` must be mended (`check-data` exits with 1, `fit` refuses it unless its kind is in `DROPPED`),
            `warning` is dropped or mended, `info` is only told.
        kind: a stable name, e.g. `zero-size box`.
        where: the file, and the place in it.
        message: what is wrong and what was done about it.
    """

    severity: Literal["error", "warning", "info"]
    kind: str
    where: str
    message: str


@dataclass(slots=True)
class SourceData:
    """One source as read.

    Attributes:
        format: its reader's name; joined ones by `+`.
        spaces: label fields by name.
        records: its images.
        problems: what was wrong.
        unnamed: fields whose class names are made up, because the format states none.
    """

    format: str
    spaces: dict[str, LabelSpace]
    records: list[Record]
    problems: list[Problem] = field(default_factory=list)
    unnamed: frozenset[str] = frozenset()
