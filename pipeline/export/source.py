"""Where a checkpoint is: a file, a run of MLflow, or the run behind a registered model."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError
from pipeline.registered import ModelRef, find_version, parse_ref
from pipeline.store import open_client, plain_reason, public_uri, store_errors, store_uri


def find_checkpoint(reference: str) -> Path:
    """A checkpoint on disk from a path, `runs:/RUN_ID`, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    A run's best checkpoint is taken, unless `runs:/RUN_ID/checkpoints/last.ckpt` names another. What is fetched goes
    when the process ends.

    Raises:
        CheckpointError: there is none, or the store cannot be reached.
        ConfigError: `models:` is followed by neither form.
    """
    ref = parse_ref(reference)
    if ref is None and not reference.startswith("runs:/"):
        path = Path(reference)
        if not path.is_file():
            raise CheckpointError(
                f"checkpoint {path} does not exist; `lightning fit` writes outputs/runs/RUN/best.ckpt"
            )
        return path
    try:
        client = open_client()
        run, _, named = reference.removeprefix("runs:/").partition("/")
        if ref is not None:
            run, named = _run_of_model(client, ref), ""
        held = {item.path for item in client.list_artifacts(run, "checkpoints")}
        asked = (named,) if named else ("checkpoints/best.ckpt", "checkpoints/last.ckpt")
        wanted = next((path for path in asked if path in held), None)
        if wanted is None:
            told = (
                f"no {named}; it holds {', '.join(sorted(held))}"
                if named and held
                else "no checkpoint; train it to its end"
            )
            raise CheckpointError(f"{reference}: run {run} holds {told}")
        folder = tempfile.mkdtemp(prefix="trifocal-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return Path(client.download_artifacts(run, wanted, folder))
    except store_errors() as error:
        raise CheckpointError(f"{reference} in {public_uri(store_uri())}: {plain_reason(error)}") from error


def _run_of_model(client: Any, ref: ModelRef) -> str:
    run: str | None = find_version(client, ref).run_id
    if not run:
        raise CheckpointError(f"{ref} was registered without a run, so its checkpoint is not known")
    return run
