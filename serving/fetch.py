"""`python -m serving.fetch version NAME ALIAS | fetch NAME VERSION FOLDER`: what needs MLflow, in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

from pipeline.errors import BundleError, TrifocalError
from pipeline.store import open_client, plain_reason, public_uri, store_errors, store_uri


def version_of(name: str, alias: str) -> str:
    """The number of the version that an alias names; raises BundleError."""
    try:
        return str(open_client().get_model_version_by_alias(name, alias).version)
    except store_errors() as error:
        raise BundleError(f"models:/{name}@{alias} in {public_uri(store_uri())}: {plain_reason(error)}") from error


def fetch_bundle(name: str, version: str, target: Path) -> None:
    """Downloads a version's bundle into a new folder and checks every file of it; raises BundleError."""
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


def main(arguments: list[str]) -> int:
    """Runs one of the two; one line on stderr where it fails."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        if importlib.util.find_spec("mlflow") is None:
            raise BundleError("registered models need MLflow: pip install mlflow-skinny")
        if arguments[0] == "version":
            sys.stdout.write(version_of(arguments[1], arguments[2]))
        else:
            fetch_bundle(arguments[1], arguments[2], Path(arguments[3]))
    except TrifocalError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
