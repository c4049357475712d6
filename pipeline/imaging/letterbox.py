"""Pixels into the network's frame: the same code for training's evaluation and for serving."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.imaging.geometry import FILL, Letterbox


def letterbox_image(pixels: NDArray[np.uint8], frame: Letterbox) -> NDArray[np.uint8]:
    """Pixels (h, w, 3) placed as the frame says, on grey (H, W, 3)."""
    shrinks = frame.inner[0] < pixels.shape[0]
    return place(pixels, frame, FILL, cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def place(plane: NDArray[Any], frame: Letterbox, fill: int, how: int) -> NDArray[Any]:
    """A plane (h, w[, 3]) resized to the frame's inner size, on a ground of `fill` of its target size."""
    inner = plane if plane.shape[:2] == frame.inner else cv2.resize(plane, frame.inner[::-1], interpolation=how)
    if frame.inner == frame.target:
        return np.ascontiguousarray(inner)
    out = np.full((*frame.target, *plane.shape[2:]), fill, plane.dtype)
    out[frame.top : frame.top + frame.inner[0], frame.left : frame.left + frame.inner[1]] = inner
    return out
