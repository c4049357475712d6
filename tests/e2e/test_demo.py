"""`lightning demo` from end to end, as small as it gets: summary, picture, run and bundle."""

from __future__ import annotations

import json

from pipeline.bundle import read_bundle
from tests.e2e.commands import lightning, runs_of


def test_the_demo_ends_with_a_summary_and_a_proven_bundle(tmp_path):
    small = ["--data.shapes", "{images: 60, size: 64}", "--data.size", "64", "--data.batch_size", "12"]
    small += ["--trainer.max_epochs", "2", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    done = lightning("demo", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "outputs" / "demo"
    summary = json.loads((folder / "summary.json").read_text())
    assert {"scene", "daytime", "objects", "surface"} <= set(summary["metrics"])
    assert {"AP50", "AP"} <= set(summary["metrics"]["objects"])
    _, (run,) = runs_of(tmp_path)
    assert (summary["run_id"], run.info.status) == (run.info.run_id, "FINISHED")
    assert summary["seconds"] > 0
    assert (folder / "predictions.png").stat().st_size > 1000
    manifest = read_bundle(folder / "bundle").manifest
    assert manifest.provenance["run_id"] == run.info.run_id
    assert manifest.checks["onnxruntime:fp32"]["passed"]
    assert "mlflow ui" in done.stdout
    assert "lightning fit --config configs/multitask.yaml --data.root YOUR_DATA" in done.stdout
