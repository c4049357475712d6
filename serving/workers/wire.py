"""Messages between the service and its worker processes: a JSON head and raw bytes, over a stream socket.

JSON and not pickle: a decoder that a hostile image took over must not be able to run code in the service.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

Head = dict[str, Any]

_LENGTHS = struct.Struct("!II")


def frame(head: Head, *payload: bytes | memoryview) -> bytes:
    """One message as bytes."""
    text = json.dumps(head, separators=(",", ":")).encode()
    return b"".join((_LENGTHS.pack(len(text), sum(len(part) for part in payload)), text, *payload))


def taken(got: bytearray) -> tuple[Head, bytes] | None:
    """The first message, taken off the bytes; None where some of it are still to come.

    Raises:
        ValueError: they are none.
    """
    if len(got) < _LENGTHS.size:
        return None
    head, body = _LENGTHS.unpack_from(got)
    start = _LENGTHS.size + head
    end = start + body
    if len(got) < end:
        return None
    try:
        found = json.loads(got[_LENGTHS.size : start])
    except RecursionError as error:
        raise ValueError("a message's head is nested too deep") from error
    if not isinstance(found, dict):
        raise ValueError("a message's head is no object")  # noqa: TRY004  # its value is at fault
    with memoryview(got) as view:
        rest = bytes(view[start:end])
    del got[:end]
    return found, rest


def receive(pipe: socket.socket) -> tuple[Head, bytes]:
    """The next message, blocking; raises EOFError when the other side is gone."""
    head, body = _LENGTHS.unpack(_exactly(pipe, _LENGTHS.size))
    return json.loads(_exactly(pipe, head)), _exactly(pipe, body)


def send(pipe: socket.socket, head: Head, *payload: bytes | memoryview) -> None:
    """Sends a message, blocking."""
    pipe.sendall(frame(head, *payload))


def _exactly(pipe: socket.socket, length: int) -> bytes:
    parts = []
    while length:
        part = pipe.recv(length, socket.MSG_WAITALL)  # all at once, but for signals
        if not part:
            raise EOFError("the service is gone")
        parts.append(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
