"""Where a served model is: a bundle's folder, or a model of the registry whose bundle is fetched."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import BundleError
from pipeline.store import open_client, plain_reason, public_uri, store_errors, store_uri


@contextmanager
def find_bundle(reference: str) -> Iterator[Path]:
    """A bundle on disk from a path, `models:/NAME@ALIAS` or `models:/NAME/VERSION`; a fetched one goes with the block.

    Raises:
        BundleError: the registry has no such model, or cannot be reached.
    """
    if not reference.startswith("models:/"):
        yield Path(reference)
        return
    with tempfile.TemporaryDirectory(prefix="trifocal-") as folder:
        yield _fetch(reference, folder)


def _fetch(reference: str, folder: str) -> Path:
    name = reference.removeprefix("models:/")
    try:
        client = open_client()
        if "@" in name:
            model, _, alias = name.partition("@")
            version = client.get_model_version_by_alias(model, alias)
        else:
            model, _, number = name.partition("/")
            version = client.get_model_version(model, number)
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        import mlflow

        mlflow.set_tracking_uri(store_uri())
        place = client.get_model_version_download_uri(version.name, version.version)
        fetched = mlflow.artifacts.download_artifacts(f"{place}/bundle", dst_path=folder)
    except store_errors() as error:
        raise BundleError(f"{reference} in {public_uri(store_uri())}: {plain_reason(error)}") from error
    return Path(fetched)
