"""The Open Inference Protocol in words for the OpenAPI document: its paths' parameters, requests and answers."""

from __future__ import annotations

from typing import Any

from serving.schemas import BINARY, DEADLINE, problems

_STRING = {"type": "string"}
_NAME = {"name": "name", "in": "path", "required": True, "description": "of the model, as /model tells"}
_VERSION = {"name": "version", "in": "path", "required": True, "description": "that answers now; any other is a 404"}

ONE_MODEL: dict[str, Any] = {"parameters": [{**_NAME, "schema": _STRING}]}
"""A path that names a model."""

ONE_VERSION: dict[str, Any] = {"parameters": [*ONE_MODEL["parameters"], {**_VERSION, "schema": _STRING}]}
"""A path that names a model and its version."""

_SHAPE = {"type": "array", "items": {"type": "integer", "minimum": 1}}
_PARAMETERS = {
    "type": "object",
    "description": "`binary_data_size`, `binary_data`, as the binary tensor extension says",
}
_INPUT = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {**_STRING, "description": "the network's own input (pixels), or `encoded` (pictures)"},
        "shape": _SHAPE,
        "datatype": {**_STRING, "enum": ["UINT8", "BYTES"]},
        "data": {"type": "array", "description": "pixels row by row, or pictures as base64", "items": {}},
        "parameters": _PARAMETERS,
    },
}
_REQUEST = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {**_STRING, "maxLength": 200},
        "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": _INPUT},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": _STRING, "parameters": _PARAMETERS},
            },
        },
        "parameters": {"type": "object", "properties": {"binary_data_output": {"type": "boolean"}}},
    },
}
_EXAMPLE = {"inputs": [{"name": "encoded", "shape": [1], "datatype": "BYTES", "data": ["iVBORw0KGgo…"]}]}


def infer_request(place: dict[str, Any]) -> dict[str, Any]:
    """What /infer takes, under ONE_MODEL or ONE_VERSION."""
    length = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "description": "bytes of the JSON, where binary tensors follow it",
        "schema": {"type": "integer", "minimum": 0},
    }
    content = {
        "application/json": {"schema": _REQUEST, "example": _EXAMPLE},
        "application/octet-stream": {"schema": BINARY},
    }
    return {
        "parameters": [*place["parameters"], length, DEADLINE],
        "requestBody": {"required": True, "description": "JSON, then binary tensors if any.", "content": content},
    }


_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {"name": _STRING, "shape": _SHAPE, "datatype": _STRING, "data": {"type": "array", "items": {}}},
}
_ANSWER = {
    "type": "object",
    "required": ["model_name", "model_version", "outputs"],
    "properties": {
        "model_name": _STRING,
        "model_version": _STRING,
        "id": _STRING,
        "outputs": {"type": "array", "items": _TENSOR},
    },
}

INFER_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The outputs asked for; binary tensors behind the JSON where `binary_data` was.",
        "content": {"application/json": {"schema": _ANSWER}, "application/octet-stream": {"schema": BINARY}},
    },
    **problems(400, 401, 404, 408, 413, 415, 422, 429, 500, 503, 504, oip=True),
}
"""What /infer answers."""

MODEL_RESPONSES = problems(401, 404, 503, oip=True)
"""What a path that names a model answers where it cannot."""
