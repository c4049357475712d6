"""Models registered in MLflow: `models:/NAME@ALIAS` and `models:/NAME/VERSION`, what they name, and their bundle."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import BundleError, ConfigError
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
