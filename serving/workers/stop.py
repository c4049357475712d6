"""What ends a job early: the service writes the job's number into a pipe, a thread of the worker hears it."""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections.abc import Callable

_NUMBER = struct.Struct("!Q")


def tell(pipe: int, number: int) -> None:
    """Asks for the end of a job; a worker that is gone, or that hears nothing, is none's concern here."""
    with contextlib.suppress(OSError):
        os.write(pipe, _NUMBER.pack(number))


def listen(pipe: int, heard: Callable[[int], None]) -> None:
    """Calls `heard` with each job's number that is told, from a thread that ends with the pipe."""

    def hear() -> None:
        while told := os.read(pipe, _NUMBER.size):
            heard(_NUMBER.unpack(told)[0])

    threading.Thread(target=hear, name="stop", daemon=True).start()
