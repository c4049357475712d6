"""`--format csv`: predictions.csv, a line for each chosen label, box, or class of a mask."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serving.batch.journal import Journal
from serving.batch.rows import ImageResult, Row
from serving.batch.writers.base import Add, Context

COLUMNS = ("image", "head", "kind", "label", "score", "x1", "y1", "x2", "y2", "area")


class Writer:
    """One flat table; `area` is in pixels, boxes are xyxy in pixels."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @contextmanager
    def writing(self, journal: Journal) -> Iterator[Add]:
        """See RunWriter."""
        with (
            journal.placing("predictions.csv") as part,
            part.open("w", encoding="utf-8", newline="") as file,
        ):
            table = csv.writer(file)
            table.writerow(COLUMNS)

            def add(number: int, result: ImageResult) -> None:  # noqa: ARG001  # every writer's signature
                for row in result.rows:
                    table.writerows((result.image, row.head, row.kind, *line) for line in _lines(row))

            yield add


def _lines(row: Row) -> Iterator[tuple[Any, ...]]:
    if row.kind == "mask":
        yield from ((label, "", "", "", "", "", area) for label, area in zip(row.labels, row.areas, strict=True))
        return
    for at, (label, score) in enumerate(zip(row.labels, row.scores, strict=True)):
        box = [round(v, 2) for v in row.boxes[at]] if row.boxes else [""] * 4
        yield label, round(score, 6), *box, ""
