"""The Open Inference Protocol's messages (v2): bytes to a checked request, answers to bytes, JSON or binary tensors.

Pure functions of their arguments: no network, no model, no NumPy.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serving.headers import whole_number
from serving.problems import Problem

ENCODED, ANSWERS = "encoded", "answers"
"""The input of encoded pictures (BYTES), beside the network's own; the output of readable answers (BYTES of JSON)."""

DATATYPES = {
    "float32": "FP32",
    "float64": "FP64",
    "float16": "FP16",
    "int64": "INT64",
    "int32": "INT32",
    "uint8": "UINT8",
}
"""NumPy's names to the protocol's."""

_CODES = {"FP32": "f", "FP64": "d", "INT64": "q", "INT32": "i", "UINT8": "B"}
"""What the standard library's arrays call them; FP16 has none there, nor a form in JSON."""


@dataclass(frozen=True, slots=True)
class Output:
    """An output that was asked for."""

    name: str
    binary: bool


@dataclass(frozen=True, slots=True)
class Inference:
    """A checked request: either encoded pictures, or pixels (height, width, 3) of the network's size, one each."""

    request_id: str
    pictures: tuple[bytes, ...]
    encoded: bool
    outputs: tuple[Output, ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One output of a response: its values as little-endian bytes, or as strings where BYTES."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | Sequence[bytes]
    binary: bool


def parse_inference(
    body: bytes, header_length: str | None, input_name: str, size: tuple[int, int], outputs: Sequence[str], most: int
) -> Inference:
    """A request's body.

    Args:
        body: as it came.
        header_length: of `Inference-Header-Content-Length`, None where the body is JSON alone.
        input_name: of the network's pixels.
        size: (height, width) of the network's input.
        outputs: the network's, in order.
        most: pictures of a request.

    Raises:
        Problem: says what is wrong and where.
    """
    head, binary = _split(body, header_length)
    inputs = head.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise _bad(f"inputs must be a list of one tensor, {input_name!r} or {ENCODED!r}")
    tensor = inputs[0]
    name = tensor.get("name")
    if name == ENCODED:
        pictures = _encoded(tensor, binary, most)
    elif name == input_name:
        pictures = _pixels(tensor, binary, size, most)
    else:
        raise _bad(f"unknown input {str(name)[:60]!r}; known: {input_name}, {ENCODED}")
    request_id = head.get("id", "")
    if not isinstance(request_id, str) or len(request_id) > 200:
        raise _bad("id must be a string of at most 200 characters")
    wanted = _wanted(head, name == ENCODED, outputs)
    return Inference(request_id, pictures, name == ENCODED, wanted)


def write_response(head: dict[str, Any], tensors: Sequence[Tensor]) -> tuple[bytes, int | None]:
    """A response's body, and the length of its JSON where binary tensors follow it."""
    entries, buffers = [], []
    for tensor in tensors:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if tensor.binary:
            raw = tensor.data if isinstance(tensor.data, bytes) else b"".join(map(_with_length, tensor.data))
            entry["parameters"] = {"binary_data_size": len(raw)}
            buffers.append(raw)
        elif isinstance(tensor.data, bytes):
            entry["data"] = _numbers(tensor.datatype, tensor.data)
        else:
            entry["data"] = [part.decode() for part in tensor.data]
        entries.append(entry)
    text = json.dumps({**head, "outputs": entries}, separators=(",", ":")).encode()
    return b"".join((text, *buffers)), len(text) if buffers else None


def _split(body: bytes, header_length: str | None) -> tuple[dict[str, Any], bytes]:
    """The JSON head, and the bytes behind it."""
    length = len(body)
    if header_length is not None:
        told = whole_number(header_length)
        if told is None or told > len(body):
            raise _bad(f"Inference-Header-Content-Length is {header_length[:40]!r}, the body has {len(body)} bytes")
        length = told
    try:
        head = json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise _bad(f"the request's head is no JSON: {str(error)[:120]}") from error
    if not isinstance(head, dict):
        raise _bad("the request's head must be a JSON object")
    return head, body[length:]


def _tensor(tensor: dict[str, Any], datatype: str, rank: int) -> list[int]:
    """A tensor's shape, once its type and rank are as expected."""
    if tensor.get("datatype") != datatype:
        raise _bad(f"input {tensor['name']}: datatype must be {datatype}")
    shape = tensor.get("shape")
    if not isinstance(shape, list) or len(shape) != rank:
        raise _bad(f"input {tensor['name']}: shape must be a list of {rank} numbers")
    if not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in shape):
        raise _bad(f"input {tensor['name']}: the sides of a shape are whole numbers from 1 on")
    return shape


def _binary(tensor: dict[str, Any], binary: bytes) -> bytes | None:
    """The tensor's bytes behind the head; None where its data stands in the JSON."""
    parameters = tensor.get("parameters", {})
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is None:
        return None
    if not isinstance(size, int) or isinstance(size, bool) or size != len(binary):
        raise _bad(f"input {tensor['name']}: binary_data_size is {str(size)[:40]}, {len(binary)} bytes follow the head")
    return binary


def _pixels(tensor: dict[str, Any], binary: bytes, size: tuple[int, int], most: int) -> tuple[bytes, ...]:
    count, *sides = _tensor(tensor, "UINT8", 4)
    if sides != [*size, 3]:
        raise _bad(
            f"input {tensor['name']}: shape must be [pictures, {size[0]}, {size[1]}, 3], not {str([count, *sides])[:80]}"
        )
    _require_count(tensor, count, most)
    data = _binary(tensor, binary)
    if data is None:
        try:
            data = bytes(_flat(tensor.get("data"), count * math.prod(sides)))
        except (TypeError, ValueError) as error:
            raise _bad(f"input {tensor['name']}: data must be whole numbers from 0 to 255") from error
    each = math.prod(sides)
    if len(data) != count * each:
        raise _bad(f"input {tensor['name']}: {len(data)} values for the shape {[count, *sides]}")
    return tuple(data[at : at + each] for at in range(0, len(data), each))


def _encoded(tensor: dict[str, Any], binary: bytes, most: int) -> tuple[bytes, ...]:
    (count,) = _tensor(tensor, "BYTES", 1)
    _require_count(tensor, count, most)
    data = _binary(tensor, binary)
    if data is None:
        try:
            found = [base64.b64decode(part, validate=True) for part in _flat(tensor.get("data"), count)]
        except (TypeError, ValueError, binascii.Error) as error:
            raise _bad(f"input {tensor['name']}: data must be pictures as base64 strings") from error
    else:
        found = _with_lengths(data, str(tensor["name"]))
    if len(found) != count:
        raise _bad(f"input {tensor['name']}: {len(found)} pictures for the shape [{count}]")
    return tuple(found)


def _require_count(tensor: dict[str, Any], count: int, most: int) -> None:
    if count > most:
        raise _bad(f"input {tensor['name']}: {str(count)[:40]} pictures; at most {most} in one request")


def _flat(data: Any, most: int) -> list[Any]:
    """The leaves of nested lists, row by row; raises ValueError for more than expected, or nested too deep."""
    found: list[Any] = []
    stack = [iter([data])]
    while stack:
        item = next(stack[-1], stack)
        if item is stack:
            stack.pop()
        elif isinstance(item, list):
            if len(stack) > 5:
                raise ValueError("nested too deep")
            stack.append(iter(item))
        else:
            found.append(item)
            if len(found) > most:
                raise ValueError("too many values")
    return found


def _with_lengths(data: bytes, name: str) -> list[bytes]:
    """BYTES elements: each behind its length of 4 bytes."""
    found, at = [], 0
    while at < len(data):
        end = at + 4
        length = struct.unpack_from("<I", data, at)[0] if end <= len(data) else len(data)
        if end + length > len(data):
            raise _bad(f"input {name}: the element at byte {at} goes beyond the data's end")
        found.append(data[end : end + length])
        at = end + length
    return found


def _with_length(part: bytes) -> bytes:
    return struct.pack("<I", len(part)) + part


def _wanted(head: dict[str, Any], encoded: bool, outputs: Sequence[str]) -> tuple[Output, ...]:
    """The outputs asked for; without any, the readable answers of encoded pictures, all tensors of pixels."""
    parameters = head.get("parameters", {})
    default = bool(parameters.get("binary_data_output")) if isinstance(parameters, dict) else False
    asked = head.get("outputs")
    if asked is None or asked == []:
        return tuple(Output(name, default) for name in ([ANSWERS] if encoded else outputs))
    if not isinstance(asked, list) or len(asked) > len(outputs) + 1:
        raise _bad(f"outputs must be a list of at most {len(outputs) + 1} names")
    found = []
    for entry in asked:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or (name not in outputs and name != ANSWERS):
            raise _bad(f"unknown output {str(name)[:60]!r}; known: {', '.join([*outputs, ANSWERS])}")
        settings = entry.get("parameters", {})
        binary = settings.get("binary_data", default) if isinstance(settings, dict) else default
        found.append(Output(name, bool(binary)))
    return tuple(found)


def _numbers(datatype: str, data: bytes) -> list[Any]:
    code = _CODES.get(datatype)
    if code is None:
        raise _bad(f"{datatype} has no form in JSON; ask for it with binary_data")
    return array(code, data).tolist()


def _bad(detail: str) -> Problem:
    return Problem("bad-request", detail)
