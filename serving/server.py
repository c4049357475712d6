"""Uvicorn with what it lacks: a drain before it stops, and the protocol's limits."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn

from pipeline.errors import ServeError
from serving.app import build_app
from serving.protocol import LimitedProtocol
from serving.service import Service
from serving.settings import Settings

log = logging.getLogger("trifocal.server")


class DrainingServer(uvicorn.Server):
    """At SIGTERM: not ready, a moment of grace while still accepting, then the accepted requests, then the end."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Takes the signals over; uvicorn would close the socket at once and end by the signal."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.drain)
        yield

    def drain(self) -> None:
        """Begins the end; a second signal skips the grace."""
        if self._service.draining:
            self.should_exit = True
            return
        self._service.draining = True
        log.info("stopping: not ready any more, accepting for %g s more", self._service.settings.drain_s)
        asyncio.get_running_loop().call_later(self._service.settings.drain_s, setattr, self, "should_exit", True)


def bind(settings: Settings) -> socket.socket:
    """A socket bound to the address; raises ServeError naming it."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((settings.host, settings.port))
        found.listen(2048)
    except (OSError, OverflowError) as error:
        found.close()
        reason = getattr(error, "strerror", None) or error
        no_place = isinstance(error, socket.gaierror) or getattr(error, "errno", None) == errno.EADDRNOTAVAIL
        other = "--host of this machine" if no_place else "--port"
        raise ServeError(f"cannot listen on {settings.host}:{settings.port}: {reason}; name another {other}") from error
    return found


async def serve(
    service: Service, listening: socket.socket, ready: Callable[[], None] | None = None, alive: int | None = None
) -> None:
    """Answers until a signal ends it.

    Args:
        service: what answers.
        listening: where.
        ready: called when it listens.
        alive: a pipe whose other end a supervisor holds: when that is gone, this process ends too.
    """
    settings = service.settings
    app = build_app(service)
    protocol = type(
        "Protocol",
        (LimitedProtocol,),
        {
            "header_timeout_s": settings.header_timeout_s,
            "body_timeout_s": settings.body_timeout_s,
            "max_connections": settings.connections,
            "turn_away": staticmethod(app.turn_away),
        },
    )
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(settings.stop_s)),
    )
    host, port = listening.getsockname()[:2]
    log.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
    server = DrainingServer(config, service)
    loop = asyncio.get_running_loop()
    if alive is not None:

        def orphaned() -> None:
            loop.remove_reader(alive)
            server.drain()

        loop.add_reader(alive, orphaned)
    if ready is not None:
        ready()
    await server.serve(sockets=[listening])
