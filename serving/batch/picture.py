"""An encoded image whose pixels are decoded when a writer first asks for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.imaging.decode import MAX_PIXELS
from serving.batch.regions import Regions, open_regions

JPEG_SIDE = 65_500
"""Pixels a side that an encoder of JPEG takes."""

BLOCK = 2048
"""Side of the squares in which a picture too large for memory is read to be shrunk."""


@dataclass(slots=True)
class Picture:
    """One image for the writers; used by one thread at a time.

    Attributes:
        name: for messages.
        content: the encoded bytes, None where the file was not read.
        path: the file, None where there is none on this machine.
        opened: its pixels where they are at hand already.
    """

    name: str
    content: bytes | None
    path: Path | None = None
    opened: Regions | None = None

    @property
    def regions(self) -> Regions:
        """The picture by rectangle; raises ImageError."""
        if self.opened is None:
            self.opened = open_regions(self.content, self.name, self.path)
        return self.opened

    def crop(self, left: int, top: int, right: int, bottom: int) -> NDArray[np.uint8]:
        """RGB uint8 (bottom - top, right - left, 3); raises ImageError."""
        return self.regions.crop(left, top, right, bottom)

    def pixels(self, most: int = MAX_PIXELS) -> tuple[NDArray[np.uint8], int]:
        """Upright RGB uint8 (h, w, 3), and by which whole number it was shrunk so as to have at most `most` pixels."""
        height, width = self.regions.size
        shrink = 1
        while height * width > most * shrink * shrink:
            shrink += 1
        if shrink == 1:
            return self.crop(0, 0, width, height), 1
        out = np.zeros((max(1, height // shrink), max(1, width // shrink), 3), np.uint8)
        step = max(1, BLOCK // shrink)
        for top in range(0, out.shape[0], step):
            for left in range(0, out.shape[1], step):
                part = out[top : top + step, left : left + step]
                right, bottom = (left + part.shape[1]) * shrink, (top + part.shape[0]) * shrink
                block = self.crop(left * shrink, top * shrink, min(right, width), min(bottom, height))
                part[:] = cv2.resize(block, part.shape[1::-1], interpolation=cv2.INTER_AREA)
        return out, shrink


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """RGB uint8 (h, w, 3) as JPEG; shrunk where a side is longer than the format holds."""
    height, width = pixels.shape[:2]
    if max(height, width) > JPEG_SIDE:
        share = JPEG_SIDE / max(height, width)
        size = max(1, int(width * share)), max(1, int(height * share))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    data = cv2.imencode(".jpg", np.ascontiguousarray(pixels[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    return data.tobytes()
