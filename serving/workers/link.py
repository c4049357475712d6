"""The service's end of a worker's socket: messages out, their answers in, told to callbacks without a task between."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import cast

from serving.workers import wire

MOST_BYTES = 1 << 30
"""No decoder's answer is as long; one that a picture took over must not fill the service's memory."""

Answer = tuple[wire.Head, bytes]
Heard = Callable[[Answer | None], None]


class Link(asyncio.Protocol):
    """A connection to a worker, which answers in the order in which it was asked.

    Whatever happens, the callback of `over` and of `ask` is called once: with the answer, or with None where the worker
    is gone or the answer's time was over, which begins when the answer before it is there. `lost` is called where the
    worker goes while nothing is asked of it. The loop itself calls both: they must be short and must not raise.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self._got = bytearray()
        self._asked: deque[tuple[Heard, float]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.WriteTransport | None = None
        self.late = False
        self.lost: Callable[[], None] = lambda: None

    @classmethod
    async def over(cls, own: socket.socket, heard: Heard, timeout_s: float, most_bytes: int = MOST_BYTES) -> Link:
        """A link over a connected socket whose worker speaks first, perhaps before this returns.

        Args:
            own: connected and not blocking.
            heard: as of `ask`, for the worker's first word.
            timeout_s: seconds until that.
            most_bytes: a worker whose answer is longer is hung up on.
        """
        link = cls(most_bytes)
        link._expect(heard, timeout_s)
        await asyncio.get_running_loop().create_connection(lambda: link, sock=own)
        return link

    def ask(self, message: bytes, heard: Heard, timeout_s: float) -> None:
        """Sends a message; `late` tells that time ended the wait for its answer."""
        self._expect(heard, timeout_s)
        if self._transport is None or self.closed:
            self._tell_all_lost()
        else:
            self._transport.write(message)

    @property
    def closed(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._transport is None or self._transport.is_closing()

    def close(self) -> None:
        """Closes the socket at once, whatever was not yet sent."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The loop's word that it listens."""
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's does not inherit from it

    def data_received(self, data: bytes) -> None:
        """A part of the answer."""
        self._got += data
        try:
            while (answer := wire.taken(self._got)) is not None:
                self._tell(answer)
        except ValueError:
            self.close()
            return
        if len(self._got) > self.most_bytes:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # the loop's signature
        """The worker is gone, or the link was closed."""
        if self._asked:
            self._tell_all_lost()
        else:
            self.lost()

    def _expect(self, heard: Heard, timeout_s: float) -> None:
        self._asked.append((heard, timeout_s))
        if len(self._asked) == 1:
            self._time()

    def _time(self) -> None:
        """The wait for the next answer begins."""
        if self._timer is not None:
            self._timer.cancel()
        _, timeout_s = self._asked[0]
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self._give_up)

    def _give_up(self) -> None:
        self.late = True
        self._tell_all_lost()

    def _tell_all_lost(self) -> None:
        while self._asked:
            self._tell(None)

    def _tell(self, answer: Answer | None) -> None:
        if not self._asked:  # nobody asked for this
            return
        heard, _ = self._asked.popleft()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._asked and answer is not None:
            self._time()
        heard(answer)
