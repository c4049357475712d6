"""`lightning export`, `describe` and `evaluate` as a user runs them, and the bundle in the hands of others."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import onnxruntime as ort
import pytest
from mlflow.models import Model
from PIL import Image

from pipeline.bundle import read_bundle
from serving.predictor import Predictor
from tests.e2e.commands import ROOT, TINY, lightning, runs_of


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a trained run, exported by the run's id and registered as champion."""
    folder = tmp_path_factory.mktemp("trained")
    done = lightning("fit", *TINY, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    done = lightning("test", *TINY, "--ckpt_path", "best", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    _, (run,) = runs_of(folder)
    reference = f"runs:/{run.info.run_id}"
    options = ("--register", "--name", "tiny", "--alias", "champion")
    done = lightning("export", "--ckpt", reference, "--out", "bundle", *options, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "stdout").write_text(done.stdout)
    return folder


def test_the_table_tells_files_parity_metrics_and_speed(trained):
    table = (trained / "stdout").read_text()
    for word in ("model.onnx", "model.ts.pt", "selftest.npz", "eager", "onnxruntime:fp32", "openvino:fp32", "images/s"):
        assert word in table
    assert "FAILED" not in table
    checks = read_bundle(trained / "bundle").manifest.checks
    assert all(check["passed"] for name, check in checks.items() if name != "eager")


def test_the_figures_are_in_the_run(trained):
    client, (run,) = runs_of(trained)
    assert any(name.startswith("export/") and "onnxruntime" in name for name in run.data.metrics)
    (folder,) = client.list_artifacts(run.info.run_id, "export")[:1]
    assert folder.path.startswith("export/")


def test_describe_tells_what_is_inside(trained):
    told = lightning("describe", "bundle", cwd=trained)
    assert told.returncode == 0, told.stderr
    for word in (
        "scene (classes)",
        "objects (boxes",
        "disc",
        "surface (mask)",
        "64 x 64",
        "resnet18",
        "every checksum",
    ):
        assert word in told.stdout
    manifest = json.loads(lightning("describe", "bundle", "--json", cwd=trained).stdout)
    _, (run,) = runs_of(trained)
    assert manifest["provenance"]["run_id"] == run.info.run_id


def test_a_bundle_scores_as_its_training_did(trained):
    shapes = '{"images": 60, "size": 64}'
    done = lightning("evaluate", "bundle", "--data.shapes", shapes, "--json", "scores.json", cwd=trained)
    assert done.returncode == 0, done.stderr
    found = json.loads((trained / "scores.json").read_text())
    assert found["split"] == "test"
    _, (run,) = runs_of(trained)
    for head, metric in (("scene", "accuracy"), ("objects", "AP"), ("objects", "AP50"), ("surface", "mIoU")):
        wanted = run.data.metrics[f"test/{head}/{metric}"]
        assert found["metrics"][head][metric] == pytest.approx(wanted, abs=0.003), (head, metric)


def test_the_registered_model_has_signature_example_metrics_and_alias(trained, tmp_path):
    client, (run,) = runs_of(trained)
    version = client.get_model_version_by_alias("tiny", "champion")
    assert version.tags["trifocal.bundle"] == read_bundle(trained / "bundle").manifest.version
    model = client.get_logged_model(version.source.rpartition("/")[2])
    assert model.source_run_id == run.info.run_id
    found = {metric.key: metric.value for metric in model.metrics}
    accuracy = "export/onnxruntime-fp32/scene/accuracy"
    assert found[accuracy] == pytest.approx(run.data.metrics[accuracy])
    folder = mlflow.artifacts.download_artifacts(model.artifact_location, dst_path=str(tmp_path))
    packed = Model.load(folder)
    (entry,) = packed.signature.inputs.inputs
    assert (entry.type, entry.shape[1:]) == (np.dtype(np.uint8), (64, 64, 3))
    assert {"objects.boxes", "surface.mask"} <= set(packed.signature.outputs.input_names())
    assert np.asarray(packed.load_input_example(folder)).shape == (2, 64, 64, 3)


def test_int8_of_a_registered_model_on_open_sizes(trained):
    """From `models:/`, with what the gate lets pass knowingly: two epochs of training make no robust network."""
    options = ("--int8", "--allow-worse", "1", "--no-torchscript", "--no-mask-probabilities", "--dynamic-size")
    done = lightning("export", "--ckpt", "models:/tiny@champion", "--out", "small", *options, cwd=trained)
    assert done.returncode == 0, done.stderr[-3000:]
    manifest = read_bundle(trained / "small").manifest
    assert {"model.onnx", "model.int8.onnx"} <= set(manifest.files)
    assert "model.ts.pt" not in manifest.files
    assert manifest.files["model.int8.onnx"].bytes < 0.5 * manifest.files["model.onnx"].bytes
    for spec in ("onnxruntime:int8", "openvino:int8"):
        assert manifest.checks[spec]["float"]
        assert manifest.checks[spec]["passed"]
    assert {"model.int8.xml", "model.int8.bin"} <= set(manifest.files)
    for file in ("model.onnx", "model.int8.onnx"):
        session = ort.InferenceSession(trained / "small" / file, providers=["CPUExecutionProvider"])
        (entry,) = session.get_inputs()
        assert not any(isinstance(side, int) for side in entry.shape[:3])
        (mask,) = session.run(["surface.mask"], {entry.name: np.zeros((2, 96, 160, 3), np.uint8)})
        assert mask.shape == (2, 96, 160)
    assert "onnxruntime:int8 keeps in float" in done.stdout


def test_a_network_that_answers_otherwise_gets_no_name(trained):
    """The ONNX file is written from weights that were changed on the way: the gate must notice."""
    spoilt = (
        "import sys, torch, pipeline.export.run as run\n"
        "write = run.export_onnx\n"
        "def spoil(graph, *rest):\n"
        "    import copy\n"
        "    other = copy.deepcopy(graph)\n"
        "    with torch.no_grad():\n"
        "        for weight in other.parameters(): weight.mul_(1.05)\n"
        "    write(other, *rest)\n"
        "run.export_onnx = spoil\n"
        "from pipeline.cli import main\n"
        "sys.exit(main())\n"
    )
    checkpoint = next((trained / "outputs").glob("runs/*/best.ckpt"))
    done = subprocess.run(
        [sys.executable, "-c", spoilt, "export", "--ckpt", str(checkpoint), "--out", "never", "--no-torchscript"],
        cwd=trained, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "onnxruntime:fp32" in done.stderr
    assert not [path for path in trained.iterdir() if "never" in path.name]


def test_plain_mlflow_loads_the_registered_model(trained):
    """`examples/mlflow_pyfunc.py`, with nothing of this project imported."""
    command = [sys.executable, "-I", str(ROOT / "examples" / "mlflow_pyfunc.py"), "models:/tiny@champion"]
    env = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{trained}/mlruns/mlflow.db"}
    done = subprocess.run(command, cwd=trained, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"^objects\.boxes float32 \(2, \d+, 4\)$", done.stdout, re.MULTILINE)
    assert re.search(r"^surface\.mask uint8 \(2, 64, 64\)$", done.stdout, re.MULTILINE)


def test_onnxruntime_alone_answers_alike(trained, tmp_path):
    """`examples/onnx_only.py` in a process that has neither torch nor this project."""
    pixels = np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    packages = tmp_path / "packages"
    packages.mkdir()
    import onnxruntime

    site = Path(onnxruntime.__file__).parents[1]
    for name in ("onnxruntime", "numpy", "numpy.libs", "PIL", "pillow.libs"):
        if (site / name).exists():
            (packages / name).symlink_to(site / name)
    alone = (
        "import importlib.util, runpy, sys\n"
        f"sys.path.append({str(packages)!r})\n"
        "assert not any(importlib.util.find_spec(name) for name in ('torch', 'mlflow', 'pipeline', 'serving'))\n"
        f"sys.argv = ['onnx_only.py', {str(trained / 'bundle' / 'model.onnx')!r}, {str(tmp_path / 'picture.png')!r}]\n"
        f"runpy.run_path({str(ROOT / 'examples' / 'onnx_only.py')!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", alone], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = [json.loads(line) for line in done.stdout.splitlines()]
    predictor = Predictor.load(trained / "bundle", "onnxruntime", threads=1)
    (answer,) = predictor.predict([(tmp_path / "picture.png").read_bytes()])
    scene = next(line for line in told if line["head"] == "scene")
    names = predictor.heads["scene"].space.names
    for name, wanted in zip(names, answer.heads["scene"].probabilities, strict=True):
        assert scene[name] == pytest.approx(float(wanted), abs=2e-4)
    shares = next(line for line in told if line["head"] == "surface")["share of pixels"]
    assert sum(shares.values()) == pytest.approx(1, abs=0.01)
