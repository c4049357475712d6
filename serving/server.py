"""Uvicorn with what it lacks: a drain before it stops, and a time limit for slowly sent headers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pipeline.errors import ServeError
from serving.app import build_app
from serving.service import Service
from serving.settings import Settings

log = logging.getLogger("trifocal.server")

MAX_HEADER_BYTES = 65_536


class LimitedProtocol(HttpToolsProtocol):
    """Closes a connection whose next request's head does not come whole in time, or has no end."""

    header_timeout_s = 10.0
    max_connections = 1000
    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """Counts it; one too many is closed."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.close()
            return
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Bytes of a head are counted until it is whole."""
        if self._timer is None and (self.cycle is None or self.cycle.response_complete):
            self._expect_head()
        if self._timer is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._timer is not None and self._head_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self.transport.close()

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._head_came()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more is expected."""
        self._head_came()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._head_bytes = 0
        self._timer = self.loop.call_later(self.header_timeout_s, self.transport.close)

    def _head_came(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


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
        raise ServeError(f"cannot listen on {settings.host}:{settings.port}: {reason}; name another --port") from error
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
    protocol = type(
        "Protocol",
        (LimitedProtocol,),
        {"header_timeout_s": settings.header_timeout_s, "max_connections": settings.connections},
    )
    config = uvicorn.Config(
        build_app(service),
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
