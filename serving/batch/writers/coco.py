"""`--format coco`: coco/HEAD.json for each head of boxes or masks, ready for pycocotools, and coco/images.json.

images.json tells which number is which image and category; a head of that name has images_.json. Where the labels are a
COCO JSON file, its numbers are used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any

from serving.batch.journal import Journal
from serving.batch.names import one_part
from serving.batch.rows import ImageResult, Row
from serving.batch.writers.base import Add, Context


class Writer:
    """Results as COCO's lists of objects, written as they come."""

    def __init__(self, context: Context) -> None:
        self._context = context
        heads = context.manifest.heads.items()
        self._heads = {name: head for name, head in heads if head.kind in {"boxes", "mask"}}

    @contextmanager
    def writing(self, journal: Journal) -> Iterator[Add]:
        """See RunWriter."""
        with ExitStack() as stack:
            lists = {name: _List(stack, journal, _file(name), "[", "]") for name in self._heads}
            tail = json.dumps(self._categories(), ensure_ascii=False)
            images = _List(stack, journal, "coco/images.json", '{"images":[', f'],"categories":{tail}}}')

            def add(number: int, result: ImageResult) -> None:
                if result.failure is not None:
                    return
                known = self._context.number
                key = number if known is None else known(result.image)
                if key is None:
                    return
                height, width = result.size
                images.add({"id": key, "file_name": result.image, "width": width, "height": height})
                for row in result.rows:
                    if row.head in lists:
                        for found in self._objects(row, key):
                            lists[row.head].add(found)

            yield add
            for each in (*lists.values(), images):
                each.end()

    def _category(self, head: str, index: int) -> int:
        """COCO's number of a class; one that the labels do not have comes after all of theirs."""
        known = self._context.categories or {}
        number = known.get(self._heads[head].classes[index])
        return max(known.values(), default=0) + index + 1 if number is None else number

    def _categories(self) -> list[dict[str, Any]]:
        return [
            {"id": self._category(head, index), "name": name, "supercategory": head}
            for head, spec in self._heads.items()
            for index, name in enumerate(spec.classes)
        ]

    def _objects(self, row: Row, image: int) -> Iterator[dict[str, Any]]:
        if row.kind == "boxes":
            for index, score, (x1, y1, x2, y2) in zip(row.classes, row.scores, row.boxes, strict=True):
                box = [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)]
                category = self._category(row.head, index)
                exact = float(f"{score:.9g}")  # rounded more, weak boxes would tie and precision differ
                yield {"image_id": image, "category_id": category, "bbox": box, "score": exact}
            return
        for index, counts in zip(row.classes, row.counts, strict=True):
            rle = {"size": [row.height, row.width], "counts": counts}
            category = self._category(row.head, index)
            yield {"image_id": image, "category_id": category, "segmentation": rle, "score": 1.0}


def _file(head: str) -> str:
    part = one_part(head)
    return f"coco/{part}_.json" if part == "images" else f"coco/{part}.json"


class _List:
    """A JSON array that is written element by element."""

    def __init__(self, stack: ExitStack, journal: Journal, name: str, head: str, tail: str) -> None:
        path = stack.enter_context(journal.placing(name))
        self._file: IO[str] = stack.enter_context(path.open("w", encoding="utf-8"))
        self._file.write(head)
        self._tail, self._comma = tail, ""

    def add(self, element: dict[str, Any]) -> None:
        self._file.write(self._comma + json.dumps(element, ensure_ascii=False, separators=(",", ":")))
        self._comma = ",\n"

    def end(self) -> None:
        self._file.write(self._tail)
