"""`--crops`: crops/HEAD/CLASS/IMAGE_NUMBER.jpg, what lies in each box."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from serving.answers import Answer, BoxAnswer
from serving.batch.names import inside, one_part
from serving.batch.picture import Picture, jpeg
from serving.batch.plan import Item
from serving.batch.writers.base import Context


class Writer:
    """JPEG of whole pixels that the box touches; numbers follow the boxes' order, from 0."""

    def __init__(self, context: Context) -> None:
        self._heads = context.manifest.heads
        self._thresholds = context.thresholds

    def files(self, item: Item, answer: Answer, picture: Picture) -> Iterator[tuple[bytes, bytes]]:
        """See ImageWriter."""
        height, width = answer.size
        for name, found in answer.heads.items():
            if not isinstance(found, BoxAnswer):
                continue
            for number in np.flatnonzero(found.scores >= self._thresholds[name]):
                x1, y1, x2, y2 = found.boxes[number].tolist()
                left, top = min(int(x1), width - 1), min(int(y1), height - 1)
                right, bottom = max(left + 1, -int(-x2 // 1)), max(top + 1, -int(-y2 // 1))
                data = jpeg(picture.crop(left, top, min(right, width), min(bottom, height)))
                label = self._heads[name].classes[int(found.classes[number])]
                folder = f"crops/{one_part(name)}/{one_part(label)}/".encode()
                yield folder + inside(item.base) + f"_{number}.jpg".encode(), data
