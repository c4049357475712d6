"""Where a checkpoint is: a file, a run of MLflow, or the run behind a registered model."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pipeline.errors import CheckpointError
from pipeline.registered import fetch_checkpoint, names_run


def find_checkpoint(reference: str) -> Path:
    """A checkpoint on disk from a path, `runs:/RUN_ID`, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises:
        CheckpointError: there is none, or the store cannot be reached.
        ConfigError: `models:` is followed by neither form.
    """
    if names_run(reference):
        return fetch_checkpoint(reference, Path(tempfile.mkdtemp(prefix="trifocal-")))
    path = Path(reference)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist; `lightning fit` writes outputs/runs/RUN/best.ckpt")
    return path
