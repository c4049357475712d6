"""`lightning serve`: its options, and the process that they start."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from pipeline.arguments import Arguments
from pipeline.errors import ConfigError
from serving.settings import Settings

if TYPE_CHECKING:
    from serving.observe import Metrics
    from serving.traces import Traces


MOST_OF_EACH = 512
"""Processes or threads: no machine that one service runs on has as many cores, and each takes memory at once."""


def main(argv: list[str]) -> int:
    """Starts the service; returns the exit code when a signal has ended it. Raises TrifocalError."""
    settings = parse(argv)
    ended = False

    def end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # the signal module's signature
        nonlocal ended
        ended = True
        raise SystemExit(0)

    # Nothing runs yet that would have to be ended; as a container's first process it would not hear of it at all.
    signal.signal(signal.SIGTERM, end)
    try:
        return _several(settings) if settings.workers > 1 else _one(settings)
    except Exception:
        if ended:  # a library that was being imported made an error of its own of the exit
            return 0
        raise


def _one(settings: Settings) -> int:
    """One process."""
    from serving.workers.process import start_nursery

    # While these modules load here, the workers' load there.
    start_nursery()
    from serving.observe import Metrics, set_up_logs
    from serving.server import bind

    set_up_logs(settings.log_format)
    with bind(settings) as listening, asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_run(settings, listening, Metrics()))
    return 0


def _several(settings: Settings) -> int:
    """Several processes on one socket; their metrics lie in files of a folder that ends with them."""
    with tempfile.TemporaryDirectory(prefix="trifocal-metrics-") as folder:
        # prometheus_client looks at this when it is imported.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        from prometheus_client.multiprocess import mark_process_dead

        from serving.observe import Metrics, set_up_logs
        from serving.server import bind
        from serving.supervisor import Supervisor

        set_up_logs(settings.log_format)
        listening = bind(settings)

        def work(ready: Callable[[], None], alive: int) -> None:
            from serving.workers.process import start_nursery

            start_nursery()
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                runner.run(_run(settings, listening, Metrics(shared=True), ready, alive))

        return Supervisor(work, settings.workers, mark_process_dead, listening.close).run()


async def _run(
    settings: Settings,
    listening: socket.socket,
    metrics: Metrics,
    ready: Callable[[], None] | None = None,
    alive: int | None = None,
) -> None:
    from pipeline.registered import parse_ref
    from serving.follow import Follower
    from serving.server import serve
    from serving.service import Service

    service = Service(settings, metrics, _traces(settings))
    following: asyncio.Task[None] | None = None
    task, ended = asyncio.current_task(), False
    assert task is not None

    def end() -> None:
        nonlocal ended
        ended = True
        task.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end)  # until the server has its own
    try:
        ref = parse_ref(settings.model)
        if ref is None:
            await service.deploy(Path(settings.model))
        else:
            follower = Follower(service, ref)
            await follower.start()
            following = asyncio.ensure_future(follower.run()) if ref.alias else None
        await serve(service, listening, ready, alive)
    except asyncio.CancelledError:
        if not ended:
            raise
    finally:
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        await service.close()


def _traces(settings: Settings) -> Traces:
    from serving.traces import OFF

    if not settings.traces:
        return OFF
    from serving.otel import OpenTelemetry

    return OpenTelemetry()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    import uvloop

    return uvloop.new_event_loop


def parse(argv: list[str]) -> Settings:
    """The command line as Settings; raises ConfigError for values that make no sense."""
    default = Settings("")
    parser = Arguments("lightning serve", "An HTTP service for a bundle: a page at /, an API at /predict and /v2.")
    parser.add_argument("model", metavar="BUNDLE|models:/NAME@ALIAS", help="a bundle's folder, or a registered model")
    parser.add_argument("--host", default=default.host, help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=default.port, help="0 takes a free one")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the port")
    parser.add_argument("--engine", default="auto", help="auto, or a name such as onnxruntime or openvino:bf16")
    parser.add_argument("--streams", type=int, default=0, help="engine processes of a worker (default: by the machine)")
    parser.add_argument("--threads", type=int, default=0, help="threads of an engine process (default: by the machine)")
    parser.add_argument(
        "--lone-threads",
        type=int,
        default=0,
        help="threads for a picture that is alone (default: all cores, 8 at most; 1: as for the others, with less memory)",
    )
    parser.add_argument(
        "--decoders", type=int, default=0, help="decode processes of a worker (default: by the machine)"
    )
    parser.add_argument("--max-batch", type=int, default=0, help="most pictures computed together")
    parser.add_argument("--batch-delay-ms", type=float, default=0.0, help="wait for fuller batches; only on a GPU")
    parser.add_argument(
        "--queue", dest="queue_items", type=int, default=default.queue_items, help="most pictures waiting"
    )
    parser.add_argument("--max-wait", type=float, default=default.max_wait_s, metavar="S", help="longest wait accepted")
    parser.add_argument(
        "--deadline", type=float, default=default.deadline_s, metavar="S", help="until an answer is given up"
    )
    parser.add_argument("--max-body-mb", type=float, default=default.max_body / 2**20, help="largest request")
    parser.add_argument("--max-image-mb", type=float, default=default.max_image / 1e6, help="largest picture")
    parser.add_argument("--max-megapixels", type=float, default=default.max_pixels / 1e6, help="largest picture")
    parser.add_argument("--max-images", type=int, default=default.max_images, help="pictures of a request")
    parser.add_argument(
        "--body-timeout", type=float, default=default.body_timeout_s, metavar="S", help="for slow senders"
    )
    parser.add_argument("--header-timeout", type=float, default=default.header_timeout_s, metavar="S", help="likewise")
    parser.add_argument(
        "--quota", type=float, default=0.0, help="requests per second of one client (default: no limit)"
    )
    parser.add_argument("--drain", type=float, default=default.drain_s, metavar="S", help="grace after SIGTERM")
    parser.add_argument(
        "--stop", type=float, default=default.stop_s, metavar="S", help="for accepted requests after it"
    )
    parser.add_argument("--poll", type=float, default=default.poll_s, metavar="S", help="between looks at the registry")
    parser.add_argument("--api-keys", type=Path, metavar="FILE", help="a key per line; or TRIFOCAL_API_KEYS=a,b")
    parser.add_argument("--cors", default="", metavar="ORIGIN,...", help="pages that may call from a browser")
    parser.add_argument("--log-format", choices=("text", "json"), default="text")
    parser.add_argument("--traces", action="store_true", help="OpenTelemetry, sent as the OTEL_* variables say")
    given = parser.parse(argv)
    for name in (
        "port",
        "streams",
        "threads",
        "lone_threads",
        "decoders",
        "max_batch",
        "batch_delay_ms",
        "quota",
        "drain",
    ):
        if not 0 <= getattr(given, name) < math.inf:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(given, name)}; it takes 0 or more")
    for name in ("workers", "streams", "threads", "lone_threads", "decoders"):
        if getattr(given, name) > MOST_OF_EACH:
            raise ConfigError(f"--{name} is {getattr(given, name)}; it takes at most {MOST_OF_EACH}")
    if not given.host:
        raise ConfigError(
            "--host is empty, which would listen everywhere; name an address, such as 127.0.0.1 or 0.0.0.0"
        )
    for name in ("workers", "queue_items", "max_wait", "deadline", "max_body_mb", "max_image_mb", "max_megapixels",
                 "max_images", "body_timeout", "header_timeout", "stop", "poll"):  # fmt: skip
        if not 0 < getattr(given, name) < math.inf:
            option = {"queue_items": "queue"}.get(name, name).replace("_", "-")
            raise ConfigError(f"--{option} is {getattr(given, name)}; it takes more than 0")
    return Settings(
        model=given.model,
        host=given.host,
        port=given.port,
        workers=given.workers,
        engine=given.engine,
        streams=given.streams,
        threads=given.threads,
        lone=given.lone_threads,
        decoders=given.decoders,
        max_batch=given.max_batch,
        batch_delay_s=given.batch_delay_ms / 1000,
        queue_items=given.queue_items,
        max_wait_s=given.max_wait,
        deadline_s=given.deadline,
        max_body=round(given.max_body_mb * 2**20),
        max_image=round(given.max_image_mb * 1e6),
        max_pixels=round(given.max_megapixels * 1e6),
        max_images=given.max_images,
        body_timeout_s=given.body_timeout,
        header_timeout_s=given.header_timeout,
        quota=given.quota,
        drain_s=given.drain,
        stop_s=given.stop,
        poll_s=given.poll,
        api_keys=_keys(given.api_keys),
        cors=tuple(part.strip() for part in given.cors.split(",") if part.strip()),
        log_format=given.log_format,
        traces=given.traces,
    )


def _keys(file: Path | None) -> tuple[str, ...]:
    """Keys from a file or the environment; never from the command line, which others can read."""
    if file is None:
        return tuple(key.strip() for key in os.environ.get("TRIFOCAL_API_KEYS", "").split(",") if key.strip())
    try:
        lines = file.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-keys {file}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from error
    if not lines:
        raise ConfigError(f"--api-keys {file} holds no key; write one per line")
    return tuple(lines)
