"""`--overlay`: overlay/IMAGE.jpg, the picture with its answers drawn over it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cv2

from pipeline.imaging.draw import draw_answer
from serving.answers import Answer, BoxAnswer, HeadAnswer, LabelAnswer
from serving.batch.names import inside
from serving.batch.picture import Picture, jpeg
from serving.batch.plan import Item
from serving.batch.writers.base import Context


class Writer:
    """JPEG; small pictures are enlarged so that the texts can be read, and those too large for memory shrunk."""

    def __init__(self, context: Context) -> None:
        self._spaces = context.manifest.spaces
        self._thresholds = context.thresholds

    def files(self, item: Item, answer: Answer, picture: Picture) -> Iterator[tuple[bytes, bytes]]:
        """See ImageWriter."""
        pixels, shrink = picture.pixels()
        size = pixels.shape[1], pixels.shape[0]
        heads = answer.heads.items()
        shown = {name: drawable(found, self._thresholds[name], shrink, size) for name, found in heads}
        drawn = draw_answer(pixels, shown, self._spaces, 0.0)
        yield b"overlay/" + inside(item.base) + b".jpg", jpeg(drawn)


def drawable(found: HeadAnswer, threshold: float, shrink: int, size: tuple[int, int]) -> dict[str, Any]:
    """A head's answer as `draw_answer` takes it, from the threshold on, for a picture shrunk to (width, height)."""
    if isinstance(found, LabelAnswer):
        return {"probabilities": found.probabilities, "labels": replace(found, threshold=threshold).chosen}
    if isinstance(found, BoxAnswer):
        keep = found.scores >= threshold
        return {"boxes": found.boxes[keep] / shrink, "scores": found.scores[keep], "classes": found.classes[keep]}
    return {"mask": found.mask if shrink == 1 else cv2.resize(found.mask, size, interpolation=cv2.INTER_NEAREST)}
