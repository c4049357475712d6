"""`--format yolo`: yolo/HEAD/IMAGE.txt, a line `class x y width height score` for each box, as shares of the image."""

from __future__ import annotations

from collections.abc import Iterator

from serving.answers import Answer, BoxAnswer
from serving.batch.names import inside, one_part
from serving.batch.picture import Picture
from serving.batch.plan import Item
from serving.batch.writers.base import Context


class Writer:
    """x and y are the box's centre; an image without boxes gets an empty file."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def files(self, item: Item, answer: Answer, picture: Picture) -> Iterator[tuple[bytes, bytes]]:  # noqa: ARG002
        """See ImageWriter."""
        height, width = answer.size
        for name, found in answer.heads.items():
            if not isinstance(found, BoxAnswer):
                continue
            lines = []
            for (x1, y1, x2, y2), score, kind in zip(
                found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True
            ):
                place = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
                lines.append(f"{kind} {' '.join(f'{v:.6f}' for v in place)} {score:.6f}\n")
            yield b"yolo/" + one_part(name).encode() + b"/" + inside(item.base) + b".txt", "".join(lines).encode()


def once(context: Context) -> Iterator[tuple[str, bytes]]:
    """The class names of each head, by number."""
    for name, head in context.manifest.heads.items():
        if head.kind == "boxes":
            yield f"yolo/{one_part(name)}.names", "".join(f"{label}\n" for label in head.classes).encode()
