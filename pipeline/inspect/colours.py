"""Numbers as pictures: maps in grey or in colours, laid over images, enlarged to be seen."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.imaging.draw import zoom_factors

Pixels = NDArray[np.uint8]


def grey(values: NDArray[Any]) -> Pixels:
    """A map (H, W), its smallest value black and its largest white: RGB uint8 (H, W, 3)."""
    return np.repeat((255 * stretched(values)).astype(np.uint8)[..., None], 3, 2)


def heat(values: NDArray[Any]) -> Pixels:
    """A map (H, W) of 0 to 1 in viridis, dark to bright: RGB uint8 (H, W, 3)."""
    painted = cv2.applyColorMap((255 * np.clip(values, 0, 1)).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    return np.ascontiguousarray(painted[..., ::-1], np.uint8)


def overlay(image: Pixels, values: NDArray[Any], strength: float = 0.55) -> Pixels:
    """The image (H, W, 3) with a map of 0 to 1 of its size over it, the more to be seen the higher."""
    share = strength * np.clip(values, 0, 1)[..., None]
    painted = cv2.applyColorMap((255 * np.clip(values, 0, 1)).astype(np.uint8), cv2.COLORMAP_JET)[..., ::-1]
    out: Pixels = (image * (1 - share) + painted * share).astype(np.uint8)
    return out


def stretched(values: NDArray[Any]) -> NDArray[np.float32]:
    """Values moved to 0 to 1 by their own smallest and largest; all 0 where they are all alike."""
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.zeros(values.shape, np.float32)
    out: NDArray[np.float32] = ((values - low) / (high - low)).astype(np.float32)
    return out


def enlarged(image: NDArray[Any], least: int) -> NDArray[Any]:
    """An image (H, W, 3) or map (H, W) by whole factors that make it about `least` pixels, as `zoom_factors` chooses them."""
    down, across = zoom_factors(image.shape[0], image.shape[1], least)
    return np.repeat(np.repeat(image, down, 0), across, 1)
