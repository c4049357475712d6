"""What a model file may hold: no tensors in other files, no pickles in place of weights."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import BundleError

_GRAPH, _INITIALIZER, _NODE, _ATTRIBUTE = 7, 5, 1, 5
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH = 5, 6
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
"""Field numbers of onnx.proto: ModelProto.graph, GraphProto.initializer and .node, NodeProto.attribute, ..."""


def require_self_contained(data: bytes, path: Path) -> None:
    """Raises BundleError for bytes that are no ONNX model, or whose tensors lie in other files.

    Reads the protobuf wire format itself, so that serving needs no `onnx` package.
    """
    try:
        graphs = [value for number, value in _fields(memoryview(data)) if number == _GRAPH]
        outside = any(_leads_outside(graph) for graph in graphs if isinstance(graph, memoryview))
    except (IndexError, ValueError) as error:
        raise BundleError(f"{path} is not an ONNX model; export the bundle again") from error
    if not graphs:
        raise BundleError(f"{path} is not an ONNX model; export the bundle again")
    if outside:
        raise BundleError(f"{path} keeps its weights in another file, which a bundle must not; export it again")


def require_torchscript(data: bytes, path: Path) -> None:
    """Raises BundleError for bytes that are no TorchScript archive: a pickle, or a plain torch.save."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            inner = {name.split("/", 1)[-1] for name in archive.namelist()}
    except zipfile.BadZipFile:
        inner = set()
    if "data.pkl" not in inner or "constants.pkl" not in inner or not any(n.startswith("code/") for n in inner):
        raise BundleError(f"{path} is not a TorchScript file (a pickle in its place is not read); export it again")


def _leads_outside(graph: memoryview) -> bool:
    for number, value in _fields(graph):
        if not isinstance(value, memoryview):
            continue
        if number == _INITIALIZER and _is_external(value):
            return True
        if number == _NODE:
            for inner, attribute in _fields(value):
                if inner == _ATTRIBUTE and isinstance(attribute, memoryview) and _attribute_leads_outside(attribute):
                    return True
    return False


def _attribute_leads_outside(attribute: memoryview) -> bool:
    for number, value in _fields(attribute):
        if isinstance(value, memoryview):
            if number == _ATTRIBUTE_TENSOR and _is_external(value):
                return True
            if number == _ATTRIBUTE_GRAPH and _leads_outside(value):
                return True
    return False


def _is_external(tensor: memoryview) -> bool:
    return any(
        number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value == 1) for number, value in _fields(tensor)
    )


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """(field number, value) of a protobuf message; bytes and sub-messages as views, numbers as int."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
        elif wire == 2:
            length, at = _varint(message, at)
            if at + length > end:
                raise ValueError("truncated message")
            yield number, message[at : at + length]
            at += length
        elif wire in {1, 5}:
            at += 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("varint too long")
