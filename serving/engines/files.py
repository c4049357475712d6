"""What a model file may hold: no tensors in other files, no pickles in place of weights."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import BundleError

_GRAPH = 7
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
"""Field numbers of onnx.proto: ModelProto.graph; TensorProto.external_data and .data_location."""

_INNER: dict[str, dict[int, str]] = {
    "model": {_GRAPH: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
"""Where tensors may lie: by message, its fields (by number) that hold messages which hold tensors."""


def require_self_contained(data: bytes, path: Path) -> None:
    """Raises BundleError for bytes that are no ONNX model, or whose tensors lie in other files.

    Reads the protobuf wire format itself, so that serving needs no `onnx` package.
    """
    try:
        whole = memoryview(data)
        graphs = any(number == _GRAPH and isinstance(value, memoryview) for number, value in _fields(whole))
        outside = _leads_outside(whole, "model")
    except (IndexError, ValueError, RecursionError) as error:
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


def _leads_outside(message: memoryview, kind: str) -> bool:
    """Whether a tensor anywhere inside a message of a kind of `_INNER` lies in another file."""
    if kind == "tensor":
        return _is_external(message)
    inner = _INNER[kind]
    return any(
        number in inner and isinstance(value, memoryview) and _leads_outside(value, inner[number])
        for number, value in _fields(message)
    )


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
