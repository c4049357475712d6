"""Decoded, pre-shrunk images kept in memory, bounded in bytes."""

from __future__ import annotations

from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.records import ImageSource, MaskSource

Pixels = NDArray[np.uint8]
T = TypeVar("T")


class ImageCache:
    """Reads images shrunk to what training needs, and keeps them while there is room.

    Args:
        limit: most bytes kept (each loader worker keeps its own share); 0 keeps nothing.
        margin: kept images are this much larger than the input, so that zooming in still finds detail.
    """

    def __init__(self, limit: int, margin: float = 1.5) -> None:
        self.limit, self.margin, self.used = limit, margin, 0
        self._images: dict[tuple[str, int | None], tuple[Pixels, tuple[int, int]]] = {}
        self._masks: dict[tuple[str, str, tuple[int, int]], Pixels] = {}

    def read(self, image: ImageSource, side: int | None) -> tuple[Pixels, tuple[int, int]]:
        """Pixels (H, W, 3), longer side at most `side * margin` (full size where None), and the full (height, width)."""
        key = (image.name, side)
        if key in self._images:
            return self._images[key]
        if side is None:
            return image.read()
        longest = round(side * self.margin)
        pixels, full = image.read(longest)
        if max(pixels.shape) > longest:
            ratio = longest / max(pixels.shape[:2])
            target = (max(1, round(pixels.shape[1] * ratio)), max(1, round(pixels.shape[0] * ratio)))
            pixels = cv2.resize(pixels, target, interpolation=cv2.INTER_AREA)
        if self._fits(pixels):
            self._images[key] = (pixels, full)
        return pixels, full

    def read_mask(
        self, image: str, field: str, mask: MaskSource, full: tuple[int, int], size: tuple[int, int]
    ) -> Pixels:
        """The mask uint8 at `size`, read at the full size."""
        key = (image, field, size)
        if key in self._masks:
            return self._masks[key]
        plane: Pixels = mask.read(full)
        if size == full:
            return plane
        small: Pixels = cv2.resize(plane, size[::-1], interpolation=cv2.INTER_NEAREST)
        if self._fits(small):
            self._masks[key] = small
        return small

    def _fits(self, array: Pixels) -> bool:
        if self.used + array.nbytes > self.limit:
            return False
        self.used += array.nbytes
        return True
