"""Answers as plain values for JSON: names instead of indices, boxes as numbers, masks in the form asked for."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.bundle import HeadSpec
from serving.answers import Answer, BoxAnswer, HeadAnswer, LabelAnswer, MaskAnswer


def render_answer(answer: Answer, heads: Mapping[str, HeadSpec], masks: str) -> dict[str, Any]:
    """All heads' answers by name; `masks` is one of schemas.MASK_FORMS."""
    return {name: _render_head(found, heads[name], masks) for name, found in answer.heads.items()}


def _render_head(found: HeadAnswer, head: HeadSpec, masks: str) -> dict[str, Any]:
    names = head.classes
    if isinstance(found, LabelAnswer):
        return {
            "kind": head.kind,
            "labels": [names[index] for index in found.chosen],
            "probabilities": [
                {"class": name, "probability": round(float(value), 5)}
                for name, value in zip(names, found.probabilities, strict=True)
            ],
        }
    if isinstance(found, BoxAnswer):
        return {"kind": "boxes", "threshold": head.threshold, "boxes": _boxes(found, names)}
    height, width = found.size
    common = {"kind": "mask", "size": {"height": height, "width": width}}
    if masks == "png":
        return {**common, "classes": list(names), "png": base64.b64encode(_png(found.mask)).decode()}
    regions = _polygons(found.mask, names) if masks == "polygons" else _rle(found, names)
    return {**common, "classes": list(names), "regions": regions}


def _boxes(found: BoxAnswer, names: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True)
    return [
        {
            "class": names[index],
            "class_id": index,
            "score": round(score, 5),
            "box": [round(side, 2) for side in box],
        }
        for box, score, index in rows
    ]


def _rle(found: MaskAnswer, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Of every class that occurs, without the background, class 0."""
    return [
        {
            "class": names[index],
            "class_id": index,
            "pixels": pixels,
            "rle": {"size": list(found.size), "counts": counts},
        }
        for index, (pixels, counts) in found.runs.encoded().items()
        if index > 0
    ]


def _polygons(mask: NDArray[np.uint8], names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Of every class that occurs, without the background, class 0."""
    present = np.flatnonzero(np.bincount(mask.reshape(-1), minlength=1)).tolist()
    return [_polygon(mask, index, names) for index in present if index > 0]


def _polygon(mask: NDArray[np.uint8], index: int, names: tuple[str, ...]) -> dict[str, Any]:
    plane = (mask == index).astype(np.uint8)
    contours, tree = cv2.findContours(plane, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings: dict[int, dict[str, Any]] = {}
    for number, contour in enumerate(contours):
        ring = contour.reshape(-1).tolist()
        parent = int(tree[0][number][3])
        if parent < 0:
            rings.setdefault(number, {"outer": [], "holes": []})["outer"] = ring
        else:
            rings.setdefault(parent, {"outer": [], "holes": []})["holes"].append(ring)
    return {
        "class": names[index],
        "class_id": index,
        "pixels": int(np.count_nonzero(plane)),
        "polygons": list(rings.values()),
    }


def _png(mask: NDArray[np.uint8]) -> bytes:
    return bytes(cv2.imencode(".png", mask, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1])
