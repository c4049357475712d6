"""How a worker process begins: its socket and the slab's descriptor."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

IDLE_S = 10.0
"""Seconds after which a process is idle: the first picture after that pays for fetching the memory again."""


NICER = 3
"""Steps by which workers give way to the service itself, which must refuse and hand on at once while all cores are busy."""


def settle() -> None:
    """Returns memory that loading took and that nobody uses any more; does nothing without glibc."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def keep_freed() -> None:
    """Tells glibc to keep what is freed: to fetch and return an engine's buffers with each picture costs time."""
    threshold, trim = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(threshold, 1 << 30)
        libc.mallopt(trim, (1 << 31) - 1)


def hush_libraries() -> None:
    """C libraries tell standard error what they think of a stranger's picture; only Python's own lines reach the log."""
    heard = os.dup(2)
    with open(os.devnull, "w", encoding="ascii") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 2)
    sys.stderr = open(heard, "w", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: PTH123, SIM115


def await_work(own: socket.socket, rest: Callable[[], None] = settle) -> None:
    """Returns when there is something to read; a process without work for a while gives memory back first, by `rest`."""
    if not select.select([own], [], [], IDLE_S)[0]:
        rest()
        select.select([own], [], [])


def enter(pipe: Connection, kind: str) -> tuple[socket.socket, list[int]]:
    """In a new worker process: its socket, and the descriptors it was sent: the slab's, and of the pipe that ends jobs. `kind` names it in `ps` and `top`.

    The service alone decides when a worker ends, by closing the pipe: signals to the whole group pass it by.
    """
    os.nice(NICER)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(f"tri-{kind}")
    own = socket.socket(fileno=os.dup(pipe.fileno()))
    pipe.close()
    _, descriptors, _, _ = socket.recv_fds(own, 1, 2)
    if len(descriptors) < 2:  # the service gave up before this process was there
        raise SystemExit(0)
    return own, descriptors
