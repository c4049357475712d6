"""int8: layers go back to float step by step until the gate passes; where no step passes, the export fails."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.bundle import InputSpec, Manifest, read_bundle
from pipeline.errors import ExportError
from pipeline.export import quantize, run
from pipeline.export.gate import require_passed
from tests.unit.bundles import HEADS

STEPS = [
    (["the ends"], ["a"]),
    (["the ends", "the boxes"], ["a", "b"]),
    (["the ends", "the boxes", "all"], list("abc")),
]


@pytest.fixture
def climb(tmp_path, monkeypatch):
    """Runs the ladder over a stand-in for the quantiser; `passing` is the step from which the gate lets it pass."""
    tried: list[list[str]] = []

    def make(source, target, images, keep):
        tried.append(keep)
        target.write_bytes(",".join(keep).encode())

    monkeypatch.setattr(quantize, "calibration_images", lambda *_: np.zeros((7, 32, 32, 3), np.uint8))
    monkeypatch.setattr(quantize, "ladder", lambda _: iter(STEPS))
    monkeypatch.setattr(quantize, "quantize_onnx", make)
    monkeypatch.setattr(run, "find_spec", lambda _: None)

    def climbed(passing):
        said, checks = [], {}

        def check(folder, spec):
            content = (folder / "model.int8.onnx").read_bytes()
            assert read_bundle(folder).content("model.int8.onnx") == content  # what is checked is what is written
            passed = content.count(b",") + 1 >= passing
            return {"passed": passed, "failures": [] if passed else ["things AP is 0.1"], "precision": "int8"}

        manifest = Manifest("m", InputSpec(32, 32, 114), HEADS)
        gate = SimpleNamespace(data=None, check=check)
        found = run.add_int8(tmp_path, manifest, gate, checks, said.append)
        return found, checks["onnxruntime:int8"], tried, said

    return climbed


def test_it_climbs_as_far_as_the_gate_asks_and_says_which_layers(climb):
    manifest, check, tried, said = climb(passing=2)
    assert tried == [["a"], ["a", "b"]]
    assert check["float"] == ["the ends", "the boxes"]
    assert check["calibration_images"] == 7
    assert set(manifest.files) == {"model.int8.onnx"}
    assert "quantising for onnxruntime, in float: the ends, the boxes" in said
    assert said[-1] == "int8 for OpenVINO is left out: pip install 'trifocal[openvino]'"
    require_passed({"onnxruntime:int8": check})


def test_where_no_step_passes_the_export_fails(climb):
    _, check, tried, _ = climb(passing=9)
    assert tried == [names for _, names in STEPS]
    with pytest.raises(ExportError, match=r"onnxruntime:int8: things AP is 0.1. Nothing was written; --allow-worse"):
        require_passed({"onnxruntime:int8": check})
