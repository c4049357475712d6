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

FEW = 12
"""Boxes of one head that are all named."""


def draw_answer(
    image: Pixels, answer: Mapping[str, Mapping[str, Any]], spaces: Mapping[str, LabelSpace], threshold: float = 0.4
) -> Pixels:
    """One image with every head's answer over it, small ones enlarged as `zoom_factors` says.

    Args:
        image: RGB uint8 (H, W, 3).
        answer: by head: `probabilities` (C,) and, where it is known which of them count, their indices `labels`;
            `boxes` (K, 4), `scores` (K,), `classes` (K,); `mask` (H, W); or `image` (3, H, W), pixels that are drawn in the
            picture's place.
        spaces: by head.
        threshold: boxes below this score are left out.
    """
    for columns in answer.values():
        if "image" in columns:
            image = np.ascontiguousarray(np.asarray(columns["image"]).astype(np.uint8).transpose(1, 2, 0))
    factors = zoom_factors(image.shape[0], image.shape[1], 256)
    canvas = _enlarged(image, factors)
    texts: list[str] = []
    for name, columns in answer.items():
        space = spaces[name]
        if "mask" in columns:
            mask = np.asarray(columns["mask"]).astype(np.uint8)
            canvas = draw_mask(canvas, _enlarged(mask, factors), space)
        elif "probabilities" in columns:
            values = np.asarray(columns["probabilities"])
            texts += [_named(space.names[index], values[index]) for index in _labels(columns, values, space)]
    for name, columns in answer.items():
        if "boxes" in columns:
            boxes, classes = np.asarray(columns["boxes"]), np.asarray(columns["classes"])
            boxes = boxes * (*factors[::-1], *factors[::-1])
            scores = np.asarray(columns["scores"])
            keep = scores >= threshold
            canvas = draw_boxes(canvas, boxes[keep], classes[keep], spaces[name], scores[keep])
    return _write_labels(canvas, texts) if texts else canvas


def _enlarged(plane: Pixels, factors: tuple[int, int]) -> Pixels:
    return plane if factors == (1, 1) else np.repeat(np.repeat(plane, factors[0], 0), factors[1], 1)


def _labels(columns: Mapping[str, Any], values: NDArray[Any], space: LabelSpace) -> list[int]:
    if "labels" in columns:
        return [int(index) for index in columns["labels"]]
    return np.flatnonzero(values >= 0.5).tolist() if space.kind == "multilabel" else [int(values.argmax())]


def zoom_factors(height: int, width: int, least: int) -> tuple[int, int]:
    """How often rows and columns are repeated so that the shorter side has `least` pixels, or the longer three times as many.

    Both are alike but for signals: their one row becomes a strip of a quarter of `least`.
    """
    short, long = min(height, width), max(height, width)
    factor = max(1, min(-(-least // short), 3 * least // long))
    strip = -(-least // (4 * short)) if short < 8 else factor
    return (max(factor, strip), factor) if height <= width else (factor, max(factor, strip))


def draw_mask(image: Pixels, mask: Pixels, space: LabelSpace, strength: float = 0.4) -> Pixels:
    """The image (H, W, 3) tinted by class; class 0 and ignored pixels stay as they are."""
    table = np.zeros((1, 256, 3), np.uint8)
    table[0, : len(space.names)] = space.colours
    painted = np.ones(256, np.uint8)
    painted[[0, IGNORE_INDEX]] = 0
    tinted = cv2.LUT(cv2.merge([mask] * 3), table)
    cv2.addWeighted(image, 1 - strength, tinted, strength, 0, tinted)
    drawn: Any = cv2.copyTo(tinted, cv2.LUT(mask, painted), image.copy())
    return np.asarray(drawn, np.uint8)


def draw_boxes(
    image: Pixels, boxes: NDArray[Any], classes: NDArray[Any], space: LabelSpace, scores: NDArray[Any] | None = None
) -> Pixels:
    """The image with xyxy boxes (N, 4) in its pixels, each with its class name and score.

    Among many boxes names would hide the picture: there only those are written that are no wider than their box.
    """
    out = np.ascontiguousarray(image.copy())
    scale = _scale(out)
    for i, (box, kind) in enumerate(zip(boxes, classes, strict=True)):
        x1, y1, x2, y2 = (round(float(v)) for v in box)
        colour = space.colours[int(kind)]
        cv2.rectangle(out, (x1, y1), (x2, y2), colour, round(scale), cv2.LINE_AA)
        text = _named(space.names[int(kind)], 1.0 if scores is None else float(scores[i]))
        if len(boxes) <= FEW or _text_size(out, text)[0] <= x2 - x1:
            _tag(out, text, (x1, y1), colour)
    return out


def _named(name: str, score: float) -> str:
    """A class with its score; what is certain, as labels are, has none."""
    return name if score == 1 else f"{name} {score:.2f}"


def _write_labels(image: Pixels, texts: list[str]) -> Pixels:
    """The image's own labels, one line each, in its lower left corner, where they hide no box's tag."""
    out, bottom = np.ascontiguousarray(image.copy()), image.shape[0]
    for text in reversed(texts):
        bottom = _tag(out, text, (0, bottom), (0, 0, 0))
    return out


def _scale(image: Pixels) -> float:
    """How much larger lines and letters are drawn, that they are seen when a large picture is shown small."""
    return max(1.0, float(max(image.shape[:2])) / 700)


def _tag(image: Pixels, text: str, at: tuple[int, int], colour: tuple[int, int, int]) -> int:
    """Text on a ground of its colour, from (x, lower edge) at or the nearest place inside; its upper edge."""
    scale = _scale(image)
    pad = round(2 * scale)
    width, height, below = _text_size(image, text)
    x = max(0, min(at[0], image.shape[1] - width - 2 * pad))
    bottom = max(height + below + pad, min(at[1], image.shape[0]))
    top: int = bottom - height - below - pad
    cv2.rectangle(image, (x, top), (x + width + 2 * pad, bottom), colour, cv2.FILLED)
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 110
    ink = (0, 0, 0) if bright else (255, 255, 255)
    cv2.putText(
        image, _plain(text), (x + pad, bottom - below), _FONT, 0.38 * scale, ink, _thickness(image), cv2.LINE_AA
    )
    return top


def _text_size(image: Pixels, text: str) -> tuple[int, int, int]:
    """Width, height and depth below the line of a text that `_tag` writes into the image."""
    (width, height), below = cv2.getTextSize(_plain(text), _FONT, 0.38 * _scale(image), _thickness(image))
    return width, height, below


def _thickness(image: Pixels) -> int:
    return max(1, round(0.8 * _scale(image)))


def _plain(text: str) -> str:
    return text.encode("ascii", "replace").decode()


def write_text(image: Pixels, text: str, at: tuple[int, int], colour: tuple[int, int, int] = (255, 255, 255)) -> Pixels:
    """Small text with a dark edge at (x, y); characters beyond Latin-1 become question marks."""
    plain = _plain(text)
    # The edge is the same letters moved: thicker ones are wider in some versions' fonts, and stand beside.
    for x, y in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        cv2.putText(image, plain, (at[0] + x, at[1] + y), _FONT, 0.38, (0, 0, 0), 1, cv2.LINE_AA)
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
