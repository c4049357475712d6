"""`--format jsonl`: predictions.jsonl, a line for each image with all heads' answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serving.batch.journal import Journal
from serving.batch.rows import ImageResult, Row
from serving.batch.writers.base import Add, Context

NAME = "predictions.jsonl"


class Writer:
    """JSON lines; images without an answer stand in errors.jsonl."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @contextmanager
    def writing(self, journal: Journal) -> Iterator[Add]:
        """See RunWriter."""
        with journal.placing(NAME) as part, part.open("w", encoding="utf-8") as file:

            def add(number: int, result: ImageResult) -> None:  # noqa: ARG001  # every writer's signature
                if result.failure is None:
                    file.write(json.dumps(line_of(result), ensure_ascii=False, separators=(",", ":")) + "\n")

            yield add


def line_of(result: ImageResult) -> dict[str, Any]:
    """An image's answers as plain values."""
    height, width = result.size
    return {
        "image": result.image,
        "width": width,
        "height": height,
        "heads": {row.head: plain_answer(row) for row in result.rows},
    }


def plain_answer(row: Row) -> dict[str, Any]:
    """One head's answer: labels with scores, boxes, or run lengths; scores to 6 and pixels to 2 places."""
    if row.kind == "boxes":
        found = zip(row.labels, row.scores, row.boxes, strict=True)
        boxes = [{"label": n, "score": round(s, 6), "box": [round(v, 2) for v in box]} for n, s, box in found]
        return {"kind": row.kind, "boxes": boxes}
    if row.kind == "mask":
        size = [row.height, row.width]
        found_classes = zip(row.labels, row.areas, row.counts, strict=True)
        return {
            "kind": row.kind,
            "classes": [
                {"label": name, "area": area, "rle": {"size": size, "counts": counts}}
                for name, area, counts in found_classes
            ],
        }
    return {
        "kind": row.kind,
        "labels": row.labels,
        "scores": [round(score, 6) for score in row.scores],
        "probabilities": [round(value, 6) for value in row.probabilities],
    }
