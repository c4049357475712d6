"""Pixels into the network's frame: the same code for training's evaluation and for serving."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.imaging.geometry import FILL, Letterbox


def letterbox_image(
    pixels: NDArray[np.uint8], frame: Letterbox, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Pixels (h, w, 3) placed as the frame says, on grey (H, W, 3), which is `out` where that is given."""
    shrinks = frame.inner[0] < pixels.shape[0]
    return place(pixels, frame, FILL, cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR, out)


def place(plane: NDArray[Any], frame: Letterbox, fill: int, how: int, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """A plane (h, w[, 3]) resized to the frame's inner size, on a ground of `fill` of its target size, written to `out`."""
    inner = plane if plane.shape[:2] == frame.inner else cv2.resize(plane, frame.inner[::-1], interpolation=how)
    if frame.inner == frame.target and out is None:
        return np.ascontiguousarray(inner)
    out = np.empty((*frame.target, *plane.shape[2:]), plane.dtype) if out is None else out
    bottom, right = frame.top + frame.inner[0], frame.left + frame.inner[1]
    out[: frame.top] = out[bottom:] = fill
    out[frame.top : bottom, : frame.left] = out[frame.top : bottom, right:] = fill
    out[frame.top : bottom, frame.left : right] = inner
    return out
