"""Letterbox, and box maths between frames: the one place where coordinates move."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FILL = 114
"""Grey of the letterbox's border, 0 to 255."""


@dataclass(frozen=True, slots=True)
class Letterbox:
    """How a full image lies in a network input: resized to `inner`, placed at (`left`, `top`), the rest grey.

    Sizes are (height, width), all in pixels. `inner` is the resized image before padding.
    """

    source: tuple[int, int]
    target: tuple[int, int]
    inner: tuple[int, int]
    top: int
    left: int

    @classmethod
    def fit(cls, source: tuple[int, int], target: tuple[int, int]) -> Letterbox:
        """The largest placement of `source` in `target` that keeps the aspect ratio, centred; may enlarge."""
        scale = min(target[0] / source[0], target[1] / source[1])
        height = min(target[0], max(1, round(source[0] * scale)))
        width = min(target[1], max(1, round(source[1] * scale)))
        return cls(source, target, (height, width), (target[0] - height) // 2, (target[1] - width) // 2)

    @property
    def scale(self) -> tuple[float, float]:
        """Input pixels per source pixel, (x, y)."""
        return self.inner[1] / self.source[1], self.inner[0] / self.source[0]

    def to_input(self, xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Boxes (N, 4) in source pixels to input pixels."""
        x, y = self.scale
        moved = xyxy * np.asarray([x, y, x, y], np.float32)
        return moved + np.asarray([self.left, self.top, self.left, self.top], np.float32)

    def to_source(self, xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Boxes (N, 4) in input pixels to source pixels, clipped to the source image."""
        x, y = self.scale
        moved = xyxy - np.asarray([self.left, self.top, self.left, self.top], np.float32)
        return clip_boxes((moved / np.asarray([x, y, x, y], np.float32)).astype(np.float32), self.source)


def clip_boxes(xyxy: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Boxes (N, 4) in pixels cut at the borders of an image of (height, width)."""
    height, width = size
    limits = np.asarray([width, height, width, height], np.float32)
    return np.clip(xyxy, 0, limits).astype(np.float32)
