"""The page, its pictures and figures as artifacts of the MLflow run that trained the network, or of a new one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.inspect.subject import Subject
from pipeline.store import open_client, plain_reason, public_uri, store_errors, store_uri

FOLDER = "inspect"
"""Of the run's artifacts."""


def log_page(
    subject: Subject, files: Sequence[Path], figures: dict[str, Any], say: Callable[[str], None]
) -> str | None:
    """Adds the page's files and the sums of the costs; returns the run's id, or None where the store refuses.

    Args:
        subject: says the run; a named backbone gets one of its own.
        files: the page, its pictures and figures; whatever else lies in their folder stays there.
        figures: of the looks, by name.
        say: told what was done or why not.
    """
    try:
        client = open_client()
        run = subject.run or _new_run(subject.name)
        if run is None:
            return None
        for file in files:
            client.log_artifact(run, str(file), FOLDER)
        costs = figures.get("costs", {})
        for name in ("parameters", "multiply_adds", "activation_bytes"):
            if name in costs:
                client.log_metric(run, f"{FOLDER}/{name}", float(costs[name]))
    except store_errors() as error:
        say(f"not tracked: {public_uri(store_uri())}: {plain_reason(error)}")
        return None
    say(f"tracked: {FOLDER}/ of run {run}")
    return run


def _new_run(name: str) -> str | None:
    from pipeline.tracking import RunLogger

    logger = RunLogger(name=f"{FOLDER} {name}")
    run = logger.run_id
    logger.finalize("success")
    return run
