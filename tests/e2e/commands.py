"""The real `lightning` command, for tests: a tiny training on the built-in data, and what a run left in MLflow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TINY = [
    "--config", str(ROOT / "configs" / "multitask.yaml"),
    "--data.shapes", "{images: 60, size: 64}",
    "--data.size", "64",
    "--data.batch_size", "12",
    "--trainer.max_epochs", "2",
    "--trainer.accelerator", "cpu",
    "--trainer.enable_progress_bar", "false",
    "--trainer.enable_model_summary", "false",
]  # fmt: skip


def lightning(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The installed command's result."""
    command = [str(Path(sys.executable).parent / "lightning"), *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)


def runs_of(folder: Path):
    """A client of the store in a folder, and its runs, the newest first."""
    from mlflow.tracking import MlflowClient

    store = f"sqlite:///{folder}/mlruns/mlflow.db"
    client = MlflowClient(store, store)
    return client, client.search_runs([client.get_experiment_by_name("trifocal").experiment_id])
