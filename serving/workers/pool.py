"""Worker processes and who may use them: each does one job at a time, and one that dies or hangs is replaced."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import socket
import tempfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from pipeline.errors import EngineError, ServeError
from serving.workers import stop, wire
from serving.workers.link import MOST_BYTES, Answer, Link

log = logging.getLogger("trifocal.workers")

PRELOAD = "serving.workers.preloaded"
"""Imported once in the process that all workers are forked from: they start at once and share its memory.

The command's own module goes first, which each of them would otherwise import anew.
"""

Target = Callable[[Connection, dict[str, Any]], None]


class WorkerLostError(Exception):
    """The process died, or was ended because it took too long, before it answered."""

    def __init__(self, message: str, hung: bool = False) -> None:
        super().__init__(message)
        self.hung = hung


@dataclass(eq=False, slots=True)
class Worker:
    """One process and the service's ends of its socket and of the pipe that ends jobs.

    `ready` is what it said when it had started, `number` that of its latest job.
    """

    process: Any
    link: Link
    ends: int
    ready: wire.Head
    number: int = 0

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


class WorkerPool:
    """`count` processes of one kind.

    Args:
        target: what a process runs: a function of its pipe and the settings.
        settings: plain values for it.
        count: processes.
        descriptor: a file the processes get, the slab's.
        kind: `decoder` or `engine`, for logs and metrics.
        lost: called with the kind whenever a process was lost.
        start_timeout_s: seconds a process may take to start.
        most_bytes: a process whose answer is longer counts as lost.
    """

    def __init__(
        self,
        target: Target,
        settings: dict[str, Any],
        count: int,
        descriptor: int,
        kind: str,
        lost: Callable[[str], None],
        start_timeout_s: float = 120,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self.target, self.settings, self.count, self.kind = target, settings, count, kind
        self.workers: list[Worker] = []
        self._descriptor, self._lost, self._start_timeout_s = descriptor, lost, start_timeout_s
        self._most_bytes = most_bytes
        self._idle: list[Worker] = []
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def start(self) -> wire.Head:
        """Starts all processes side by side; what the first said when it was ready. Raises EngineError or ServeError."""
        started = await asyncio.gather(*(self._spawn() for _ in range(self.count)), return_exceptions=True)
        for found in started:
            if isinstance(found, BaseException):
                self.close()
                raise found
            self._offer(found)
        return self.workers[0].ready

    async def call(
        self, head: wire.Head, *payload: bytes, timeout_s: float, release: Callable[[Answer | None], None]
    ) -> Answer:
        """One job on the next idle process: its answer's head and bytes.

        Whoever waits for it may be cancelled: the process is told, and the job goes on to its end unheard where it
        cannot be ended early.

        Args:
            head: the job.
            payload: its bytes.
            timeout_s: seconds after which the process counts as hung and is ended.
            release: called when the process has done with the job's memory, with the answer, or None where it gave none.

        Raises:
            WorkerLostError: the process died or hung.
        """
        try:
            worker = await self._take()
        except BaseException:
            release(None)
            raise
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def heard(found: Answer | None) -> None:
            release(found)
            if found is not None:
                self._offer(worker)
                if not answer.done():  # else whoever waited was cancelled
                    answer.set_result(found)
                return
            how = "took too long" if worker.link.late else "died"
            self._replace(worker, how)
            if not answer.done():
                answer.set_exception(WorkerLostError(f"the {self.kind} {how}", worker.link.late))
                answer.exception()  # counts as seen, also where whoever waits is cancelled just now

        worker.number = number = worker.number + 1
        worker.link.ask(wire.frame({"number": number, **head}, *payload), heard, timeout_s)
        try:
            return await answer
        except asyncio.CancelledError:
            if worker.ends >= 0:
                stop.tell(worker.ends, number)
            raise

    @property
    def idle(self) -> int:
        """Processes that wait for work."""
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """Jobs that wait for a process."""
        return len(self._waiting)

    def close(self) -> None:
        """Ends all processes."""
        self._closed = True
        for worker in self.workers:
            worker.kill()
        self.workers.clear()

    async def _take(self) -> Worker:
        while not self._idle:
            if self._closed:
                raise WorkerLostError(f"the {self.kind}s were stopped")
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._wake()
                raise
        return self._idle.pop()

    def _wake(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def _idle_lost(self, worker: Worker) -> None:
        """An idle process that dies is replaced at once and not when the next job needs it."""
        if worker in self._idle:
            self._idle.remove(worker)
            self._replace(worker, "died")

    def _offer(self, worker: Worker) -> None:
        if worker.link.closed:
            self._replace(worker, "died")
            return
        self._idle.append(worker)
        self._wake()

    def _end(self, worker: Worker) -> None:
        worker.kill()
        if worker in self.workers:
            self.workers.remove(worker)

    def _replace(self, worker: Worker, how: str) -> None:
        self._end(worker)
        if not self._closed:
            log.warning("%s process %s %s; another one starts", self.kind, worker.process.pid, how)
            self._lost(self.kind)
            task = asyncio.ensure_future(self._restart())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _restart(self) -> None:
        pause = 0.1
        while not self._closed:
            try:
                self._offer(await self._spawn())
            except (EngineError, ServeError, OSError, EOFError) as error:  # the last: the nursery died over it
                log.warning("%s process cannot start: %s", self.kind, error or type(error).__name__)
                await asyncio.sleep(pause)
                pause = min(2 * pause, 5.0)
            else:
                return

    def _was_closed(self) -> bool:
        return self._closed

    async def _spawn(self) -> Worker:
        ours, theirs = socket.socketpair()
        handed = Connection(theirs.detach())
        context = multiprocessing.get_context("forkserver")
        process = context.Process(target=self.target, args=(handed, self.settings), daemon=True)
        await asyncio.to_thread(process.start)
        handed.close()
        if self._closed:
            ours.close()
            process.kill()
            raise ServeError(f"the {self.kind}s were stopped")
        try:
            ends = self._hand_over(ours)
        except OSError as error:
            ours.close()
            process.kill()
            raise self._no_start() from error
        first: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()

        def heard(found: Answer | None) -> None:
            if not first.done():
                first.set_result(found)

        worker = Worker(process, await Link.over(ours, heard, self._start_timeout_s, self._most_bytes), ends, {})
        self.workers.append(worker)
        if self._was_closed():  # meanwhile: this worker was not yet among those that were ended
            self._end(worker)
            raise ServeError(f"the {self.kind}s were stopped")
        answer = await first
        if answer is None:
            self._end(worker)
            raise self._no_start()
        worker.ready, _ = answer
        if "error" in worker.ready:
            self._end(worker)
            raise EngineError(str(worker.ready["error"]))
        if self._was_closed():
            self._end(worker)
            raise ServeError(f"the {self.kind}s were stopped")
        worker.link.lost = partial(self._idle_lost, worker)
        return worker

    def _no_start(self) -> ServeError:
        return ServeError(f"a {self.kind} process did not start; run with --engine onnxruntime, or see the log")

    def _hand_over(self, ours: socket.socket) -> int:
        """Sends a new process its descriptors; the service's end of the pipe that ends jobs. Raises OSError."""
        hears, ends = os.pipe()
        try:
            os.set_blocking(ends, False)
            socket.send_fds(ours, [b"\0"], [self._descriptor, hears])
            ours.setblocking(False)
        except OSError:
            os.close(ends)
            raise
        finally:
            os.close(hears)
        return ends
