"""Engines: one interface, one answer, and a clear line for each that cannot run; `auto` picks the fastest that passes."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import numpy as np
import pytest

from pipeline.bundle import Bundle, read_bundle
from pipeline.errors import BundleError, EngineError
from pipeline.export.folder import describe_file, write_manifest
from serving.engines import choose as choosing
from serving.engines import registry
from serving.engines.base import grey
from serving.engines.compare import TOLERANCES, differences, raw_failures, read_selftest, selftest
from tests.unit.bundles import HEADS, known_bundle, known_graph, proven_bundle, with_selftest

LOCAL = [spec for spec in ("onnxruntime:fp32", "openvino:fp32") if importlib.util.find_spec(spec.partition(":")[0])]


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    return proven_bundle(tmp_path / "bundle")


def test_a_cancelled_call_ends_and_the_next_one_answers(bundle):
    engine = registry.load_engine(bundle, "onnxruntime", threads=1)
    before = engine.infer(grey(1, (32, 32)))
    engine.cancel()  # nothing runs: nothing happens
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(engine.infer, grey(4000, (32, 32)))
        while not call.done():
            engine.cancel()
            time.sleep(0.001)
        with pytest.raises(EngineError, match="a batch"):
            call.result()
    for name, value in engine.infer(grey(1, (32, 32))).items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("spec", LOCAL)
def test_whenever_a_call_is_cancelled_the_others_answer_rightly(bundle, spec):
    engine = registry.load_engine(bundle, spec, threads=1, streams=2)
    batches = [np.full((size, 32, 32, 3), size, np.uint8) for size in (1, 2, 30, 31)]
    wanted = [engine.infer(batch) for batch in batches]
    over, ended = threading.Event(), []

    def disturb():
        while not over.is_set():
            engine.cancel()
            time.sleep(0.0005)

    def ask(number):
        try:
            return engine.infer(batches[number % 4])
        except EngineError:
            ended.append(number)
            return wanted[number % 4]

    with ThreadPoolExecutor(3) as pool:
        pool.submit(disturb)
        found = list(pool.map(ask, range(400)))
        over.set()
    for number, answers in enumerate(found):
        assert all(np.array_equal(answers[name], value) for name, value in wanted[number % 4].items())
    assert len(ended) < 400
    assert bool(ended) == (not spec.startswith("torchscript"))  # which runs to its end


@pytest.mark.parametrize("spec", LOCAL)
def test_every_engine_gives_the_same_answers_at_any_batch_and_from_threads(bundle, spec):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (5, 32, 32, 3), np.uint8)
    engine = registry.load_engine(bundle, spec, threads=1, streams=2)
    reference = registry.load_engine(bundle, "onnxruntime").infer(images)
    engine.warm_up(2)
    assert engine.report().spec == spec
    with ThreadPoolExecutor(4) as pool:
        alone = list(pool.map(lambda i: engine.infer(images[i : i + 1]), range(5)))
    for batch in (1, 2, 5):
        found = differences(
            {name: value[:batch] for name, value in reference.items()}, engine.infer(images[:batch]), HEADS
        )
        assert raw_failures(found, TOLERANCES["fp32"], 32) == []
    for i, answers in enumerate(alone):
        assert (
            raw_failures(
                differences({k: v[i : i + 1] for k, v in reference.items()}, answers, HEADS), TOLERANCES["fp32"], 32
            )
            == []
        )
    first = engine.infer(images[:1])
    kept = first["colour.probabilities"].copy()
    engine.infer(images[1:2])
    np.testing.assert_array_equal(first["colour.probabilities"], kept)  # answers are copies, not the engine's buffers


def test_engines_that_cannot_run_say_what_to_do(bundle, monkeypatch):
    cases = {
        "onnxruntime:int8": "export it with --int8",
        "torchscript": "export it without --no-torchscript",
        "tensorrt": r"unknown engine 'tensorrt'; did you mean 'onnxruntime:tensorrt'\?",
        "openvyno": r"unknown engine 'openvyno'; did you mean 'openvino'\?",
        "xyz": "unknown engine 'xyz'; known: onnxruntime, openvino, torchscript",
    }
    for spec, message in cases.items():
        with pytest.raises(EngineError, match=message):
            registry.load_engine(bundle, spec)
    if registry.engine_module("torchscript").available("cuda") is not None:
        for spec in ("torchscript:cuda", "onnxruntime:cuda", "onnxruntime:tensorrt"):
            with pytest.raises(EngineError, match="GPU"):
                registry.load_engine(bundle, spec)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"openvino is not installed: pip install 'trifocal\[openvino\]'"):
        registry.load_engine(bundle, "openvino")
    assert registry.usable_specs(bundle) == []


def test_openvinos_int8_keeps_the_trained_size_where_sizes_are_open(tmp_path):
    """With open height and width its int8 answers were wrong, probabilities by 0.98, also at the trained size (2026.4)."""
    openvino = pytest.importorskip("openvino")
    found = read_bundle(known_bundle(tmp_path / "bundle"))
    model = known_graph()
    for tensor, sides in (
        (model.graph.input[0], (1, 2)),
        (model.graph.output[4], (1, 2)),
        (model.graph.output[5], (2, 3)),
    ):
        for side in sides:
            tensor.type.tensor_type.shape.dim[side].dim_param = f"side{side}"
    (found.path / "model.onnx").write_bytes(model.SerializeToString())
    openvino.save_model(openvino.Core().read_model(found.path / "model.onnx"), found.path / "model.int8.xml")
    kinds = {
        "model.onnx": ("onnx", "fp32"),
        "model.int8.xml": ("openvino", "int8"),
        "model.int8.bin": ("openvino-weights", "int8"),
    }
    files = {name: describe_file(found.path / name, *kind) for name, kind in kinds.items()}
    spec = replace(found.manifest.input, dynamic_size=True)
    write_manifest(found.path, replace(found.manifest, files=files, input=spec))
    engine = registry.load_engine(read_bundle(found.path), "openvino:int8")
    assert engine.infer(grey(3, (32, 32)))["ground.mask"].shape == (3, 32, 32)
    with pytest.raises(EngineError, match=r"a batch \(1, 64, 96, 3\) failed"):
        engine.infer(grey(1, (64, 96)))
    other = registry.load_engine(read_bundle(found.path), "openvino:fp32")
    assert other.infer(grey(1, (64, 96)))["ground.mask"].shape == (1, 64, 96)


def test_a_broken_package_is_told_and_auto_does_without_it(bundle, tmp_path, monkeypatch):
    """As where a system lacks a library that the package's own ones need."""
    packages = tmp_path / "packages" / "openvino"
    packages.mkdir(parents=True)
    (packages / "__init__.py").write_text("raise ImportError('libtbb.so.12: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(packages.parent)
    for name in [name for name in sys.modules if name.partition(".")[0] == "openvino"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(EngineError, match=r"openvino:fp32: .* cannot be imported \(libtbb.*\): pip install 'trifocal"):
        registry.load_engine(bundle, "openvino")
    cache = tmp_path / "engines.json"
    earlier = choosing.Choice("openvino:fp32", {"openvino:fp32": 1.0})
    cache.write_text(json.dumps({choosing.machine_key(bundle, None, 1): asdict(earlier)}))
    choice, _ = choosing.choose(bundle, cache=cache, seconds=0)
    assert choice.spec == "onnxruntime:fp32"
    assert not choice.cached
    assert "libtbb" in choice.left_out["openvino:fp32"]


def test_differences_find_what_differs():
    rng = np.random.default_rng(0)
    wanted = {
        "colour.probabilities": rng.random((2, 3), np.float32),
        "things.boxes": rng.random((2, 4, 4), np.float32) * 30,
        "things.scores": np.tile(np.asarray([0.9, 0.6, 0.3, 0.1], np.float32), (2, 1)),
        "things.classes": np.tile(np.asarray([0, 1, 0, 1]), (2, 1)),
        "ground.mask": rng.integers(0, 2, (2, 32, 32)).astype(np.uint8),
        "ground.probabilities": rng.random((2, 2, 32, 32), np.float32),
    }
    assert set(differences(wanted, wanted, HEADS).values()) == {0.0}

    def changed(**columns):
        return differences(wanted, {**wanted, **{k.replace("__", "."): v for k, v in columns.items()}}, HEADS)

    boxes = wanted["things.boxes"].copy()
    boxes[1, 0, 2] += 3
    assert changed(things__boxes=boxes)["things.boxes"] == pytest.approx(3, abs=1e-4)
    classes = wanted["things.classes"].copy()
    classes[0, 0] = 1
    assert changed(things__classes=classes)["things.boxes"] == np.inf
    mask = wanted["ground.mask"].copy()
    mask[0, :16] ^= 1
    assert changed(ground__mask=mask)["ground.mask"] == 0.25
    assert changed(colour__probabilities=wanted["colour.probabilities"][:1])["colour.probabilities"] == np.inf
    assert changed(things__boxes=boxes[:, :2])["things.boxes"] == np.inf
    assert changed(things__scores=wanted["things.scores"][:, :3])["things.scores"] == np.inf
    # Two rows of almost one score may change places without being another answer.
    close = {**wanted, "things.scores": np.tile(np.asarray([0.9, 0.600001, 0.6, 0.1], np.float32), (2, 1))}
    swapped = {k: v[:, [0, 2, 1, 3]] if k.startswith("things") else v for k, v in close.items()}
    swapped["things.scores"] = close["things.scores"]
    assert differences(close, swapped, HEADS)["things.boxes"] == 0


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("output", ["colour.probabilities", "things.boxes", "things.scores", "ground.probabilities"])
def test_an_answer_that_is_not_a_number_passes_at_no_tolerance(bundle, output, precision):
    wanted = registry.load_engine(bundle, "onnxruntime").infer(grey(2, (32, 32)))
    broken = wanted[output].copy()
    broken[1, 0] = np.nan
    found = differences(wanted, {**wanted, output: broken}, HEADS)
    (line,) = raw_failures(found, TOLERANCES[precision], 32)
    assert line.startswith(f"{output} differs by nan")


def test_the_selftest_tells_a_wrong_engine(bundle):
    engine = registry.load_engine(bundle, "onnxruntime")
    assert selftest(bundle, engine) == []
    images = grey(2, (32, 32))
    wrong = engine.infer(images)
    wrong["colour.probabilities"] = wrong["colour.probabilities"][:, ::-1] + 0.5
    (line,) = selftest(with_selftest(bundle, images, wrong), engine)
    assert line.startswith("colour.probabilities differs by 0.5")


def test_a_selftest_of_other_heads_is_told(bundle):
    images = grey(2, (32, 32))
    found = registry.load_engine(bundle, "onnxruntime").infer(images)
    found.pop("things.scores")
    other = with_selftest(bundle, images, found)
    with pytest.raises(BundleError, match="its self-test knows no things"):
        selftest(other, registry.load_engine(other, "onnxruntime"))
    np.savez_compressed(other.path / "selftest.npz", pixels=images)
    files = {**other.manifest.files, "selftest.npz": describe_file(other.path / "selftest.npz", "selftest")}
    write_manifest(other.path, replace(other.manifest, files=files))
    with pytest.raises(BundleError, match=r"selftest.npz is no self-test \('images'\)"):
        selftest(read_bundle(other.path), registry.load_engine(other, "onnxruntime"))


def test_a_selftest_that_cannot_be_used_is_one_line(bundle):
    images = np.zeros((2, 32, 32, 3), np.uint8)
    answers = registry.load_engine(bundle, "onnxruntime").infer(images)
    for other, found in ((images[:0], answers), (images[0], answers), (images * 1.0, answers), (images, {"a": "b"})):
        with pytest.raises(BundleError, match=r"selftest.npz is no self-test"):
            selftest(with_selftest(bundle, other, found), registry.load_engine(bundle, "onnxruntime"))
    whole = with_selftest(bundle, images, answers)
    data = bytearray((whole.path / "selftest.npz").read_bytes())
    for at in range(0, len(data), 7):
        spoilt = data.copy()
        spoilt[at : at + 9] = bytes(9)
        (whole.path / "selftest.npz").write_bytes(spoilt)
        files = {**whole.manifest.files, "selftest.npz": describe_file(whole.path / "selftest.npz", "selftest")}
        write_manifest(whole.path, replace(whole.manifest, files=files))
        with contextlib.suppress(BundleError):
            read_selftest(read_bundle(whole.path))
