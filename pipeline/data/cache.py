"""Decoded, pre-shrunk images kept in memory and, where asked, on disk; both bounded in bytes."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.data.disk_cache import DiskCache, file_key
from pipeline.records import FileImage, ImageSource, MaskSource

Pixels = NDArray[np.uint8]


class ImageCache:
    """Reads images shrunk to what training needs, and keeps them while there is room.

    Args:
        limit: most bytes kept in memory (each loader worker keeps its own share); 0 keeps nothing.
        disk: keeps images of files between runs; None keeps none.
        margin: kept images are this much larger than the input, so that zooming in still finds detail.
    """

    def __init__(self, limit: int, disk: DiskCache | None = None, margin: float = 1.5) -> None:
        self.limit, self.disk, self.margin, self.used = limit, disk, margin, 0
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
        pixels, full = self._stored(image, longest)
        if self._fits(pixels):
            self._images[key] = (pixels, full)
        return pixels, full

    def _stored(self, image: ImageSource, longest: int) -> tuple[Pixels, tuple[int, int]]:
        """The shrunk image from disk, else decoded and stored; both sizes stand in 16 bytes before the pixels."""
        if self.disk is None or not isinstance(image, FileImage):
            return _shrunk(image, longest)
        try:
            key = f"{file_key(image.path)}|{longest}"
        except OSError:
            return _shrunk(image, longest)  # which says why it cannot be read
        if (found := self.disk.get(key)) is not None and found.ndim == 1:
            height, width, full_height, full_width = (int(v) for v in found[:16].view(np.uint32))
            return found[16:].reshape(height, width, 3), (full_height, full_width)
        pixels, full = _shrunk(image, longest)
        head = np.asarray([*pixels.shape[:2], *full], np.uint32).view(np.uint8)
        self.disk.put(key, np.concatenate([head, pixels.reshape(-1)]))
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
        small: Pixels = cv2.resize(plane, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        if self._fits(small):
            self._masks[key] = small
        return small

    def _fits(self, array: Pixels) -> bool:
        if self.used + array.nbytes > self.limit:
            return False
        self.used += array.nbytes
        return True


def _shrunk(image: ImageSource, longest: int) -> tuple[Pixels, tuple[int, int]]:
    """Pixels with a longer side of at most `longest`, and the full (height, width); raises ImageError."""
    pixels, full = image.read(longest)
    if max(pixels.shape) > longest:
        ratio = longest / max(pixels.shape[:2])
        target = (max(1, round(pixels.shape[1] * ratio)), max(1, round(pixels.shape[0] * ratio)))
        pixels = cv2.resize(pixels, target, interpolation=cv2.INTER_AREA)
    return pixels, full
