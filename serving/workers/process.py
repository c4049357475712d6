"""One worker process: how it is started and ended, and the service's end of it."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from pipeline.errors import ServeError
from serving.workers import stop, wire
from serving.workers.link import Link

PRELOAD = "serving.workers.preloaded"
"""Imported once in the process that all workers are forked from: they start at once and share its memory.

The command's own module goes first, which each of them would otherwise import anew.
"""

Target = Callable[[Connection, dict[str, Any]], None]


@dataclass(eq=False, slots=True)
class Worker:
    """One process and the service's ends of its socket and of the pipe that ends jobs.

    `ready` is what it said when it had started, `asked` how many jobs it was given, `answered` how many of them it has
    done with. It works on one at a time, in order.
    """

    process: Any
    link: Link
    ends: int
    ready: wire.Head
    asked: int = 0
    answered: int = 0

    @property
    def jobs(self) -> int:
        """Jobs it has not done with."""
        return self.asked - self.answered

    def end(self, number: int) -> None:
        """Tells the process that nobody waits for its job of that number any more."""
        if self.ends >= 0:
            stop.tell(self.ends, number)

    def kill(self) -> None:
        """Ends the process at once and collects it."""
        self.link.lost = _nothing
        self.link.close()
        if self.ends >= 0:
            os.close(self.ends)
            self.ends = -1
        if self.process.pid is not None:
            self.process.kill()
            self.process.join(5)


def _nothing() -> None:
    """Nobody is to be told; a killed worker's link knows of no one, so that all of it is freed at once."""


class Launched(NamedTuple):
    """A process that runs, the service's end of its socket, and of the pipe that ends its jobs."""

    process: Any
    own: socket.socket
    ends: int

    def undo(self) -> None:
        """Ends it again."""
        self.own.close()
        os.close(self.ends)
        self.process.kill()


def start_nursery() -> None:
    """Starts the process that workers are forked from; later calls find it running. Raises ServeError."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", PRELOAD])
    from multiprocessing import forkserver

    try:
        forkserver.ensure_running()
    except OSError as error:  # its socket's path has room for about 100 characters
        raise ServeError(
            f"no worker can start from {tempfile.gettempdir()}: {error}; set TMPDIR to a short path"
        ) from error


async def launch(target: Target, settings: dict[str, Any], descriptor: int) -> Launched:
    """Forks a process that runs `target` and sends it the descriptor of the slab; raises OSError."""
    ours, theirs = socket.socketpair()
    handed = Connection(theirs.detach())
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=target, args=(handed, settings), daemon=True)
    try:
        await asyncio.to_thread(process.start)
        return Launched(process, ours, _hand_over(ours, descriptor))
    except OSError:
        ours.close()
        if process.pid is not None:
            process.kill()
        raise
    finally:
        handed.close()


def _hand_over(ours: socket.socket, descriptor: int) -> int:
    """Sends a new process its descriptors; the service's end of the pipe that ends jobs. Raises OSError."""
    hears, ends = os.pipe()
    try:
        os.set_blocking(ends, False)
        socket.send_fds(ours, [b"\0"], [descriptor, hears])
        ours.setblocking(False)
    except OSError:
        os.close(ends)
        raise
    finally:
        os.close(hears)
    return ends
