"""Metrics for Prometheus, and logs that carry the request id."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

STAGES = ("read", "decode", "queue", "engine", "answer", "total")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Every figure of the service; with several workers they lie in files that any of them can add up.

    Args:
        shared: whether PROMETHEUS_MULTIPROC_DIR was set before this module was imported.
    """

    def __init__(self, shared: bool = False) -> None:
        self._shared = shared
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "trifocal_requests", "Requests answered.", ["route", "method", "status"], registry=registry
        )
        self.images = Counter(
            "trifocal_images", "Pictures answered, or refused by kind.", ["outcome"], registry=registry
        )
        self.rejected = Counter("trifocal_rejections", "Requests refused, by reason.", ["reason"], registry=registry)
        self._stage = Histogram(
            "trifocal_stage_seconds", "Time per picture and stage.", ["stage"], buckets=_SECONDS, registry=registry
        )
        self._batch = Histogram(
            "trifocal_batch_size", "Pictures computed together.", buckets=(1, 2, 4, 8, 16, 32), registry=registry
        )
        self._lost = Counter("trifocal_lost_processes", "Processes that died or hung.", ["kind"], registry=registry)
        self._waiting = Gauge(
            "trifocal_queue_images", "Pictures in the house.", registry=registry, multiprocess_mode="livesum"
        )
        self._waiting_bytes = Gauge(
            "trifocal_queue_bytes", "Bytes of requests in the house.", registry=registry, multiprocess_mode="livesum"
        )
        self._model = Gauge(
            "trifocal_model_info",
            "1 for the model version that answers.",
            ["name", "version", "run_id", "engine"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.swaps = Counter("trifocal_model_swaps", "Looks at a new version.", ["outcome"], registry=registry)
        self._stages = {stage: self._stage.labels(stage) for stage in STAGES}

    def stage(self, stage: str, seconds: float) -> None:
        """Counts one stage of one picture."""
        self._stages[stage].observe(seconds)

    def batch(self, size: int) -> None:
        """Counts one batch."""
        self._batch.observe(size)

    def in_the_house(self, pictures: int, size: int) -> None:
        """Counts pictures and bytes that came in, or that left: below zero."""
        if pictures:
            self._waiting.inc(pictures)
        if size:
            self._waiting_bytes.inc(size)

    def lost(self, kind: str) -> None:
        """Counts a process that died or hung."""
        self._lost.labels(kind).inc()

    def model(self, name: str, version: str, run_id: str, engine: str, serves: bool) -> None:
        """Says which version answers."""
        self._model.labels(name, version, run_id, engine).set(1 if serves else 0)

    def expose(self) -> bytes:
        """All figures in Prometheus' text format, added up over the workers."""
        if not self._shared:
            return generate_latest(self._registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)


class JsonLines(logging.Formatter):
    """One JSON object per line; fields given as `extra={"fields": {...}}` stand beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)


class TextLines(logging.Formatter):
    """The same for people."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the trace where there is one."""
        fields = " ".join(f"{key}={_word(value)}" for key, value in getattr(record, "fields", {}).items())
        line = f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {record.getMessage()} {fields}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _word(value: object) -> str:
    """A value as one word: a path that strangers chose can neither begin a line nor look like another field."""
    text = str(value)
    return text if text.isprintable() and " " not in text else repr(text)


def set_up_logs(log_format: str, level: int = logging.INFO) -> None:
    """Sends the service's logs to stderr as `text` or `json` lines."""
    # A record's thread, process and line of code stand in no line of ours: finding them is a third of a line's time.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # noqa: SLF001  # as the standard library's logging HOWTO has it
    forms: dict[str, Callable[[], logging.Formatter]] = {"json": JsonLines, "text": TextLines}
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(forms[log_format]())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("trifocal").setLevel(level)
