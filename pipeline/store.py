"""An MLflow store, reached quickly or not at all: the probe, and which errors mean that it is down."""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit


def store_uri() -> str:
    """The store: MLFLOW_TRACKING_URI, else sqlite under `mlruns/` of the working directory.

    The path is absolute: MLflow keeps one connection per URI, also after a change of folder.
    """
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlruns/mlflow.db').resolve()}"


def open_client() -> Any:
    """A client of the store once it has answered; raises one of store_errors()."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    probe(store_uri(), timeout=5)
    from mlflow.tracking import MlflowClient

    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    return MlflowClient(store_uri())


def probe(uri: str, timeout: float) -> None:
    """Returns when the store answers within `timeout` seconds; raises one of store_errors() otherwise.

    MLflow itself would retry a dead server for minutes and a dead database for most of an hour.
    """
    parts = urlsplit(uri)
    if parts.scheme in {"http", "https"}:
        import requests

        requests.get(uri.rstrip("/") + "/health", timeout=timeout)
    elif parts.scheme == "sqlite":
        file = Path(uri.removeprefix("sqlite:///"))
        file.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(file, timeout=timeout)) as store:
            store.execute("BEGIN IMMEDIATE")
            store.rollback()
    elif parts.hostname and parts.port:
        socket.create_connection((parts.hostname, parts.port), timeout=timeout).close()


def store_errors() -> tuple[type[Exception], ...]:
    """The exceptions that come from a store, its network or its disk."""
    import requests
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    return MlflowException, requests.RequestException, sqlalchemy.exc.SQLAlchemyError, sqlite3.Error, OSError


def refused(error: Exception) -> bool:
    """Whether the store is up and only this entry was not to its taste."""
    return getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE"


def plain_reason(error: BaseException) -> str:
    """The first line of an error, at most 200 characters; of a failed connection, the system's word for it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (ConnectionError, TimeoutError, socket.gaierror)):
            return cause.strerror or "it did not answer in time"
        cause = cause.__cause__ or cause.__context__
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:200]


def public_uri(uri: str) -> str:
    """The address without a password."""
    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    host = f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
    return urlunsplit(parts._replace(netloc=f"{parts.username}@{host}"))
