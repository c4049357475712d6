"""The bundle in MLflow: its figures in the run it came from, and the ONNX model in the registry."""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bundle import Bundle
from pipeline.errors import ExportError
from pipeline.export.table import export_table
from pipeline.provenance import clean
from pipeline.store import open_client, plain_reason, public_uri, store_errors, store_uri


def figures(bundle: Bundle) -> dict[str, float]:
    """`export/<engine>/<head>/<metric>`, `.../difference` and `export/<engine>/milliseconds` of every engine."""
    out: dict[str, float] = {}
    for spec, check in bundle.manifest.checks.items():
        engine = clean(f"export/{spec.replace(':', '-')}")
        for head, metrics in check.get("metrics", {}).items():
            out |= {
                clean(f"{engine}/{head}/{name}"): v for name, v in metrics.items() if v is not None and "/" not in name
            }
        out |= {f"{engine}/{head}/difference": v for head, v in check.get("difference", {}).items() if v is not None}
        out[f"{engine}/milliseconds"] = check.get("milliseconds", math.nan)
    return {name: float(value) for name, value in out.items() if math.isfinite(value)}


def log_to_run(bundle: Bundle, say: Callable[[str], None]) -> None:
    """Adds the figures and the table to the run that trained the network; says so where that cannot be done."""
    run = bundle.manifest.provenance.get("run_id")
    if not run:
        return
    uri = store_uri()
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        say(f"the figures are in bundle.json only: there is no store {uri}; MLFLOW_TRACKING_URI names another")
        return
    from mlflow.entities import Metric

    version = bundle.manifest.version
    try:
        client = open_client()
        stamp = int(1000 * bundle.path.stat().st_mtime)
        client.log_batch(run, metrics=[Metric(name, value, stamp, 0) for name, value in figures(bundle).items()])
        client.log_text(run, export_table(bundle), f"export/{version}.txt")
        client.log_artifact(run, str(bundle.path / "bundle.json"), f"export/{version}")
    except store_errors() as error:
        say(f"the figures are in bundle.json only: {public_uri(store_uri())}: {plain_reason(error)}")


def register(bundle: Bundle, name: str, alias: str) -> str:
    """Registers `model.onnx` with signature, input example and metrics, and the whole bundle beside it under `bundle/`.

    Returns the version's number; raises ExportError when the store refuses.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    import mlflow
    import onnx

    images, outputs = _example(bundle)
    try:
        client = open_client()
        mlflow.set_tracking_uri(store_uri())
        trained = _known_run(client, bundle)
        if trained is None:
            mlflow.set_experiment("trifocal")
        else:  # MLflow adds to a run only within its own experiment
            mlflow.set_experiment(experiment_id=trained.experiment_id)
        with (
            warnings.catch_warnings(),
            _unchanged(client, trained),
            mlflow.start_run(run_id=None if trained is None else trained.run_id),
            tempfile.TemporaryDirectory() as folder,
        ):
            warnings.simplefilter("ignore")
            info = mlflow.onnx.log_model(
                onnx.load(str(bundle.path / "model.onnx")),
                name="model",
                signature=_signature(bundle, images, outputs),
                input_example=images,
                metadata={"trifocal.version": bundle.manifest.version},
                save_as_external_data=False,
                pip_requirements=["onnx", "onnxruntime", "numpy"],
            )
            shutil.copytree(bundle.path, Path(folder) / "bundle")
            client.log_model_artifacts(info.model_id, folder)
            mlflow.log_metrics(figures(bundle), model_id=info.model_id)
            version = mlflow.register_model(f"models:/{info.model_id}", name)
        client.set_registered_model_alias(name, alias, version.version)
        client.set_model_version_tag(name, version.version, "trifocal.bundle", bundle.manifest.version)
    except store_errors() as error:
        raise ExportError(f"{name} cannot be registered in {public_uri(store_uri())}: {plain_reason(error)}") from error
    return str(version.version)


@contextmanager
def _unchanged(client: Any, run: Any) -> Iterator[None]:
    """Leaves a run's state and end as they are: MLflow would make a failed run a finished one, and of today."""
    try:
        yield
    finally:
        if run is not None and run.status == "RUNNING":
            client.update_run(run.run_id, "RUNNING")
        elif run is not None:
            client.set_terminated(run.run_id, run.status, run.end_time)


def _signature(bundle: Bundle, images: np.ndarray[Any, Any], outputs: dict[str, np.ndarray[Any, Any]]) -> Any:
    """The model's signature; where the network takes other heights and widths, these are open in it too."""
    import mlflow

    found = mlflow.models.infer_signature(images, outputs)
    if bundle.manifest.input.dynamic_size:
        from mlflow.types import Schema, TensorSpec

        found.inputs = Schema([TensorSpec(images.dtype, (-1, -1, -1, 3))])
        masks = {o for h in bundle.manifest.heads.values() if h.kind == "mask" for o in h.outputs}
        found.outputs = Schema(
            [
                TensorSpec(spec.type, (*spec.shape[:-2], -1, -1), spec.name) if spec.name in masks else spec
                for spec in found.outputs.inputs
            ]
        )
    return found


def _known_run(client: Any, bundle: Bundle) -> Any:
    """MLflow's entry of the run that trained the network where the store knows it; None otherwise."""
    from mlflow.exceptions import MlflowException

    run = bundle.manifest.provenance.get("run_id")
    if not run:
        return None
    try:
        return client.get_run(run).info
    except MlflowException:
        return None


def _example(bundle: Bundle) -> tuple[np.ndarray[Any, Any], dict[str, np.ndarray[Any, Any]]]:
    """Two images (one alone would fix the batch at 1) and the ONNX file's own answers."""
    from serving.engines.compare import read_selftest
    from serving.engines.registry import load_engine

    known = read_selftest(bundle)
    images = known[0] if known is not None else np.zeros((2, *bundle.manifest.input.size, 3), np.uint8)
    return images, load_engine(bundle, "onnxruntime").infer(images)
