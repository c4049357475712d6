"""Export: the graph answers as the network does, for every kind of head; the gate refuses what does not."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from pipeline.errors import CheckpointError, ExportError
from pipeline.export.fold import fold_batch_norms
from pipeline.export.gate import Gate, require_passed
from pipeline.export.graph import AnswerGraph, load_trained
from pipeline.export.parity import eager_outputs, metric_differences, metric_failures, raw_differences
from pipeline.export.scoring import eager_scores, served_scores
from serving.engines.compare import TOLERANCES, differences, raw_failures
from serving.engines.registry import load_engine, usable_specs
from serving.predictor import Predictor
from tasks.multitask import MultiTaskModule
from tests.unit.export.trial import network, write


def test_the_file_is_what_design_says(exported):
    _, bundle = exported
    model = onnx.load(str(bundle.path / "model.onnx"), load_external_data=False)
    (pixels,) = model.graph.input
    assert pixels.name == "images"
    assert pixels.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_param or d.dim_value for d in pixels.type.tensor_type.shape.dim] == ["batch", 64, 64, 3]
    names = [output.name for output in model.graph.output]
    assert names == [
        "scene.probabilities", "daytime.probabilities",
        "objects.boxes", "objects.scores", "objects.classes",
        "surface.mask", "surface.probabilities",
    ]  # fmt: skip
    assert all(output.type.tensor_type.shape.dim[0].dim_param == "batch" for output in model.graph.output)
    assert model.opset_import[0].version == bundle.manifest.opset == 20
    assert not [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert not [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    facts = {item.key: json.loads(item.value) for item in model.metadata_props if item.key != "trifocal.version"}
    assert facts["trifocal.heads"]["objects"]["classes"][0] == "disc"
    assert facts["trifocal.input"]["height"] == 64
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")  # random bytes may spell anything
    assert b"site-packages" not in model.SerializeToString()  # no traces of the machine that exported it
    assert b".py" not in model.SerializeToString()


def test_every_engine_answers_as_eager_pytorch_at_batches_1_2_5(exported, images):
    graph, bundle = exported
    for spec in usable_specs(bundle):
        if spec.endswith("fp32"):
            found = raw_differences(graph, load_engine(bundle, spec), images, graph.specs())
            assert set(found) == set(graph.names) - {"objects.classes"}
            assert raw_failures(found, TOLERANCES["fp32"], 64) == [], spec


@pytest.mark.parametrize("batch", [1, 5])
def test_an_engine_that_answers_no_number_at_one_batch_size_fails(exported, images, batch):
    graph, _ = exported

    class Broken:
        def infer(self, pixels):
            answers = eager_outputs(graph, pixels)
            answers["scene.probabilities"][:, 0] *= np.nan if len(pixels) == batch else 1
            return answers

    found = raw_differences(graph, Broken(), images, graph.specs())
    (line,) = raw_failures(found, TOLERANCES["int8"], 64)
    assert line.startswith("scene.probabilities differs by nan")


def test_boxes_are_compared_not_skipped(exported, images):
    graph, _ = exported
    wanted = eager_outputs(graph, images)
    moved = {**wanted, "objects.boxes": wanted["objects.boxes"] + 2}
    assert differences(wanted, moved, graph.specs())["objects.boxes"] == pytest.approx(2, abs=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"heads": {"objects": {"nms": True}}},
        {
            "heads": {"surface": {"decoder": "smp-unet", "decoder_channels": [32, 24, 16, 16, 8]}},
            "backbone": "tu-convnext_atto",
        },
    ],
    ids=["nms", "stride 1, another backbone"],
)
def test_other_networks_export_too(data, images, tmp_path, options):
    graph = AnswerGraph(network(data, **options).network).eval()
    bundle = write(graph, tmp_path / "bundle")
    for spec in ("onnxruntime:fp32", "torchscript:fp32"):
        found = raw_differences(graph, load_engine(bundle, spec), images, graph.specs())
        assert raw_failures(found, TOLERANCES["fp32"], 64) == []


def test_with_suppression_inside_openvino_is_not_ended_before_its_time(data, images, tmp_path):
    """Cancelled, a graph with open shapes failed the next call or gave it an older answer."""
    pytest.importorskip("openvino")
    graph = AnswerGraph(network(data, heads={"objects": {"nms": True}}).network).eval()
    engine = load_engine(write(graph, tmp_path / "bundle", torchscript=False), "openvino", threads=1)
    wanted = [engine.infer(image[None]) for image in images]
    over = threading.Event()

    def disturb():
        while not over.is_set():
            engine.cancel()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(disturb)
        try:
            found = [engine.infer(image[None]) for _ in range(20) for image in images]
        finally:
            over.set()
    for number, answers in enumerate(found):
        assert all(np.array_equal(answers[name], value) for name, value in wanted[number % len(images)].items())


def test_open_sizes(data, tmp_path):
    graph = AnswerGraph(network(data).network).eval()
    bundle = write(graph, tmp_path / "bundle", dynamic_size=True, torchscript=False)
    engine = load_engine(bundle, "onnxruntime")
    for shape in ((1, 128, 160, 3), (3, 192, 128, 3)):
        batch = np.random.default_rng(1).integers(0, 255, shape, np.uint8)
        found = differences(eager_outputs(graph, batch), engine.infer(batch), graph.specs())
        assert raw_failures(found, TOLERANCES["fp32"], 192) == []

    gate = Gate(graph, data, {}, np.random.default_rng(2).integers(0, 255, (5, 64, 64, 3), np.uint8), None)
    gate.require_other_sizes(bundle.path)
    other = replace(gate, graph=AnswerGraph(network(data, backbone="light").network).eval())
    with pytest.raises(ExportError, match=r"192 x 160 pixels get other answers .* leave --dynamic-size out"):
        other.require_other_sizes(bundle.path)


def test_a_network_of_fixed_size_is_not_called_open(exported, images, data):
    graph, bundle = exported
    with pytest.raises(ExportError, match=r"192 x 160 pixels get .*dimensions.*; leave --dynamic-size out"):
        Gate(graph, data, {}, images, None).require_other_sizes(bundle.path)


def test_without_mask_probabilities(data):
    graph = AnswerGraph(network(data, heads={"surface": {}}).network, mask_probabilities=False)
    assert graph.names == ["surface.mask"]


def test_batch_norms_that_the_exporter_left_are_folded():
    from onnx import TensorProto, helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    rng = np.random.default_rng(0)
    values = {"a.weight": rng.normal(size=(4, 3, 1, 1)), **{k: rng.uniform(0.5, 2, 4) for k in "gbmv"}}
    nodes = [
        helper.make_node("Conv", ["x", "a.weight"], ["c"]),
        helper.make_node("Shape", ["c"], ["shape"]),
        helper.make_node("BatchNormalization", ["c", *"gbmv"], ["n"], epsilon=1e-3),
        helper.make_node("Relu", ["n"], ["y"]),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes, "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 5, 5])],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "y"]
            + [helper.make_tensor_value_info("shape", TensorProto.INT64, None)],
            [numpy_helper.from_array(v.astype(np.float32), k) for k, v in values.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
    )  # fmt: skip
    x = rng.normal(size=(1, 3, 5, 5)).astype(np.float32)
    wanted = ReferenceEvaluator(model).run(None, {"x": x})
    assert fold_batch_norms(model.graph) == 0
    assert [node.op_type for node in model.graph.node] == ["Conv", "Shape", "Relu"]
    for a, b in zip(wanted, ReferenceEvaluator(model).run(None, {"x": x}), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_serving_path_scores_as_training_does(exported, data):
    graph, bundle = exported
    wanted = eager_scores(graph.network, data)
    predictor = Predictor(bundle, load_engine(bundle, "onnxruntime"))
    found = served_scores(predictor, data)
    assert set(wanted) == set(found) == {"scene", "daytime", "objects", "surface"}
    assert 0 < wanted["surface"]["mIoU"] < 1
    for head, metrics in wanted.items():
        for name, value in metrics.items():
            assert found[head][name] == pytest.approx(value, abs=1e-3, nan_ok=True), (head, name)


def test_the_gate_refuses_another_network(exported, data):
    """A bundle of other weights, as if the export had gone wrong."""
    graph, bundle = exported
    torch.manual_seed(1)
    other = AnswerGraph(MultiTaskModule(spaces=data.label_spaces).eval().network)
    check = Gate.open(other.eval(), data, None).check(bundle.path, "onnxruntime:fp32")
    assert not check["passed"]
    assert any("probabilities differs by" in line for line in check["failures"])
    with pytest.raises(ExportError, match=r"does not answer as the trained one: onnxruntime:fp32: .*--allow-worse"):
        require_passed({"eager": {}, "onnxruntime:fp32": check})
    require_passed({"openvino:bf16": {**check, "precision": "bf16"}})  # how a machine computes, not a file
    assert graph.names == bundle.manifest.outputs


def test_allow_worse_loosens_the_limit_on_metrics_alone(exported, data):
    """The limits are the stated ones; what is allowed knowingly never tightens them, nor lets other raw answers pass."""
    assert {name: TOLERANCES[name].metric for name in ("fp32", "bf16", "int8")} == {
        "fp32": 0.001,
        "bf16": 0.003,
        "int8": 0.005,
    }
    graph, bundle = exported
    gate = Gate.open(graph, data, None)
    wanted = {**gate.wanted, "surface": {**gate.wanted["surface"], "mIoU": gate.wanted["surface"]["mIoU"] + 0.008}}
    for allowed, passes in ((None, False), (0.01, True)):
        check = replace(gate, wanted=wanted, allow_worse=allowed).check(bundle.path, "onnxruntime:fp32")
        assert check["passed"] is passes, check["failures"]
        assert check["limit"] == max(0.001, allowed or 0.0)
    torch.manual_seed(1)
    other = AnswerGraph(MultiTaskModule(spaces=data.label_spaces).eval().network).eval()
    assert not replace(gate, graph=other, allow_worse=1.0).check(bundle.path, "onnxruntime:fp32")["passed"]


def test_metric_limits():
    _, heads = None, {"surface": type("H", (), {"kind": "mask"})(), "scene": type("H", (), {"kind": "classes"})()}
    wanted = {"surface": {"mIoU": 0.5}, "scene": {"accuracy": float("nan")}}
    found = {"surface": {"mIoU": 0.497}, "scene": {"accuracy": float("nan")}}
    off = metric_differences(wanted, found, heads)
    assert off == {"surface": pytest.approx(0.003), "scene": 0.0}
    assert metric_failures(off, wanted, found, heads, 0.003) == []
    (line,) = metric_failures(off, wanted, found, heads, 0.001)
    assert line == "surface mIoU is 0.4970 instead of 0.5000 (differs by at most 0.001)"
    lost = metric_differences(wanted, {**found, "surface": {"mIoU": float("nan")}}, heads)
    assert metric_failures(lost, wanted, {**found, "surface": {}}, heads, 1.0)


def test_checkpoints_that_cannot_be_exported(tmp_path, data):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_trained(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_trained(tmp_path / "text.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="is no checkpoint of this project"):
        load_trained(tmp_path / "other.ckpt")
    module = network(data, heads={"scene": {}})
    content = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(content)
    torch.save({**content, "module_class": "os.system"}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match=r"os.system, which is no module of this project"):
        load_trained(tmp_path / "evil.ckpt")
    content["state_dict"].popitem()
    torch.save(content, tmp_path / "torn.ckpt")
    with pytest.raises(CheckpointError, match=r"does not fit the network that this version builds.*train again"):
        load_trained(tmp_path / "torn.ckpt")
