"""Answers and labels drawn over their image: boxes with names, masks, image labels; and sheets of such pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.labels import IGNORE_INDEX, LabelSpace

Pixels = NDArray[np.uint8]
_FONT = cv2.FONT_HERSHEY_SIMPLEX

LONGEST = 4096
"""Pixels to which a small picture's longer side is enlarged at most: one of a single row would become thousands high."""


def draw_answer(
    image: Pixels, answer: Mapping[str, Mapping[str, Any]], spaces: Mapping[str, LabelSpace], threshold: float = 0.4
) -> Pixels:
    """One image with every head's answer over it, enlarged to at least 256 pixels but no longer side beyond LONGEST.

    Args:
        image: RGB uint8 (H, W, 3).
        answer: by head: `probabilities` (C,); `boxes` (K, 4), `scores` (K,), `classes` (K,); `mask` (H, W); or `image`
            (3, H, W), pixels that are drawn in the picture's place.
        spaces: by head.
        threshold: boxes below this score are left out.
    """
    for columns in answer.values():
        if "image" in columns:
            image = np.ascontiguousarray(np.asarray(columns["image"]).astype(np.uint8).transpose(1, 2, 0))
    zoom = max(1, min(-(-256 // min(image.shape[:2])), LONGEST // max(image.shape[:2])))
    canvas = np.repeat(np.repeat(image, zoom, 0), zoom, 1)
    texts = []
    for name, columns in answer.items():
        space = spaces[name]
        if "mask" in columns:
            mask = np.asarray(columns["mask"]).astype(np.uint8)
            canvas = draw_mask(canvas, np.repeat(np.repeat(mask, zoom, 0), zoom, 1), space)
        elif "probabilities" in columns:
            values = np.asarray(columns["probabilities"])
            texts.append(f"{space.names[int(values.argmax())]} {values.max():.2f}")
    for name, columns in answer.items():
        if "boxes" in columns:
            keep = np.asarray(columns["scores"]) >= threshold
            boxes = np.asarray(columns["boxes"])[keep] * zoom
            canvas = draw_boxes(
                canvas, boxes, np.asarray(columns["classes"])[keep], spaces[name], np.asarray(columns["scores"])[keep]
            )
    return write_text(canvas, ", ".join(texts), (4, 14)) if texts else canvas


def draw_mask(image: Pixels, mask: Pixels, space: LabelSpace, strength: float = 0.4) -> Pixels:
    """The image (H, W, 3) tinted by class; class 0 and ignored pixels stay as they are."""
    table = np.zeros((256, 3), np.float32)
    table[: len(space.names)] = space.colours
    painted = ((mask > 0) & (mask != IGNORE_INDEX))[..., None]
    return np.where(painted, image * (1 - strength) + table[mask] * strength, image).astype(np.uint8)


def draw_boxes(
    image: Pixels, boxes: NDArray[Any], classes: NDArray[Any], space: LabelSpace, scores: NDArray[Any] | None = None
) -> Pixels:
    """The image with xyxy boxes (N, 4) in its pixels, each with its class name and score."""
    out = np.ascontiguousarray(image.copy())
    for i, (box, kind) in enumerate(zip(boxes, classes, strict=True)):
        x1, y1, x2, y2 = (round(float(v)) for v in box)
        colour = space.colours[int(kind)]
        cv2.rectangle(out, (x1, y1), (x2, y2), colour, 1, cv2.LINE_AA)
        text = space.names[int(kind)] + ("" if scores is None else f" {float(scores[i]):.2f}")
        out = write_text(out, text, (x1, max(10, y1 - 3)), colour)
    return out


def write_text(image: Pixels, text: str, at: tuple[int, int], colour: tuple[int, int, int] = (255, 255, 255)) -> Pixels:
    """Small text with a dark edge at (x, y); characters beyond Latin-1 become question marks."""
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(image, plain, at, _FONT, 0.38, (0, 0, 0), 3, cv2.LINE_AA)
    cv2.putText(image, plain, at, _FONT, 0.38, colour, 1, cv2.LINE_AA)
    return image


def sheet(tiles: list[Pixels], columns: int) -> Pixels:
    """Pictures of any sizes side by side on grey, in rows of `columns`."""
    height, width = max(t.shape[0] for t in tiles), max(t.shape[1] for t in tiles)
    rows = -(-len(tiles) // columns)
    out = np.full((rows * (height + 4), columns * (width + 4), 3), 90, np.uint8)
    for i, tile in enumerate(tiles):
        y, x = (i // columns) * (height + 4), (i % columns) * (width + 4)
        out[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    return out


def write_png(path: Path, image: Pixels) -> None:
    """Writes RGB uint8 through a temporary file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ok, data = cv2.imencode(".png", image[..., ::-1])
    if not ok:
        raise OSError(f"{path}: cannot be encoded as PNG")
    part = path.with_suffix(".part")
    part.write_bytes(data.tobytes())
    os.replace(part, path)  # noqa: PTH105  # the standard name for an atomic rename
