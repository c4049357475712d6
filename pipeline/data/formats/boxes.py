"""Boxes as they stand in label files, made safe: clipped to the image, empty and double ones dropped and told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.data.formats.base import Problem
from pipeline.imaging.geometry import clip_boxes
from pipeline.records import Boxes


def safe_boxes(
    rows: Sequence[Sequence[float]],
    classes: list[int],
    size: tuple[int, int] | None,
    where: str | list[str],
    problems: list[Problem],
    crowd: list[bool] | None = None,
) -> Boxes:
    """Boxes xyxy in pixels of an image of (height, width), without those that hold nothing.

    Args:
        rows: xyxy per box.
        classes: class index per box.
        size: the image's, None where unknown (no clipping then).
        where: the label file for messages, or the place of every box.
        problems: told of every box that is dropped or cut.
        crowd: flags per box.
    """
    if not rows:
        return Boxes.of([], [])
    boxes = Boxes.of([list(row) for row in rows], classes, crowd)
    finite = np.asarray(np.isfinite(boxes.xyxy).all(axis=1))
    cut = boxes.xyxy if size is None else clip_boxes(boxes.xyxy, size)
    # Too large for float32 is as good as infinite; the differences of such would warn.
    whole = np.where(finite[:, None], boxes.xyxy[:, 2:] - boxes.xyxy[:, :2], 0).min(1)
    left = np.where(finite[:, None], cut[:, 2:] - cut[:, :2], 0).min(1)
    reach = np.where(finite, np.abs(np.where(finite[:, None], cut - boxes.xyxy, 0)).max(1), 0)
    again = _repeated(boxes)
    for i in np.flatnonzero(~finite | (left <= 0) | (reach > 1.5) | again):
        row = [round(float(v), 1) for v in boxes.xyxy[i]]
        place = where if isinstance(where, str) else where[i]
        if not finite[i]:
            problems.append(Problem("error", "broken box", place, f"box {i + 1} {row}: not finite numbers"))
        elif whole[i] <= 0:
            problems.append(Problem("warning", "zero-size box", place, f"box {i + 1} {row} has no area: dropped"))
        elif left[i] <= 0:
            problems.append(Problem("warning", "box out of image", place, f"box {i + 1} {row} lies outside: dropped"))
        elif again[i]:
            problems.append(Problem("warning", "double box", place, f"box {i + 1} {row} stands there twice: dropped"))
        else:
            problems.append(Problem("warning", "box out of image", place, f"box {i + 1} {row} reaches out: cut"))
    keep = finite & (left > 0) & ~again
    return boxes.select(keep).moved(cut[keep])


def _repeated(boxes: Boxes) -> NDArray[np.bool_]:
    """Which boxes stand in the list before, with the same class and place."""
    rows = np.column_stack([boxes.classes, boxes.crowd, boxes.xyxy])
    first = np.unique(rows, axis=0, return_index=True)[1]
    out = np.ones(len(boxes), bool)
    out[first] = False
    return out
