"""What every reader gives: SourceData, the label fields and Records of one source, and the Problems met on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pipeline.labels import LabelSpace
from pipeline.records import Record


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong in a data set.

    Attributes:
        severity: `error` refuses the data, `warning` is dropped or mended, `info` is only told.
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
    """One source as read: its format's name, label fields, Records, and problems."""

    format: str
    spaces: dict[str, LabelSpace]
    records: list[Record]
    problems: list[Problem] = field(default_factory=list)
