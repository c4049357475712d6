"""`auto`: the fastest engine that passes on this machine is taken, remembered, and measured anew where that may not hold."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pipeline.bundle import Bundle, read_bundle
from pipeline.errors import EngineError
from serving.engines import choose as choosing
from serving.engines import registry
from serving.engines.base import grey
from tests.unit.bundles import proven_bundle, with_selftest


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    return proven_bundle(tmp_path / "bundle")


def test_auto_takes_the_fastest_that_passes_and_remembers_it(bundle, tmp_path, monkeypatch):
    cache = tmp_path / "cache" / "engines.json"
    speeds = iter([5.0, 2.0])
    monkeypatch.setattr(choosing, "usable_specs", lambda _: ["onnxruntime:fp32", "openvino:fp32", "openvino:bf16"])
    monkeypatch.setattr(choosing, "measure", lambda *_: next(speeds))
    monkeypatch.setattr(choosing, "load_engine", lambda found, *_: registry.load_engine(found, "onnxruntime"))
    choice, _ = choosing.choose(bundle, cache=cache)
    assert choice.spec == "openvino:fp32"
    assert choice.left_out == {"openvino:bf16": "its metrics were not measured at export"}
    assert "openvino:fp32 2.0 ms, onnxruntime:fp32 5.0 ms; openvino:bf16 left out" in choice.describe()
    assert choosing.Choice("onnxruntime:fp32").describe() == "engine onnxruntime:fp32"  # named, not measured
    again, _ = choosing.choose(bundle, cache=cache)  # nothing is left to measure with
    assert again.cached
    assert again.spec == choice.spec
    cache.write_text("{")  # a broken cache is measured anew
    speeds = iter([1.0, 2.0])
    assert choosing.choose(bundle, cache=cache)[0].spec == "onnxruntime:fp32"


def test_auto_skips_what_did_not_pass_and_says_when_nothing_does(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(choosing, "usable_specs", lambda _: ["onnxruntime:fp32"])
    images = grey(2, (32, 32))
    wrong = registry.load_engine(bundle, "onnxruntime").infer(images)
    wrong["things.scores"] = wrong["things.scores"] / 3
    broken = with_selftest(bundle, images, wrong)
    with pytest.raises(EngineError, match=r"no engine answers bundle .* rightly .*things.scores differs"):
        choosing.choose(broken, cache=tmp_path / "engines.json")
    failed = with_selftest(bundle, images, wrong, {"onnxruntime:fp32": {"passed": False, "metrics": {}}})
    with pytest.raises(EngineError, match="did not pass at export"):
        choosing.choose(failed, cache=tmp_path / "engines.json")


def test_a_cache_that_cannot_be_written_is_no_error(bundle, tmp_path):
    (tmp_path / "file").write_text("")
    choice, engine = choosing.choose(bundle, cache=tmp_path / "file" / "engines.json", seconds=0)
    assert choice.spec in choice.milliseconds
    assert choice.spec.partition(":")[0] == engine.report().name


def test_another_machine_or_bundle_is_another_choice(bundle, tmp_path, monkeypatch):
    key = choosing.machine_key(bundle, None, 1)
    assert key == choosing.machine_key(read_bundle(bundle.path), None, 1)
    assert key != choosing.machine_key(bundle, 1, 1)
    monkeypatch.setattr(choosing, "usable_cores", lambda: 64)
    assert key != choosing.machine_key(bundle, None, 1)


def test_a_gpu_or_other_proofs_are_another_choice_too(bundle, monkeypatch):
    key = choosing.machine_key(bundle, None, 1)
    monkeypatch.setattr(choosing, "_gpus", lambda: ["Model: one"])
    assert key != (other := choosing.machine_key(bundle, None, 1))
    checks = {"onnxruntime:fp32": {"passed": False}}
    assert other != choosing.machine_key(replace(bundle, manifest=replace(bundle.manifest, checks=checks)), None, 1)


@pytest.mark.parametrize(
    "entry",
    [
        {"spec": "openvyno:fp32", "milliseconds": {}, "left_out": {}},
        {"spec": "onnxruntime:int8", "milliseconds": {"onnxruntime:int8": 1}, "left_out": {}},
        {"spec": "onnxruntime:fp32", "milliseconds": {"onnxruntime:fp32": "fast"}, "left_out": {}},
        {"spec": "onnxruntime:fp32", "milliseconds": [], "left_out": []},
        7,
    ],
)
def test_a_cache_that_someone_spoilt_is_measured_anew(bundle, tmp_path, entry):
    cache = tmp_path / "engines.json"
    cache.write_text(json.dumps({choosing.machine_key(bundle, None, 1): entry}))
    choice, _ = choosing.choose(bundle, cache=cache, seconds=0)
    assert not choice.cached
    assert choice.describe()


def test_cores_follow_the_containers_quota(tmp_path, monkeypatch):
    from pathlib import Path

    monkeypatch.setattr(Path, "read_text", lambda self: "150000 100000")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(16), raising=False)
    assert registry.usable_cores() == 2
    monkeypatch.setattr(Path, "read_text", lambda self: "max 100000")
    assert registry.usable_cores() == 16


def test_the_cache_is_plain_json(bundle, tmp_path):
    cache = tmp_path / "engines.json"
    choosing.choose(bundle, cache=cache, seconds=0)
    ((_, entry),) = json.loads(cache.read_text()).items()
    assert entry["spec"] in entry["milliseconds"]
