"""What a worker process runs, by kind: the libraries for it are imported there and not in the service."""

from __future__ import annotations

from multiprocessing.connection import Connection
from typing import Any


def decoder(pipe: Connection, settings: dict[str, Any]) -> None:
    """Strangers' bytes to pixels, as `serving.workers.decoder.run`."""
    from serving.workers.decoder import run

    run(pipe, settings)


def engine(pipe: Connection, settings: dict[str, Any]) -> None:
    """Pixels to answers, as `serving.workers.engine.run`."""
    from serving.workers.engine import run

    run(pipe, settings)
