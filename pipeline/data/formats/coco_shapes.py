"""COCO's `segmentation` and `bbox`: what is wrong with one, and the box that one stands for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def wrong_shape(shape: Any, size: tuple[int, int] | None) -> str | None:
    """What is wrong with polygons or an RLE of an image of (height, width), None when nothing is."""
    if isinstance(shape, dict):
        return _wrong_rle(shape, size)
    if not isinstance(shape, list) or not all(isinstance(ring, list) for ring in shape):
        return "neither a list of polygons nor an RLE"
    if any(len(ring) < 6 or len(ring) % 2 or not all(map(_is_number, ring)) for ring in shape):
        return "a polygon needs three or more points x, y"
    return None


def corners(box: Any, shape: Any) -> list[float] | None:
    """A box x, y, width, height as xyxy; from a shape that `wrong_shape` passed where there is none; else None."""
    if not box and isinstance(shape, list):
        xs, ys = [v for ring in shape for v in ring[0::2]], [v for ring in shape for v in ring[1::2]]
        return [min(xs), min(ys), max(xs), max(ys)]
    if not box and isinstance(shape, dict):
        return _rle_corners(shape)
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return None
    x, y, width, height = map(float, box)
    return [x, y, x + width, y + height]


def _wrong_rle(shape: dict[str, Any], size: tuple[int, int] | None) -> str | None:
    own, counts = shape.get("size"), shape.get("counts")
    if not isinstance(counts, (str, list)) or not isinstance(own, list):
        return "an RLE needs `size` and `counts`"
    if len(own) != 2 or not all(isinstance(side, int) and side > 0 for side in own):
        return f"an RLE's `size` is height and width, not {own}"
    if size is not None and tuple(own) != size:
        return f"an RLE of {own}, but the image is {list(size)} (height, width)"
    runs = _run_lengths(counts) if isinstance(counts, str) else counts
    # Decoders read past the end of runs that are too short, so this must be known before.
    if runs is None or not all(isinstance(run, int) and run >= 0 for run in runs):
        return "the run lengths are not whole numbers from 0"
    if sum(runs) != own[0] * own[1]:
        return f"the run lengths add up to {sum(runs)} pixels, the image has {own[0] * own[1]}"
    return None


def _run_lengths(text: str) -> list[int] | None:
    """The run lengths of COCO's compressed string, None where it is broken.

    Five bits a character, a sixth says that more follow; from the fourth on, differences to the last but one
    (rleToString of https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c).
    """
    codes = np.array([ord(letter) - 48 for letter in text], np.int64)
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    starts = np.flatnonzero(np.concatenate([[True], (codes[:-1] & 32) == 0]))
    place = np.arange(len(codes)) - np.repeat(starts, np.diff([*starts, len(codes)]))
    if place.max() > 6:
        return None
    values = np.add.reduceat((codes & 31) << (5 * place), starts)
    ends = np.concatenate([starts[1:], [len(codes)]]) - 1
    values -= np.where(codes[ends] & 16, np.int64(1) << (5 * (place[ends] + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return [int(value) for value in values]


def _rle_corners(shape: dict[str, Any]) -> list[float]:
    from pycocotools import mask as coco_mask

    packed = coco_mask.frPyObjects(shape, *shape["size"]) if isinstance(shape["counts"], list) else shape
    x, y, width, height = map(float, coco_mask.toBbox(packed))
    return [x, y, x + width, y + height]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
