"""Four images as one, boxes and masks together (Bochkovskiy et al. 2020, https://arxiv.org/abs/2004.10934)."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.imaging.geometry import FILL
from pipeline.labels import IGNORE_INDEX
from pipeline.records import Boxes, SampleLabel

Labels = dict[str, SampleLabel]
Loaded = tuple[NDArray[np.uint8], Labels]


def mosaic(tiles: list[Loaded], size: tuple[int, int], rng: np.random.Generator) -> Loaded:
    """Four loaded images about a random middle, on a canvas of twice `size`; the view crops and zooms afterwards.

    A field is labelled in the mosaic only if it is in all four; image labels are those of the largest tile's image,
    left out where the tiles disagree.
    """
    height, width = 2 * size[0], 2 * size[1]
    cy, cx = (int(rng.uniform(0.35, 0.65) * side) for side in (height, width))
    canvas = np.full((height, width, 3), FILL, np.uint8)
    shared = set.intersection(*(set(labels) for _, labels in tiles))
    masks = {n: np.full((height, width), IGNORE_INDEX, np.uint8) for n in shared if _is_mask(tiles[0][1][n])}
    parts: dict[str, list[Boxes]] = {n: [] for n in shared if isinstance(tiles[0][1][n], Boxes)}
    for number, (pixels, labels) in enumerate(tiles):
        zoom = min(size[0] / pixels.shape[0], size[1] / pixels.shape[1])
        h, w = round(pixels.shape[0] * zoom), round(pixels.shape[1] * zoom)
        # The tile's corner that touches the middle stays there; what reaches out of the canvas is cut.
        top, left = cy - h if number < 2 else cy, cx - w if number % 2 == 0 else cx
        rows, columns = slice(max(top, 0), min(top + h, height)), slice(max(left, 0), min(left + w, width))
        inner = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
        canvas[rows, columns] = cv2.resize(pixels, (w, h), interpolation=cv2.INTER_LINEAR)[inner]
        for name, plane in masks.items():
            label = labels[name]
            assert isinstance(label, np.ndarray)
            plane[rows, columns] = cv2.resize(label, (w, h), interpolation=cv2.INTER_NEAREST_EXACT)[inner]
        for name, found in parts.items():
            label = labels[name]
            assert isinstance(label, Boxes)
            moved = label.xyxy * np.asarray([w / pixels.shape[1], h / pixels.shape[0]] * 2, np.float32)
            found.append(label.moved((moved + np.asarray([left, top, left, top])).astype(np.float32)))
    out: Labels = {**masks, **{name: _join(found, (height, width)) for name, found in parts.items()}}
    for name in shared - set(out):
        first = tiles[0][1][name]
        if all(np.array_equal(np.asarray(first), np.asarray(labels[name])) for _, labels in tiles[1:]):
            out[name] = first
    return canvas, out


def _is_mask(label: SampleLabel) -> bool:
    return isinstance(label, np.ndarray) and label.ndim == 2


def _join(parts: list[Boxes], size: tuple[int, int]) -> Boxes:
    """All boxes, clipped to the canvas; slivers are left out."""
    xyxy = np.concatenate([part.xyxy for part in parts])
    limits = np.asarray([size[1], size[0], size[1], size[0]], np.float32)
    cut = np.clip(xyxy, 0, limits)
    area = (xyxy[:, 2:] - xyxy[:, :2]).prod(1)
    keep = (cut[:, 2:] - cut[:, :2]).prod(1) > np.maximum(0.2 * area, 4)
    whole = Boxes(
        cut.astype(np.float32),
        np.concatenate([part.classes for part in parts]),
        np.concatenate([part.crowd for part in parts]),
    )
    return whole.select(keep)
