"""Registered models: which version an alias names now, and its bundle in a folder of this machine.

The store is asked by plain HTTP where it is a server. MLflow itself is imported only in a short-lived process, when a
version is fetched or the store is a database: it would take more memory than the service.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from base64 import b64encode
from pathlib import Path

from pipeline.bundle import read_bundle
from pipeline.errors import BundleError
from pipeline.registered import ModelRef
from pipeline.store import plain_reason, public_uri, store_uri


def current_version(ref: ModelRef) -> str:
    """The number of the version that the reference names now; raises BundleError when the store cannot tell."""
    if ref.version:
        return ref.version
    uri = store_uri()
    if not uri.startswith(("http://", "https://")):
        return _by_mlflow("version", ref.name, ref.alias)
    query = urllib.parse.urlencode({"name": ref.name, "alias": ref.alias})
    request = urllib.request.Request(  # noqa: S310  # the scheme was looked at
        f"{uri.rstrip('/')}/api/2.0/mlflow/registered-models/alias?{query}", headers=_credentials()
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
            return str(json.loads(answer.read(1 << 20))["model_version"]["version"])
    except urllib.error.HTTPError as error:
        reason = "there is no such model or alias" if error.code == 404 else f"the store answered {error.code}"
        raise BundleError(f"{ref}: {reason} in {public_uri(uri)}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{ref}: {public_uri(uri)} cannot be asked: {plain_reason(error)}") from error


def fetch(ref: ModelRef, version: str) -> Path:
    """The bundle's folder of a version, fetched unless it is here already; raises BundleError."""
    target = cache_folder(ref) / version
    if (target / "bundle.json").is_file():
        return target
    part = target.with_name(f".{version}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        _by_mlflow("fetch", ref.name, version, str(part))
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
    except OSError as error:
        # Another worker may have been first.
        if not (target / "bundle.json").is_file():
            raise BundleError(
                f"{ref} version {version} cannot be kept in {target}: {error.strerror}; set XDG_CACHE_HOME to a folder with room"
            ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def forget(ref: ModelRef, version: str) -> None:
    """Removes a fetched version that proved broken, so that it can be fetched anew."""
    shutil.rmtree(cache_folder(ref) / version, ignore_errors=True)


def forget_damaged(ref: ModelRef, version: str) -> bool:
    """Removes a fetched version whose files are no longer what was exported; whether it did."""
    folder = cache_folder(ref) / version
    if not folder.is_dir():
        return False
    try:
        read_bundle(folder).verify()
    except BundleError:
        forget(ref, version)
        return True
    return False


def remember(ref: ModelRef, version: str) -> None:
    """Keeps which version served, for a start while the store is down; on a full disk that is not known."""
    file = cache_folder(ref) / f"{ref.alias or 'fixed'}.last"
    part = file.with_name(f".{file.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        part.write_text(version)
        part.replace(file)


def recall(ref: ModelRef) -> str | None:
    """The version that served last and is still here, or None."""
    try:
        version = (cache_folder(ref) / f"{ref.alias or 'fixed'}.last").read_text()
    except OSError:
        return None
    return version if (cache_folder(ref) / version / "bundle.json").is_file() else None


def cache_folder(ref: ModelRef) -> Path:
    """Where fetched versions of a model lie: one folder for each store and name."""
    base = os.environ.get("XDG_CACHE_HOME")
    store = hashlib.sha256(store_uri().encode()).hexdigest()[:12]
    name = urllib.parse.quote(ref.name, safe="")
    return (Path(base) if base else Path.home() / ".cache") / "trifocal" / "models" / store / name


def _credentials() -> dict[str, str]:
    """MLflow's own environment variables as an Authorization header."""
    token, user = os.environ.get("MLFLOW_TRACKING_TOKEN"), os.environ.get("MLFLOW_TRACKING_USERNAME")
    if token:
        return {"Authorization": f"Bearer {token}"}
    if user:
        pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
        return {"Authorization": f"Basic {b64encode(pair.encode()).decode()}"}
    return {}


def _by_mlflow(*arguments: str) -> str:
    """Runs `serving.fetch` in a process of its own; what it printed. Raises BundleError with its one line."""
    command = [sys.executable, "-m", "serving.fetch", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)  # noqa: S603  # itself
    except subprocess.TimeoutExpired as error:
        raise BundleError(f"{arguments[1]}: the store did not answer within 10 minutes") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise BundleError(lines[-1].removeprefix("error: "))
    return done.stdout.strip()
