"""Boxes as they stand in label files, made safe: clipped to the image, empty ones dropped and told."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.data.formats.base import Problem
from pipeline.imaging.geometry import clip_boxes
from pipeline.records import Boxes


def safe_boxes(
    rows: list[list[float]],
    classes: list[int],
    size: tuple[int, int] | None,
    where: str,
    problems: list[Problem],
    crowd: list[bool] | None = None,
) -> Boxes:
    """Boxes xyxy in pixels of an image of (height, width), without those that hold nothing.

    Args:
        rows: xyxy per box.
        classes: class index per box.
        size: the image's, None where unknown (no clipping then).
        where: the label file, for messages.
        problems: told of every box that is dropped or cut.
        crowd: flags per box.
    """
    boxes = Boxes.of(rows, classes, crowd)
    finite: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(boxes.xyxy), axis=1)
    cut = boxes.xyxy if size is None else clip_boxes(boxes.xyxy, size)
    sides = cut[:, 2:] - cut[:, :2]
    whole = boxes.xyxy[:, 2:] - boxes.xyxy[:, :2]
    for i in range(len(boxes)):
        row = [round(float(v), 1) for v in boxes.xyxy[i]]
        if not finite[i]:
            problems.append(Problem("warning", "non-finite box", where, f"box {i + 1} {row}: dropped"))
        elif whole[i].min() <= 0:
            problems.append(Problem("warning", "zero-size box", where, f"box {i + 1} {row} has no area: dropped"))
        elif sides[i].min() <= 0:
            problems.append(Problem("warning", "box out of image", where, f"box {i + 1} {row} lies outside: dropped"))
        elif float(np.abs(cut[i] - boxes.xyxy[i]).max()) > 1.5:
            problems.append(Problem("warning", "box out of image", where, f"box {i + 1} {row} reaches out: cut"))
    keep = finite & (sides.min(1, initial=np.inf) > 0)
    return boxes.select(keep).moved(cut[keep])
