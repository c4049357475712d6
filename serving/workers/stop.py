"""What ends a job early: the service writes the job's number into a pipe, a thread of the worker hears it."""

from __future__ import annotations

import contextlib
import os
import select
import struct
import threading
from collections.abc import Callable

_NUMBER = struct.Struct("!Q")
_MOST = 64 * _NUMBER.size


def tell(pipe: int, number: int) -> None:
    """Asks for the end of a job; a worker that is gone, or that hears nothing, is none's concern here."""
    with contextlib.suppress(OSError):
        os.write(pipe, _NUMBER.pack(number))


def listen(pipe: int, heard: Callable[[int], None]) -> Callable[[], object]:
    """Calls `heard` with each job's number that is told, from a thread that ends with the pipe.

    Returns:
        What has all numbers heard that were told so far, for whoever cannot wait until that thread has its turn.
    """
    os.set_blocking(pipe, False)
    turn = threading.Lock()

    def catch_up() -> bool:
        """Whether more may come."""
        with turn, contextlib.suppress(BlockingIOError):
            while told := os.read(pipe, _MOST):
                for (number,) in _NUMBER.iter_unpack(told):
                    heard(number)
            return False
        return True

    def hear() -> None:
        while catch_up():
            select.select([pipe], [], [])

    threading.Thread(target=hear, name="stop", daemon=True).start()
    return catch_up
