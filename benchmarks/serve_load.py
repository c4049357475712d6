"""Load for an HTTP service: ready-made bytes over kept connections, by clients that wait or on a schedule that does not.

It shares the cores with the service that it loads, hence bare protocols on uvloop instead of an HTTP client.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import uvloop

Result = TypeVar("Result")
Address = tuple[str, int]

_LENGTH = re.compile(rb"content-length: (\d+)")


def message(body: bytes, path: str = "/predict?masks=none", kind: str = "image/jpeg") -> bytes:
    """One POST."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def multipart(data: list[bytes]) -> bytes:
    """One POST of several files."""
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="i"; filename="%d.jpg"\r\n\r\n' % number + one + b"\r\n"
        for number, one in enumerate(data)
    ]
    return message(b"".join(parts) + b"--b--\r\n", kind="multipart/form-data; boundary=b")


def run(load: Coroutine[Any, Any, Result]) -> Result:
    """Runs one of the loads below."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(load)


class _Exchange(asyncio.Protocol):
    """One connection: the statuses of its answers in turn."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[int] | None = None
        self.last = False
        self._got, self._left = b"", -1

    def data_received(self, data: bytes) -> None:
        self._got += data
        if self._left < 0:
            end = self._got.find(b"\r\n\r\n")
            if end < 0:
                return
            length = _LENGTH.search(self._got, 0, end)
            assert length is not None
            self._left = end + 4 + int(length[1])
            self.last = b"connection: close" in self._got[:end]
        if len(self._got) >= self._left and self.answer is not None:
            status, self._got, self._left = int(self._got[9:12]), b"", -1
            if not self.answer.done():
                self.answer.set_result(status)

    def connection_lost(self, exc: Exception | None) -> None:
        self.last = True
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(EOFError("closed without an answer"))


class Connection:
    """A connection that is opened when needed and kept while the other side keeps it."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._open: tuple[asyncio.Transport, _Exchange] | None = None

    async def ask(self, data: bytes) -> int:
        """Sends ready-made bytes; the answer's status. Raises OSError or EOFError."""
        loop = asyncio.get_running_loop()
        if self._open is None:
            self._open = await loop.create_connection(_Exchange, *self._address)
        transport, exchange = self._open
        exchange.answer = loop.create_future()
        transport.write(data)
        try:
            return await exchange.answer
        finally:
            if exchange.last:
                self.close()

    def close(self) -> None:
        """Ends it."""
        if self._open is not None:
            self._open[0].close()
        self._open = None


async def closed_loop(
    address: Address, clients: int, seconds: float, messages: list[bytes]
) -> tuple[float, list[float]]:
    """Clients that wait for each answer: answers per second until the last one came, and every answer's milliseconds."""
    times: list[float] = []
    started = time.perf_counter()
    end = started + seconds

    async def client(number: int) -> None:
        connection, turn = Connection(address), number
        while time.perf_counter() < end:
            begun = time.perf_counter()
            if await connection.ask(messages[turn % len(messages)]) == 200:
                times.append(1000 * (time.perf_counter() - begun))
            turn += 1
        connection.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    return len(times) / (time.perf_counter() - started), times


@dataclass
class Scheduled:
    """What came of requests sent on schedule: milliseconds since they were due, lost connections, seconds in all."""

    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    lost: int = 0
    seconds: float = 0.0


async def open_loop(address: Address, rate: float, seconds: float, messages: list[bytes]) -> Scheduled:
    """Sends `rate` requests a second, whatever comes back."""
    found = Scheduled()
    idle: list[Connection] = []
    tasks: set[asyncio.Task[None]] = set()

    async def one(data: bytes, due: float) -> None:
        connection = idle.pop() if idle else Connection(address)
        try:
            status = await connection.ask(data)
        except (OSError, EOFError):
            found.lost += 1
            connection.close()
            return
        (found.answered if status == 200 else found.refused).append(1000 * (time.perf_counter() - due))
        idle.append(connection)

    begun = time.perf_counter()
    for number in range(round(rate * seconds)):
        due = begun + number / rate
        if due > time.perf_counter():
            await asyncio.sleep(due - time.perf_counter())
        task = asyncio.ensure_future(one(messages[number % len(messages)], due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    found.seconds = time.perf_counter() - begun
    for connection in idle:
        connection.close()
    return found


class Ear(asyncio.Protocol):
    """Hears whether an answer came."""

    answered = False

    def data_received(self, data: bytes) -> None:
        self.answered |= data.startswith(b"HTTP/1.1 200")


async def hang_up(address: Address, clients: int, messages: list[bytes]) -> int:
    """Clients that leave after 50 ms; how many of them had their answer by then."""
    loop = asyncio.get_running_loop()

    async def one(data: bytes) -> bool:
        transport, ear = await loop.create_connection(Ear, *address)
        transport.write(data)
        await asyncio.sleep(0.05)
        transport.abort()
        return ear.answered

    return sum(await asyncio.gather(*(one(messages[number % len(messages)]) for number in range(clients))))
