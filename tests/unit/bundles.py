"""A bundle built by hand: a tiny ONNX graph whose answers follow from the pixels by arithmetic one can do in the head.

Head `colour` (red, green, blue): the softmax of the mean of each channel in 0 to 10. Head `things`: one box, always
(8, 16, 24, 32) of the 32 x 32 input with score 0.9, and one of score 0.01. Head `ground`: class 1 where blue is
brighter than red, else class 0, with probabilities.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.bundle import Bundle, HeadSpec, InputSpec, Manifest, read_bundle
from pipeline.export.folder import describe_file, finish, write_manifest, writing
from serving.engines import registry

HEADS = {
    "colour": HeadSpec("classes", ("red", "green", "blue"), ("colour.probabilities",), 0.5),
    "things": HeadSpec("boxes", ("thing", "other"), ("things.boxes", "things.scores", "things.classes"), 0.4),
    "ground": HeadSpec("mask", ("warm", "cold"), ("ground.mask", "ground.probabilities"), 0.0),
}


def known_graph(ballast_mb: int = 0) -> onnx.ModelProto:
    """The graph described above; ballast is so many MiB of weights that count for nothing."""
    constants = {
        "scale": np.float32(10 / 255),
        "axes": np.asarray([1, 2]),
        "boxes": np.asarray([[[8, 16, 24, 32], [0, 0, 1, 1]]], np.float32),
        "scores": np.asarray([[0.9, 0.01]], np.float32),
        "classes": np.asarray([[0, 1]], np.int64),
        "one": np.asarray([1]),
        "pair": np.asarray([2, 4]),
        "two": np.asarray([2]),
        "red_blue": np.asarray([0, 2]),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled", "axes"], ["means"], keepdims=0),
        helper.make_node("Softmax", ["means"], ["colour.probabilities"], axis=1),
        helper.make_node("Shape", ["images"], ["batch"], start=0, end=1),
        helper.make_node("Concat", ["batch", "pair"], ["box_shape"], axis=0),
        helper.make_node("Expand", ["boxes", "box_shape"], ["things.boxes"]),
        helper.make_node("Concat", ["batch", "two"], ["row_shape"], axis=0),
        helper.make_node("Expand", ["scores", "row_shape"], ["things.scores"]),
        helper.make_node("Expand", ["classes", "row_shape"], ["things.classes"]),
        helper.make_node("Gather", ["scaled", "red_blue"], ["both"], axis=3),
        helper.make_node("Transpose", ["both"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Softmax", ["planes"], ["ground.probabilities"], axis=1),
        helper.make_node("ArgMax", ["planes"], ["indices"], axis=1, keepdims=0),
        helper.make_node("Cast", ["indices"], ["ground.mask"], to=TensorProto.UINT8),
    ]
    if ballast_mb:
        constants["ballast"] = np.zeros((ballast_mb * (1 << 20) // 12, 3), np.float32)
        nodes[3].input[0] = "heavy"
        nodes[3:3] = [
            helper.make_node("Shape", ["images"], ["row"], start=0, end=1),
            helper.make_node("Gather", ["ballast", "row"], ["nothing"]),
            helper.make_node("Add", ["means", "nothing"], ["heavy"]),
        ]
    float32, side = TensorProto.FLOAT, 32
    graph = helper.make_graph(
        nodes,
        "known",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", side, side, 3])],
        [
            helper.make_tensor_value_info("colour.probabilities", float32, ["batch", 3]),
            helper.make_tensor_value_info("things.boxes", float32, ["batch", 2, 4]),
            helper.make_tensor_value_info("things.scores", float32, ["batch", 2]),
            helper.make_tensor_value_info("things.classes", TensorProto.INT64, ["batch", 2]),
            helper.make_tensor_value_info("ground.mask", TensorProto.UINT8, ["batch", side, side]),
            helper.make_tensor_value_info("ground.probabilities", float32, ["batch", 2, side, side]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def known_bundle(
    target: Path, name: str = "known", ballast_mb: int = 0, version: str = "1", heads: tuple[str, ...] = tuple(HEADS)
) -> Path:
    """Writes the bundle with some of its heads; returns its folder."""
    chosen = {head: HEADS[head] for head in heads}
    manifest = Manifest(name, InputSpec(32, 32, 114), chosen, opset=20, version=version)
    with writing(target) as part:
        onnx.save(known_graph(ballast_mb), str(part / "model.onnx"))
        files = {"model.onnx": describe_file(part / "model.onnx", "onnx", "fp32")}
        write_manifest(part, replace(manifest, files=files))
        finish(part, target)
    return target


def proven_bundle(folder) -> Bundle:
    """The known bundle with a self-test of two pictures and right answers."""
    found = read_bundle(known_bundle(folder))
    images = np.stack([np.full((32, 32, 3), colour, np.uint8) for colour in ((200, 10, 10), (10, 10, 200))])
    answers = registry.load_engine(found, "onnxruntime").infer(images)
    return with_selftest(found, images, answers)


def with_selftest(bundle: Bundle, images, answers, checks=None) -> Bundle:
    """That bundle with other pictures and answers for its self-test."""
    np.savez_compressed(bundle.path / "selftest.npz", images=images, **answers)
    files = {**bundle.manifest.files, "selftest.npz": describe_file(bundle.path / "selftest.npz", "selftest")}
    write_manifest(bundle.path, replace(bundle.manifest, files=files, checks=checks or {}))
    return read_bundle(bundle.path)
