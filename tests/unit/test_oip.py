"""The v2 protocol's parser: absurd shapes, sizes and lengths are refused by name, never by a fault."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.oip import Inference, Tensor, parse_inference, write_response
from serving.problems import Problem

OUTPUTS = ["colour.probabilities", "ground.mask"]


def parse(head, binary=b"", length="auto"):
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    told = str(len(text)) if length == "auto" else length
    return parse_inference(text + binary, told, "images", (2, 2), OUTPUTS, 4)


def pixels(shape=(1, 2, 2, 3), datatype="UINT8", **more):
    return {"inputs": [{"name": "images", "datatype": datatype, "shape": list(shape), **more}]}


def binary(size):
    return {"parameters": {"binary_data_size": size}}


def test_pixels_come_as_nested_lists_flat_lists_or_bytes():
    flat = list(range(12))
    nested = [[[flat[0:3], flat[3:6]], [flat[6:9], flat[9:12]]]]
    for request in (parse(pixels(data=flat)), parse(pixels(data=nested)), parse(pixels(**binary(12)), bytes(flat))):
        assert request == Inference("", (bytes(flat),), False, request.outputs)
        assert [output.name for output in request.outputs] == OUTPUTS


@pytest.mark.parametrize(
    ("head", "tail", "told"),
    [
        (b"{", b"", "no JSON"),
        (b"[]", b"", "must be a JSON object"),
        (b"[" * 100_000, b"", "no JSON"),
        ({}, b"", "inputs must be"),
        ({"inputs": []}, b"", "inputs must be"),
        ({"inputs": [1]}, b"", "inputs must be"),
        ({"inputs": [{"name": "image"}]}, b"", "unknown input 'image'"),
        (pixels(datatype="FP32"), b"", "datatype must be UINT8"),
        (pixels((1, 2, 2)), b"", "list of 4 numbers"),
        (pixels((1, 2, 2, 4)), b"", "shape must be"),
        (pixels((10**9, 10**9, 10**9, 3)), b"", "shape must be"),
        (pixels((0, 2, 2, 3)), b"", "from 1 on"),
        (pixels((-1, 2, 2, 3)), b"", "from 1 on"),
        (pixels((True, 2, 2, 3)), b"", "from 1 on"),
        (pixels((1.5, 2, 2, 3)), b"", "from 1 on"),
        (pixels((99999999999999999999, 2, 2, 3)), b"", "at most 4"),
        (pixels(data=[0] * 11), b"", "11 values"),
        (pixels(data=[0] * 13), b"", "0 to 255"),
        (pixels(data=[256] * 12), b"", "0 to 255"),
        (pixels(data=["a"] * 12), b"", "0 to 255"),
        (pixels(data=None), b"", "0 to 255"),
        (pixels(data=[[[[[[[[0]]]]]]]]), b"", "0 to 255"),
        (pixels(**binary(13)), bytes(12), "12 bytes follow"),
        (pixels(**binary(-1)), bytes(12), "12 bytes follow"),
        (pixels(**binary("12")), bytes(12), "12 bytes follow"),
        (pixels(**binary(11)), bytes(11), "11 values"),
        ({**pixels(data=[0] * 12), "id": 7}, b"", "id must be"),
        ({**pixels(data=[0] * 12), "outputs": [{"name": "colour"}]}, b"", "unknown output 'colour'"),
        ({**pixels(data=[0] * 12), "outputs": [{"name": "ground.mask"}] * 9}, b"", "at most 3"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_named(head, tail, told):
    with pytest.raises(Problem, match=told) as found:
        parse(head, tail)
    assert found.value.status == 400


@pytest.mark.parametrize("length", ["-1", "x", "99999999999999999999", "1e3", ""])
def test_a_head_length_that_makes_no_sense_is_named(length):
    with pytest.raises(Problem, match="Inference-Header-Content-Length"):
        parse(pixels(), length=length)


@pytest.mark.parametrize("data", [b"\x05", struct.pack("<I", 2**32 - 1), struct.pack("<I", 3) + b"ab"])
def test_bytes_elements_do_not_reach_beyond_the_data(data):
    head = {"inputs": [{"name": "encoded", "datatype": "BYTES", "shape": [1], **binary(len(data))}]}
    with pytest.raises(Problem, match="beyond the data's end"):
        parse(head, data)


def test_a_response_has_its_tensors_in_json_or_behind_it():
    tensors = [
        Tensor("a", "FP32", (1, 2), struct.pack("<2f", 0.5, 2.0), binary=False),
        Tensor("b", "INT64", (2,), struct.pack("<2q", -1, 7), binary=True),
        Tensor("c", "BYTES", (1,), [b"text"], binary=True),
    ]
    body, length = write_response({"model_name": "m"}, tensors)
    head = json.loads(body[:length])
    assert head["outputs"][0]["data"] == [0.5, 2.0]
    assert head["outputs"][1]["parameters"]["binary_data_size"] == 16
    assert body[length:] == struct.pack("<2q", -1, 7) + struct.pack("<I", 4) + b"text"
    assert write_response({}, tensors[:1])[1] is None


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)
entries = st.fixed_dictionaries(
    {"name": st.sampled_from(["images", "encoded"]), "datatype": st.sampled_from(["UINT8", "BYTES"])},
    optional={"shape": values | st.just([1, 2, 2, 3]) | st.just([1]), "data": values, "parameters": values},
)


@settings(max_examples=150, deadline=None)
@given(st.fixed_dictionaries({"inputs": st.lists(entries, max_size=2)}, optional={"outputs": values, "id": values, "parameters": values}), st.binary(max_size=20))  # fmt: skip
def test_no_request_is_a_fault(head, tail):
    try:
        assert isinstance(parse(head, tail), Inference)
    except Problem as problem:
        assert problem.status in {400, 413}
