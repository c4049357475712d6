"""The API in words for the OpenAPI document: what /predict takes and answers, with an example of each problem."""

from __future__ import annotations

from typing import Any

from serving.problems import KINDS, MEDIA_TYPE, Problem

MASK_FORMS = ("rle", "png", "polygons", "none")
"""COCO run lengths per class, one index PNG, polygons per class with their holes, or no mask."""

_SIZE = {"type": "object", "properties": {"width": {"type": "integer"}, "height": {"type": "integer"}}}
_STRING = {"type": "string"}
_NUMBER = {"type": "number"}

EXAMPLE: dict[str, Any] = {
    "model": {"name": "trifocal", "version": "3", "run_id": "5f3c…"},
    "engine": "onnxruntime:fp32",
    "request_id": "0b6a…",
    "milliseconds": 24.1,
    "images": [
        {
            "name": "street.jpg",
            "size": {"width": 640, "height": 480},
            "format": "JPEG",
            "notes": [],
            "milliseconds": {"decode": 1.9, "queue": 0.0, "engine": 20.3, "answer": 0.6},
            "heads": {
                "scene": {
                    "kind": "classes",
                    "labels": ["town"],
                    "probabilities": [
                        {"class": "town", "probability": 0.97},
                        {"class": "sea", "probability": 0.03},
                    ],
                },
                "objects": {
                    "kind": "boxes",
                    "threshold": 0.4,
                    "boxes": [{"class": "star", "class_id": 3, "score": 0.91, "box": [12.5, 40.0, 88.1, 120.6]}],
                },
                "surface": {
                    "kind": "mask",
                    "size": {"width": 640, "height": 480},
                    "classes": ["background", "road"],
                    "regions": [
                        {"class": "road", "class_id": 1, "pixels": 9, "rle": {"size": [480, 640], "counts": "mY1…"}}
                    ],
                },
            },
        },
        {"name": "notes.txt", "error": Problem("unsupported-format", "notes.txt: not an image of …").document()},
    ],
}
"""An answer to two pictures, the second of which was none."""

_IMAGE: dict[str, Any] = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": _STRING,
        "size": {**_SIZE, "description": "of the picture as it was sent, upright, in pixels"},
        "format": _STRING,
        "notes": {"type": "array", "items": _STRING},
        "milliseconds": {"type": "object", "additionalProperties": _NUMBER},
        "heads": {
            "type": "object",
            "description": "by head; boxes are x1, y1, x2, y2 in pixels of the picture as it was sent, upright",
            "additionalProperties": {"type": "object"},
        },
        "error": {"type": "object", "description": "in place of the answer: what is wrong with this picture"},
    },
}

_ANSWER: dict[str, Any] = {
    "type": "object",
    "required": ["model", "engine", "request_id", "milliseconds", "images"],
    "properties": {
        "model": {
            "type": "object",
            "properties": {"name": _STRING, "version": _STRING, "run_id": {"type": ["string", "null"]}},
        },
        "engine": _STRING,
        "request_id": _STRING,
        "milliseconds": _NUMBER,
        "images": {"type": "array", "items": _IMAGE},
    },
}

BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
"""Bytes as they are."""

DEADLINE: dict[str, Any] = {
    "name": "X-Deadline-Ms",
    "in": "header",
    "description": "milliseconds after which the answer is worthless",
    "schema": {"type": "integer", "minimum": 1, "maximum": 600_000},
}
"""The header that both interfaces take."""

_PROBLEM: dict[str, Any] = {
    "type": "object",
    "description": "RFC 9457: what is wrong, where, and what helps",
    "required": ["type", "title", "status", "detail", "remedy", "instance"],
    "properties": {
        "type": _STRING,
        "title": _STRING,
        "status": {"type": "integer"},
        "detail": _STRING,
        "remedy": _STRING,
        "instance": {**_STRING, "description": "the request id"},
    },
}

PREDICT_REQUEST: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One picture as the body, or any number as files of a form; the form may hold the options too.",
        "content": {
            "application/octet-stream": {"schema": BINARY},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"images": {"type": "array", "items": BINARY}}}
            },
        },
    },
    "parameters": [
        {"name": "heads", "in": "query", "description": "names, by comma; all without it", "schema": _STRING},
        {
            "name": "threshold",
            "in": "query",
            "description": "score from which boxes and labels count; each head's own without it",
            "schema": {"type": "number", "minimum": 0, "maximum": 1},
        },
        {
            "name": "masks",
            "in": "query",
            "description": "COCO run lengths, an index PNG, polygons with holes, or none",
            "schema": {"type": "string", "enum": list(MASK_FORMS), "default": "rle"},
        },
        DEADLINE,
    ],
}


MODEL_EXAMPLE: dict[str, Any] = {
    "name": "trifocal",
    "version": "3",
    "run_id": "5f3c…",
    "heads": {
        "objects": {
            "kind": "boxes",
            "classes": ["disc", "star"],
            "colours": [[242, 148, 61], [95, 61, 242]],
            "threshold": 0.4,
        }
    },
    "input": {"height": 320, "width": 320},
    "engine": {
        "spec": "onnxruntime:fp32",
        "engine": "onnxruntime 1.23.2",
        "device": "cpu",
        "threads": 1,
        "choice": "engine onnxruntime:fp32",
    },
    "provenance": {"data": {}, "code": {}},
}
"""What /model tells."""


def shown(example: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI response of a route that answers with such a JSON object."""
    content = {"application/json": {"schema": {"type": "object"}, "example": example}}
    return {200: {"description": "the answer", "content": content}}


def problems(*statuses: int, oip: bool = False) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses of some statuses, each kind of problem as an example; all statuses where none is named; `oip` as `document`."""
    found: dict[int | str, dict[str, Any]] = {}
    for name, kind in KINDS.items():
        if statuses and kind.status not in statuses:
            continue
        entry = found.setdefault(
            kind.status,
            {"description": kind.title, "content": {MEDIA_TYPE: {"schema": _PROBLEM, "examples": {}}}},
        )
        entry["content"][MEDIA_TYPE]["examples"][name] = {
            "value": Problem(name, "what exactly, and where").document("0b6a", oip)
        }
    return found


PREDICT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "An answer for each picture; with `Accept: image/png` or `image/jpeg` the annotated picture.",
        "content": {
            "application/json": {"schema": _ANSWER, "example": EXAMPLE},
            "image/png": {"schema": BINARY},
            "image/jpeg": {"schema": BINARY},
        },
    },
    **{status: entry for status, entry in problems().items() if status not in {404, 405, 499}},
}
