"""Some of a bundle's heads: every engine answers those as it does among all, and leaves out what the others need."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from itertools import chain, combinations

import numpy as np
import pytest

from pipeline.bundle import Bundle, read_bundle
from pipeline.errors import BundleError, ConfigError
from pipeline.export.folder import describe_file, write_manifest
from pipeline.imaging.geometry import Letterbox
from serving.answers import Options
from serving.engines import onnxruntime as ort_engine
from serving.engines import registry
from serving.engines.choose import machine_key
from serving.predictor import Predictor
from tests.unit.bundles import HEADS, known_bundle

LOCAL = [spec for spec in ("onnxruntime:fp32", "openvino:fp32") if importlib.util.find_spec(spec.partition(":")[0])]
SOME = [frozenset(names) for names in chain(*(combinations(HEADS, count) for count in (1, 2, 3)))]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return read_bundle(known_bundle(tmp_path_factory.mktemp("parts") / "bundle"))


@pytest.mark.parametrize("spec", LOCAL)
def test_some_heads_are_answered_as_among_all(bundle, spec):
    images = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), np.uint8)
    wanted = registry.load_engine(bundle, spec).infer(images)
    for only in SOME:
        found = registry.load_engine(replace(bundle, only=only), spec).infer(images)
        assert set(found) == {output for name in only for output in HEADS[name].outputs}
        for name, value in found.items():
            np.testing.assert_array_equal(value, wanted[name])


def test_what_only_the_others_need_is_left_out(bundle):
    import onnx

    data = bundle.content("model.onnx")
    part = onnx.load_from_string(ort_engine._in_part(data, replace(bundle, only=frozenset({"colour"}))))
    assert [node.op_type for node in part.graph.node] == ["Cast", "Mul", "ReduceMean", "Softmax"]
    if "openvino:fp32" in LOCAL:
        engines = [registry.load_engine(b, "openvino") for b in (bundle, replace(bundle, only=frozenset({"colour"})))]
        whole, narrow = (len(engine._ready(1).compiled.get_runtime_model().get_ops()) for engine in engines)
        assert narrow < whole


def test_without_onnx_all_is_computed_and_answered(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    engine = registry.load_engine(replace(bundle, only=frozenset({"ground"})), "onnxruntime")
    grey = np.full((1, 32, 32, 3), 114, np.uint8)
    assert {"ground.mask", "ground.probabilities"} == set(engine.infer(grey))


def test_a_file_of_another_bundle_is_told_for_some_heads_too(bundle, tmp_path):
    other = read_bundle(known_bundle(tmp_path / "other"))
    data = other.content("model.onnx").replace(b"things.boxes", b"thongs.boxes")
    (other.path / "model.onnx").write_bytes(data)
    files = {**other.manifest.files, "model.onnx": describe_file(other.path / "model.onnx", "onnx", "fp32")}
    write_manifest(other.path, replace(other.manifest, files=files))
    narrow = replace(read_bundle(other.path), only=frozenset({"things"}))
    for spec in LOCAL:
        with pytest.raises(BundleError, match=r"knows no things\.boxes: it is of another bundle"):
            registry.load_engine(narrow, spec)


def test_a_predictor_of_some_heads_answers_no_others(bundle, tmp_path):
    import cv2

    picture = cv2.imencode(".png", np.full((40, 30, 3), (200, 10, 10), np.uint8))[1].tobytes()
    (whole,) = Predictor.load(bundle.path, "onnxruntime").predict([picture])
    (found,) = Predictor.load(bundle.path, "onnxruntime", heads=["things", "colour"]).predict([picture])
    assert list(found.heads) == ["colour", "things"]  # in the model's order
    np.testing.assert_array_equal(found.heads["things"].boxes, whole.heads["things"].boxes)


def test_heads_that_the_model_does_not_have_are_told(bundle):
    for heads, told in {
        ("things", "colur"): "has no head 'colur'; did you mean 'colour'",
        (): "no head is wanted",
    }.items():
        with pytest.raises(ConfigError, match=told):
            Predictor.load(bundle.path, "onnxruntime", heads=heads)
    narrow = Predictor.load(bundle.path, "onnxruntime", heads=["things"])
    outputs = narrow.infer(np.full((1, 32, 32, 3), 114, np.uint8))
    with pytest.raises(ConfigError, match="the model as loaded has no head 'ground'"):
        narrow.answers(outputs, [Letterbox.fit((32, 32), (32, 32))], Options(heads=("ground",)))


def test_engines_are_chosen_anew_for_other_heads(bundle):
    keys = {machine_key(replace(bundle, only=only), None, 1) for only in (None, *SOME)}
    assert len(keys) == len(SOME)  # None stands for all, the last of them
