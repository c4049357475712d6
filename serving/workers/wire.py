"""Messages between the service and its worker processes: a JSON head and raw bytes, over a stream socket.

JSON and not pickle: a decoder that a hostile image took over must not be able to run code in the service.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the workers, who have one job at a time, do without
    import asyncio

Head = dict[str, Any]

_LENGTHS = struct.Struct("!II")


def frame(head: Head, *payload: bytes | memoryview) -> bytes:
    """One message as bytes."""
    text = json.dumps(head, separators=(",", ":")).encode()
    return b"".join((_LENGTHS.pack(len(text), sum(len(part) for part in payload)), text, *payload))


async def read(reader: asyncio.StreamReader) -> tuple[Head, bytes]:
    """The next message; raises EOFError when the other side is gone."""
    try:
        head, body = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
        text = await reader.readexactly(head)
        return json.loads(text), await reader.readexactly(body) if body else b""
    except (EOFError, OSError) as error:
        raise EOFError("the worker is gone") from error


def receive(pipe: socket.socket) -> tuple[Head, bytearray]:
    """The next message, blocking; raises EOFError when the other side is gone."""
    head, body = _LENGTHS.unpack(_exactly(pipe, _LENGTHS.size))
    return json.loads(_exactly(pipe, head)), _exactly(pipe, body)


def send(pipe: socket.socket, head: Head, *payload: bytes | memoryview) -> None:
    """Sends a message, blocking."""
    pipe.sendall(frame(head, *payload))


def _exactly(pipe: socket.socket, length: int) -> bytearray:
    data = bytearray(length)
    view, at = memoryview(data), 0
    while at < length:
        got = pipe.recv_into(view[at:])
        if not got:
            raise EOFError("the service is gone")
        at += got
    return data
