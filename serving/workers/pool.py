"""Worker processes and who may use them: each does one job at a time, and one that dies or hangs is replaced."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import socket
import tempfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from pipeline.errors import EngineError, ServeError
from serving.workers import wire

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
    """One process and the service's end of its pipe; `ready` is what it said when it had started."""

    process: Any
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    ready: wire.Head

    def kill(self) -> None:
        """Ends the process at once and collects it."""
        self.writer.close()
        if self.process.pid is not None:
            asyncio.get_running_loop().remove_reader(self.process.sentinel)
            self.process.kill()
            self.process.join(5)


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
    ) -> None:
        self.target, self.settings, self.count, self.kind = target, settings, count, kind
        self.workers: list[Worker] = []
        self._descriptor, self._lost, self._start_timeout_s = descriptor, lost, start_timeout_s
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
        self, head: wire.Head, *payload: bytes, timeout_s: float, release: Callable[[], None]
    ) -> tuple[wire.Head, bytes]:
        """One job on the next idle process: its answer's head and bytes.

        Whoever waits for it may be cancelled: the job then goes on to its end unheard.

        Args:
            head: the job.
            payload: its bytes.
            timeout_s: seconds after which the process counts as hung and is ended.
            release: called when the process has done with the job's memory, whatever happened.

        Raises:
            WorkerLostError: the process died or hung.
        """
        try:
            worker = await self._take()
        except BaseException:
            release()
            raise
        task = asyncio.ensure_future(self._exchange(worker, wire.frame(head, *payload), timeout_s, release))
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

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

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # it was told to whoever still waits

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

    def _watch(self, worker: Worker) -> None:
        """An idle process that dies is replaced at once and not when the next job needs it."""
        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.remove_reader(worker.process.sentinel)
            if worker in self._idle:
                self._idle.remove(worker)
                self._replace(worker, "died")

        loop.add_reader(worker.process.sentinel, ended)

    def _offer(self, worker: Worker) -> None:
        self._idle.append(worker)
        self._wake()

    async def _exchange(
        self, worker: Worker, message: bytes, timeout_s: float, release: Callable[[], None]
    ) -> tuple[wire.Head, bytes]:
        try:
            worker.writer.write(message)
            async with asyncio.timeout(timeout_s):
                answer = await wire.read(worker.reader)
        except (EOFError, TimeoutError) as error:
            hung = isinstance(error, TimeoutError)
            self._replace(worker, "took too long" if hung else "died")
            raise WorkerLostError(f"the {self.kind} {'took too long' if hung else 'died'}", hung) from error
        finally:
            release()
        self._offer(worker)
        return answer

    def _replace(self, worker: Worker, how: str) -> None:
        log.warning("%s process %s %s; another one starts", self.kind, worker.process.pid, how)
        worker.kill()
        if worker in self.workers:
            self.workers.remove(worker)
        self._lost(self.kind)
        if not self._closed:
            task = asyncio.ensure_future(self._restart())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _restart(self) -> None:
        pause = 0.1
        while not self._closed:
            try:
                self._offer(await self._spawn())
            except (EngineError, ServeError, OSError) as error:
                log.warning("%s process cannot start: %s", self.kind, error)
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
        socket.send_fds(ours, [b"\0"], [self._descriptor])
        ours.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 24)
        worker = Worker(process, reader, writer, {})
        self.workers.append(worker)
        try:
            async with asyncio.timeout(self._start_timeout_s):
                worker.ready, _ = await wire.read(reader)
        except (EOFError, TimeoutError) as error:
            worker.kill()
            if worker in self.workers:
                self.workers.remove(worker)
            raise ServeError(
                f"a {self.kind} process did not start; run with --engine onnxruntime, or see the log"
            ) from error
        if "error" in worker.ready:
            worker.kill()
            if worker in self.workers:
                self.workers.remove(worker)
            raise EngineError(str(worker.ready["error"]))
        if self._was_closed():
            worker.kill()
            raise ServeError(f"the {self.kind}s were stopped")
        self._watch(worker)
        return worker
