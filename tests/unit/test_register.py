"""Registering a bundle: the run's own experiment and state are kept, open sizes stay open, names are checked first."""

from __future__ import annotations

from dataclasses import replace

import mlflow
import numpy as np
import pytest

from pipeline.bundle import read_bundle
from pipeline.export.folder import write_manifest
from pipeline.export.register import _signature, log_to_run, register
from serving.engines.registry import load_engine
from tests.unit.bundles import known_bundle


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A client of a store with a run that failed, in an experiment of the user's own name."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        client = mlflow.MlflowClient()
        for name in ("roads", "trifocal"):
            client.create_experiment(name, artifact_location=(folder / "artifacts" / name).as_uri())
        run = client.create_run(client.get_experiment_by_name("roads").experiment_id, start_time=1000)
        client.set_terminated(run.info.run_id, "FAILED", end_time=2000)
        yield client, run.info.run_id


def of_run(folder, run_id):
    bundle = read_bundle(known_bundle(folder / "known"))
    checks = {"onnxruntime:fp32": {"passed": True, "metrics": {"colour": {"accuracy": 0.75}}, "milliseconds": 1.0}}
    checks["onnxruntime:fp32"] |= {"failures": [], "difference": {"colour": None}}
    write_manifest(bundle.path, replace(bundle.manifest, provenance={"run_id": run_id}, checks=checks))
    return read_bundle(bundle.path)


def test_a_run_of_another_experiment_registers_and_stays_as_it_was(store, tmp_path):
    client, run_id = store
    bundle = of_run(tmp_path, run_id)
    said = []
    log_to_run(bundle, said.append)
    assert not said
    version = register(bundle, "streets", "champion")
    held = client.get_model_version_by_alias("streets", "champion")
    assert (str(held.version), held.run_id) == (version, run_id)
    run = client.get_run(run_id)
    assert (run.info.status, run.info.end_time) == ("FAILED", 2000)
    assert run.data.metrics["export/onnxruntime-fp32/colour/accuracy"] == 0.75
    loaded = mlflow.pyfunc.load_model("models:/streets@champion")
    assert loaded.metadata.get_input_schema().inputs[0].shape == (-1, 32, 32, 3)
    answers = loaded.predict(np.full((3, 32, 32, 3), 9, np.uint8))
    assert answers["things.boxes"].shape == (3, 2, 4)


def test_a_run_that_the_store_does_not_know_gets_one_of_its_own(store, tmp_path):
    client, _ = store
    bundle = of_run(tmp_path, "f" * 32)
    said = []
    log_to_run(bundle, said.append)
    assert said
    assert said[0].startswith("the figures are in bundle.json only: sqlite:")
    register(bundle, "lanes", "challenger")
    run = client.get_run(client.get_model_version_by_alias("lanes", "challenger").run_id)
    assert run.info.experiment_id == client.get_experiment_by_name("trifocal").experiment_id


def test_open_sizes_stay_open_in_the_signature(tmp_path):
    bundle = read_bundle(known_bundle(tmp_path / "known"))
    images = np.zeros((2, 32, 32, 3), np.uint8)
    outputs = load_engine(bundle, "onnxruntime").infer(images)
    fixed = _signature(bundle, images, outputs)
    assert fixed.inputs.inputs[0].shape == (-1, 32, 32, 3)
    manifest = replace(bundle.manifest, input=replace(bundle.manifest.input, dynamic_size=True))
    found = _signature(replace(bundle, manifest=manifest), images, outputs)
    assert found.inputs.inputs[0].shape == (-1, -1, -1, 3)
    shapes = {spec.name: spec.shape for spec in found.outputs.inputs}
    assert shapes["ground.mask"] == (-1, -1, -1)
    assert shapes["ground.probabilities"] == (-1, 2, -1, -1)
    assert shapes["things.boxes"] == (-1, 2, 4)


def test_no_store_is_made_for_figures_that_no_run_waits_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    bundle = of_run(tmp_path, "f" * 32)
    said = []
    log_to_run(bundle, said.append)
    assert said[0].startswith("the figures are in bundle.json only: there is no store sqlite:///")
    assert [path.name for path in tmp_path.iterdir()] == ["known"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--alias", "champion"), "--alias is given to a registered model; add --register"),
        (("--register", "--name", "a/b"), "--name 'a/b' may not be empty or hold / @ or :"),
        (("--register", "--alias", "the best"), "--alias 'the best' is none for MLflow"),
        (("--register", "--alias", "v2"), "--alias 'v2' is none for MLflow"),
        (("--ckpt", "."), "checkpoint . is a folder; name a file such as"),
        (("--allow-worse", "nan"), "argument --allow-worse: nan is not between 0 and 1"),
        (("--allow-worse", "-0.01"), "argument --allow-worse: -0.01 is not between 0 and 1"),
        (("--allow-worse", "much"), "argument --allow-worse: invalid"),
    ],
)
def test_what_would_fail_at_the_end_is_told_at_the_start(command, options, told):
    code, _, error = command("export", "--ckpt", "none.ckpt", "--out", "bundle", *options)
    assert code == (1 if "checkpoint" in told else 2)
    assert told in error
    assert len(error.strip().splitlines()) == 1
