"""What MLflow keeps by name: `models:/NAME@ALIAS` with its bundle, `runs:/RUN_ID` with its checkpoint."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import BundleError, CheckpointError, ConfigError
from pipeline.store import open_client, plain_reason, public_uri, store_errors, store_uri

_PATTERN = re.compile(r"models:/(?P<name>[^/@:]+)(?:@(?P<alias>[\w.-]+)|/(?P<version>\d+))")


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A registered model by alias, or one fixed version of it."""

    name: str
    alias: str = ""
    version: str = ""

    def __str__(self) -> str:
        return f"models:/{self.name}" + (f"@{self.alias}" if self.alias else f"/{self.version}")


def parse_ref(text: str) -> ModelRef | None:
    """A ModelRef of `models:/NAME@ALIAS` or `models:/NAME/VERSION`; None for a folder's path. Raises ConfigError."""
    if not text.startswith("models:"):
        return None
    found = _PATTERN.fullmatch(text)
    if found is None:
        raise ConfigError(f"{text!r} names no registered model; write models:/NAME@ALIAS or models:/NAME/VERSION")
    return ModelRef(found["name"], found["alias"] or "", found["version"] or "")


def find_version(client: Any, ref: ModelRef) -> Any:
    """MLflow's own entry of the version that the reference names now; raises one of store_errors()."""
    if ref.alias:
        return client.get_model_version_by_alias(ref.name, ref.alias)
    return client.get_model_version(ref.name, ref.version)


def version_number(ref: ModelRef) -> str:
    """The number of the version that the reference names now; raises BundleError."""
    try:
        return str(find_version(open_client(), ref).version)
    except store_errors() as error:
        raise BundleError(f"{ref} in {public_uri(store_uri())}: {plain_reason(error)}") from error


def fetch_bundle(name: str, version: str, target: Path) -> None:
    """Downloads a version's bundle into a new folder and checks every file of it; raises BundleError."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    from pipeline.bundle import read_bundle

    try:
        open_client()
    except store_errors() as error:
        raise BundleError(
            f"models:/{name}/{version}: {public_uri(store_uri())} cannot be asked: {plain_reason(error)}"
        ) from error
    try:
        mlflow.set_tracking_uri(store_uri())
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            found = mlflow.artifacts.download_artifacts(f"models:/{name}/{version}/bundle", dst_path=folder)
            shutil.copytree(found, target)
    except store_errors() as error:
        raise BundleError(
            f"models:/{name}/{version} has no bundle in {public_uri(store_uri())} ({plain_reason(error)}); "
            "register it by `lightning export --register`"
        ) from error
    read_bundle(target).verify()


def names_run(reference: str) -> bool:
    """Whether a checkpoint is named by MLflow's `runs:/RUN_ID` or `models:/...` rather than by a file."""
    return reference.startswith(("runs:/", "models:"))


def fetch_checkpoint(reference: str, folder: Path) -> Path:
    """Downloads the best checkpoint of `runs:/RUN_ID`, or the one that a registered model was exported from.

    `runs:/RUN_ID/checkpoints/last.ckpt` names another one.

    Raises:
        CheckpointError: there is none, or the store cannot be reached.
        ConfigError: `models:` is followed by neither of its forms.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    ref = parse_ref(reference)
    try:
        client = open_client()
        if ref is None:
            run, _, named = reference.removeprefix("runs:/").partition("/")
            digest = ""
        else:
            (run, digest), named = _origin(client, ref), ""
        held = _held(client, reference, run, named)
        for path in held:
            found = Path(client.download_artifacts(run, path, str(folder)))
            if not digest or _sha256(found).startswith(digest):
                return found
            found.unlink()
        raise CheckpointError(
            f"{reference} was exported from a checkpoint that run {run} does not hold (any more): give its file, or take "
            f"another one by runs:/{run}/{held[0]}"
        )
    except store_errors() as error:
        raise CheckpointError(f"{reference} in {public_uri(store_uri())}: {plain_reason(error)}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _held(client: Any, reference: str, run: str, named: str) -> list[str]:
    """A run's checkpoints, the one that is asked for first; raises CheckpointError where there is none such."""
    held = sorted(item.path for item in client.list_artifacts(run, "checkpoints"))
    asked = (named,) if named else ("checkpoints/best.ckpt", "checkpoints/last.ckpt")
    wanted = next((path for path in asked if path in held), None)
    if wanted is None:
        told = f"no {named}; it holds {', '.join(held)}" if named and held else "no checkpoint; train it to its end"
        raise CheckpointError(f"{reference}: run {run} holds {told}")
    return [wanted, *(path for path in held if path != wanted)]


def _origin(client: Any, ref: ModelRef) -> tuple[str, str]:
    """The run behind a version and how its checkpoint's SHA-256 begins; "" where the version does not tell."""
    found = find_version(client, ref)
    if not found.run_id:
        raise CheckpointError(f"{ref} was registered without a run, so its checkpoint is not known")
    told = re.fullmatch(r"([0-9a-f]{8})-\d+", found.tags.get("trifocal.bundle", ""))
    return found.run_id, told[1] if told else ""


@contextmanager
def weights_at_hand(weights: str | None) -> Iterator[str | None]:
    """Weights as a backbone takes them: a run's checkpoint is fetched, and goes with the block; others stay as they are.

    Raises CheckpointError and ConfigError as `fetch_checkpoint`, and those of the block under the run's name.
    """
    if weights is None or not names_run(weights):
        yield weights
        return
    with tempfile.TemporaryDirectory(prefix="trifocal-") as folder:
        path = fetch_checkpoint(weights, Path(folder))
        try:
            yield str(path)
        except CheckpointError as error:
            raise CheckpointError(
                str(error).replace(f"weights file {path}", weights).replace(str(path), weights)
            ) from error
