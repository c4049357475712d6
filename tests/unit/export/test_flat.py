"""Pixels normalised along whole rows: the same values, and other graphs left as they are."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.export.flat import flatten_normalisation

MEAN = np.asarray([123.675, 116.28, 103.53], np.float32)
STD = np.asarray([58.395, 57.12, 57.375], np.float32)


def graph(size=(6, 5), perm=(0, 3, 1, 2), shape=(1, 3, 1, 1), last="Div", also=False):
    """A graph that normalises as an exported one does, and sums each picture's channels."""
    nodes = [
        helper.make_node("Transpose", ["images"], ["a"], "permute", perm=list(perm)),
        helper.make_node("Cast", ["a"], ["b"], "float", to=TensorProto.FLOAT),
        helper.make_node("Sub", ["b", "mean"], ["c"], "sub"),
        helper.make_node(last, ["c", "std"], ["d"], "div"),
        helper.make_node("Add", ["d", "b" if also else "d"], ["y"], "add"),
    ]
    values = [numpy_helper.from_array(value.reshape(shape), name) for name, value in (("mean", MEAN), ("std", STD))]
    ends = [
        helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", *size, 3]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3, *size]),
    ]
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:], values)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def run(model, images):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (3, 1, 1)])
def test_every_value_is_the_same(shape):
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), np.uint8)
    model = graph(shape=shape)
    before = run(model, images)
    np.testing.assert_allclose(before[2, 1, 3, 4], 2 * (float(images[2, 3, 4, 1]) - MEAN[1]) / STD[1], rtol=1e-5)
    assert flatten_normalisation(model)
    onnx.checker.check_model(model)
    np.testing.assert_array_equal(run(model, images), before)
    assert {each.name for each in model.graph.initializer}.isdisjoint({"mean", "std"})
    (subtract,) = (node for node in model.graph.node if node.op_type == "Sub")
    tiled = {each.name: each for each in model.graph.initializer}[subtract.input[1]]
    assert list(tiled.dims) == [5 * 3]


def test_a_graph_that_also_asks_for_the_size_of_its_batch():
    """As one with non-maximum suppression inside does."""
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), np.uint8)
    model = graph()
    model.graph.node.insert(0, helper.make_node("Shape", ["images"], ["sides"], "shape"))
    model.graph.output.append(helper.make_tensor_value_info("sides", TensorProto.INT64, [4]))
    before = run(model, images)
    assert flatten_normalisation(model)
    onnx.checker.check_model(model)
    np.testing.assert_array_equal(run(model, images), before)


@pytest.mark.parametrize(
    "other",
    [
        {"size": ("height", "width")},  # rows of no known length
        {"perm": (0, 3, 2, 1)},
        {"shape": (1, 1, 1, 3)},
        {"last": "Mul"},
        {"also": True},  # the pixels are wanted elsewhere too
    ],
)
def test_other_beginnings_are_left_alone(other):
    model = graph(**other)
    before = model.SerializeToString()
    assert not flatten_normalisation(model)
    assert model.SerializeToString() == before
