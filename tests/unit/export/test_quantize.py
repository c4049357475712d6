"""int8: what the ladder keeps in float stays so on every engine, and the answers stay near the network's."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import onnx
import pytest

from pipeline.bundle import read_bundle
from pipeline.export.folder import describe_file, write_manifest
from pipeline.export.parity import eager_outputs
from pipeline.export.quantize import (
    LADDER,
    calibration_images,
    float_layers,
    ladder,
    quantize_onnx,
    quantize_openvino,
)
from serving.engines.compare import differences
from serving.engines.registry import load_engine


def test_int8_keeps_what_the_ladder_says_in_float(exported, data, images):
    graph, bundle = exported
    source, target = bundle.path / "model.onnx", bundle.path.parent / "int8.onnx"
    keep = float_layers(source, 3)
    assert {"heads.surface.decoder.score", "backbone.body.conv1"} <= set(keep)
    assert "heads.objects.one.side_tower.0.0.0" in keep
    assert "heads.objects.one.class_tower.0.0.0" not in keep
    assert set(float_layers(source, 1)) < set(keep) < set(float_layers(source, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize_onnx(source, target, calibration_images(data, (64, 64), 8), keep)
    model = onnx.load(str(target))
    whole = {output for node in model.graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    quantised = {n.name for n in model.graph.node if n.op_type == "Conv" and n.input[1] in whole}
    convolutions = {n.name for n in model.graph.node if n.op_type == "Conv"}
    assert convolutions - quantised == convolutions & set(keep)
    assert "flat.sub" in {n.name for n in model.graph.node}
    assert target.stat().st_size < source.stat().st_size / 3
    files = {**bundle.manifest.files, "int8.onnx": describe_file(target, "onnx", "int8")}
    (bundle.path.parent / "model.onnx").write_bytes(source.read_bytes())
    (bundle.path.parent / "model.ts.pt").write_bytes((bundle.path / "model.ts.pt").read_bytes())
    write_manifest(bundle.path.parent, replace(bundle.manifest, files=files))
    engine = load_engine(read_bundle(bundle.path.parent), "onnxruntime:int8")
    found = differences(eager_outputs(graph, images), engine.infer(images), graph.specs())
    assert found["surface.mask"] < 0.2


def test_openvinos_int8_keeps_what_the_ladder_says_in_float(exported, data):
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    _, bundle = exported
    source, target = bundle.path / "model.onnx", bundle.path.parent / "kept.int8.xml"
    keep = float_layers(source, 3)
    quantize_openvino(source, target, calibration_images(data, (64, 64), 4), keep)
    found = {}
    for op in openvino.Core().read_model(target).get_ops():
        if op.get_type_name() == "Convolution":
            weights = op.input_value(1).get_node()
            while weights.get_type_name() != "Constant":
                weights = weights.input_value(0).get_node()
            found[op.get_friendly_name().split("/")[0]] = weights.get_element_type().get_type_name()
    convolutions = {n.name for n in onnx.load(str(source)).graph.node if n.op_type == "Conv"}
    assert found == {name: "f32" if name in keep else "i8" for name in convolutions}


def test_openvinos_int8_leaves_the_answers_arithmetic_in_float(exported, data):
    """The mean distance to a box's sides over 16 bins, and the masks' probabilities, were rounded to 256 levels."""
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    _, bundle = exported
    source, target = bundle.path / "model.onnx", bundle.path.parent / "tail.int8.xml"
    quantize_openvino(source, target, calibration_images(data, (64, 64), 4), [])
    model = openvino.Core().read_model(target)
    kinds = {op.get_friendly_name(): op.get_type_name() for op in model.get_ops()}
    left = [result.input_value(0).get_node() for result in model.get_results()]
    seen = set()
    while left:
        node = left.pop()
        if node.get_friendly_name() not in seen and node.get_type_name() not in {"Convolution", "MatMul"}:
            seen.add(node.get_friendly_name())
            left += [value.get_node() for value in node.input_values()]
    assert "Softmax" in {kinds[name] for name in seen}
    assert "FakeQuantize" in set(kinds.values()) - {kinds[name] for name in seen}


def test_the_ladder_names_only_what_the_network_has(exported, tmp_path):
    from onnx import TensorProto, helper, numpy_helper

    _, bundle = exported
    steps = list(ladder(bundle.path / "model.onnx"))
    assert steps[0] == (["the heads' last convolutions"], float_layers(bundle.path / "model.onnx", 1))
    assert steps[-1][0] == [words for words, _ in LADDER]

    def of(*nodes):
        values = [numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), name) for name in "vw"]
        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, 4, 4]) for n in "xy"]
        graph = helper.make_graph(
            [helper.make_node(*node, name=f"n{i}") for i, node in enumerate(nodes)], "g", ends[:1], ends[1:], values
        )
        onnx.save(helper.make_model(graph), str(tmp_path / "m.onnx"))
        return list(ladder(tmp_path / "m.onnx"))

    assert of(("Relu", ["x"], ["y"])) == [([], ["n0"])]
    assert of(("Conv", ["x", "w"], ["z"]), ("Conv", ["z", "v"], ["y"])) == [
        ([], []),
        (["the first convolution"], ["n0"]),
    ]
