"""Pixels into the network's frame, and masks back out of it: the same code for training's evaluation and for serving."""

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


def mask_to_source(probabilities: NDArray[np.float32], frame: Letterbox) -> NDArray[np.uint8]:
    """Class probabilities (C, H, W) in input pixels to class indices uint8 (h, w) in the full image's pixels.

    The probabilities are enlarged bilinearly and the largest wins, one class at a time to keep memory small. They sum to 1
    in each pixel, so the largest is at least 1 / C, and a class that nowhere comes near that is not enlarged at all.
    """
    inner = probabilities[:, frame.top : frame.top + frame.inner[0], frame.left : frame.left + frame.inner[1]]
    if frame.inner == frame.source:
        small: NDArray[np.uint8] = inner.argmax(0).astype(np.uint8)
        return small
    size = frame.source[::-1]
    inner = np.ascontiguousarray(inner)
    near = np.flatnonzero(inner.reshape(len(inner), -1).max(1) >= 0.9 / len(inner)).tolist() or [0]
    mask = np.full(frame.source, near[0], np.uint8)
    if len(near) == 1:
        return mask
    best = cv2.resize(inner[near[0]], size, interpolation=cv2.INTER_LINEAR)
    for index in near[1:]:
        plane = cv2.resize(inner[index], size, interpolation=cv2.INTER_LINEAR)
        # Classes come in rising order, so the higher number is the later winner: several times faster than assigning.
        cv2.max(mask, cv2.min(cv2.compare(plane, best, cv2.CMP_GT), index), dst=mask)
        cv2.max(best, plane, dst=best)
    return mask


def indices_to_source(mask: NDArray[np.uint8], frame: Letterbox) -> NDArray[np.uint8]:
    """Class indices (H, W) in input pixels to the nearest ones (h, w) in the full image's pixels."""
    inner = mask[frame.top : frame.top + frame.inner[0], frame.left : frame.left + frame.inner[1]]
    out: NDArray[np.uint8] = cv2.resize(inner, frame.source[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return out
