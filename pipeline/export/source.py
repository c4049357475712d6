"""Where a checkpoint is: a file, a run of MLflow, or the run behind a registered model."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

from pipeline.errors import CheckpointError
from pipeline.registered import fetch_checkpoint, names_run


def find_checkpoint(reference: str) -> Path:
    """A checkpoint on disk from a path, `runs:/RUN_ID`, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    A run's best checkpoint is taken, unless `runs:/RUN_ID/checkpoints/last.ckpt` names another. What is fetched goes
    when the process ends.

    Raises:
        CheckpointError: there is none, or the store cannot be reached.
        ConfigError: `models:` is followed by neither form.
    """
    if names_run(reference):
        folder = tempfile.mkdtemp(prefix="trifocal-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return fetch_checkpoint(reference, Path(folder))
    path = Path(reference)
    if path.is_dir():
        raise CheckpointError(f"checkpoint {path} is a folder; name a file such as outputs/runs/RUN/best.ckpt")
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist; `lightning fit` writes outputs/runs/RUN/best.ckpt")
    return path
