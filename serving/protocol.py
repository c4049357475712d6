"""Uvicorn's HTTP protocol with what it lacks: limits on slow senders, and refusals that cost next to nothing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, MutableMapping
from typing import Any

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serving.problems import MEDIA_TYPE, Problem

MAX_HEADER_BYTES = 65_536

BODY_AHEAD = 1 << 18
"""Bytes of a body that may wait for the application: as many as one read gives, where uvicorn stops reading at 65,536."""

_CONTINUE = b"HTTP/1.1 100 "
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)


class LimitedProtocol(HttpToolsProtocol):
    """Closes a connection whose next head does not come whole in time or has no end; refuses by the head alone.

    What `turn_away` refuses is answered before its body is read and without a task. The rest of its body is read and
    thrown away: a connection closed on unread bytes is reset, and its client would lose the answer. So is the rest of one
    that the application answers before it has come.
    """

    header_timeout_s = 10.0
    body_timeout_s = 20.0
    max_connections = 1000
    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _in_head = True
    _leaving = False

    @staticmethod
    def turn_away(scope: MutableMapping[str, Any]) -> Response | None:
        """What refuses a request by its head alone; None lets it in. The application puts its own here."""
        del scope
        return None

    def connection_made(self, transport: Any) -> None:
        """Counts it; one too many is closed."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.close()
            return
        self._wait_at_most(self.header_timeout_s)

    def data_received(self, data: bytes) -> None:
        """Bytes of a head are counted until it is whole; bytes of a body that was answered already have their time too."""
        if self._timer is None and (self.cycle is None or self.cycle.response_complete):
            self._wait_at_most(self.header_timeout_s if self._in_head else self.body_timeout_s)
        if self._in_head:
            data = _without_upgrade(data)
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self.transport.close()

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._came()
        self._in_head = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of it, which the application takes at its next turn."""
        if self.cycle.response_complete:
            return
        self.cycle.body += body
        if len(self.cycle.body) > BODY_AHEAD:
            self.flow.pause_reading()
        self.cycle.message_event.set()

    def on_message_complete(self) -> None:
        """The body is whole; what follows is the next head."""
        super().on_message_complete()
        self._came()
        self._in_head, self._head_bytes = True, 0
        if self._leaving:
            self.transport.close()
        elif self.cycle.response_complete:  # the body came after its answer, and ended the wait for the next head
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is told so as all errors are told."""
        body = Problem("bad-request", msg).encode()
        parts = [STATUS_LINE[400], *(part for pair in self.server_state.default_headers for part in _line(*pair))]
        parts += _line(b"content-type", MEDIA_TYPE.encode()) + _line(b"content-length", b"%d" % len(body))
        self.transport.write(b"".join((*parts, *_line(b"connection", b"close"), b"\r\n", body)))
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more is expected."""
        self._came()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """A request's turn. With a uvicorn that names this step otherwise, the application itself refuses, in a task."""
        if self.transport.is_closing():
            return
        # Refusing a queue of pipelined requests here would recurse: only the last of them is.
        response = None if self.pipeline else self.turn_away(cycle.scope)
        if response is None:
            _join_writes(cycle, self._closes_later)
            super()._start_asgi_task(cycle, app)
        else:
            self._refuse(cycle, response)

    def _refuse(self, cycle: Any, response: Response) -> None:
        self._leaving = not cycle.keep_alive or response.headers.get("connection") == "close"
        parts = [STATUS_LINE[response.status_code]]
        for name, value in (*self.server_state.default_headers, *response.raw_headers):
            parts += _line(name, value)
        if not cycle.keep_alive and "connection" not in response.headers:
            parts += _line(b"connection", b"close")
        parts += (b"\r\n", b"" if cycle.scope["method"] == "HEAD" else bytes(response.body))
        self.transport.write(b"".join(parts))
        cycle.response_started = cycle.response_complete = True
        self.on_response_complete()
        if cycle.more_body:
            self._wait_at_most(self.body_timeout_s)
        elif self._leaving:
            self.transport.close()

    def _closes_later(self) -> bool:
        """Whether a connection that is to be closed is first read to the body's end, which is thrown away."""
        if self.cycle is None or not self.cycle.more_body or self.transport.is_closing():
            return False
        self._leaving = True
        if self._timer is None:
            self._wait_at_most(self.body_timeout_s)
        return True

    def _wait_at_most(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self.transport.close)

    def _came(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class JoinedWrites:
    """A request's transport that sends an answer's head together with what comes after it: its reader wakes once.

    Args:
        transport: the connection's. What is written first, but for `100 Continue`, is the head.
        closes_later: asked where it is to be closed: whether somebody else sees to that.
    """

    def __init__(self, transport: Any, closes_later: Callable[[], bool] = lambda: False) -> None:
        self._transport, self._closes_later = transport, closes_later
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        """A head waits for its body, of which there may be nothing."""
        if self._head is None and not data.startswith(_CONTINUE):
            self._head = data
        elif self._head and data:
            self._transport.writelines((self._head, data))
            self._head = b""
        else:
            self.flush()
            self._transport.write(data)

    def flush(self) -> None:
        """Sends a head that still waits."""
        if self._head:
            self._transport.write(self._head)
            self._head = b""

    def close(self) -> None:
        """Sends a head that still waits, and closes."""
        self.flush()
        if not self._closes_later():
            self._transport.close()

    def __getattr__(self, name: str) -> Any:
        """Everything else is the transport's own."""
        return getattr(self._transport, name)


def _join_writes(cycle: Any, closes_later: Callable[[], bool] = lambda: False) -> None:
    """Has uvicorn's cycle send its answer's head with the body; all is sent when it says that the answer is whole."""
    joined, answered = JoinedWrites(cycle.transport, closes_later), cycle.on_response

    def flushed() -> None:
        joined.flush()
        answered()

    cycle.transport, cycle.on_response = joined, flushed


def _line(name: bytes, value: bytes) -> tuple[bytes, ...]:
    """A header's line."""
    return name, b": ", value, b"\r\n"


def _without_upgrade(data: bytes) -> bytes:
    """A head without its offer to speak another protocol: Java's client makes one, and the parser would read no body."""
    end = data.find(b"\r\n\r\n")
    offer = _UPGRADE.search(data, 0, len(data) if end < 0 else end)
    return data if offer is None else data[: offer.start()] + b"\r\nx-not-taken:" + data[offer.end() :]
