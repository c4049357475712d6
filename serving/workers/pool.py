"""Worker processes and who may use them: each does its jobs one by one, and one that dies or hangs is replaced."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from pipeline.errors import EngineError, ServeError
from serving.workers import wire
from serving.workers.link import MOST_BYTES, Answer, Link
from serving.workers.process import Target, Worker, launch

log = logging.getLogger("trifocal.workers")


class WorkerLostError(Exception):
    """The process died, or was ended because it took too long, before it answered.

    Attributes:
        hung: it took too long.
        begun: it was at work on this very job; else on one before it.
    """

    def __init__(self, message: str, hung: bool = False, begun: bool = True) -> None:
        super().__init__(message)
        self.hung, self.begun = hung, begun


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
        depth: jobs that a process may hold: the one it works on, and those that wait in it for the end of that one, so
            that it goes on at once and not when the service has heard of its answer.
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
        depth: int = 1,
    ) -> None:
        self.target, self.settings, self.count, self.kind = target, settings, count, kind
        self.workers: list[Worker] = []
        self._descriptor, self._lost, self._start_timeout_s = descriptor, lost, start_timeout_s
        self._most_bytes, self._depth = most_bytes, depth
        self._idle: list[Worker] = []
        self._roomy: deque[Worker] = deque()
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
        """One job on the next process that has room for it, an idle one first: its answer's head and bytes.

        Whoever waits for it may be cancelled: the process is told, and the job goes on to its end unheard where it
        cannot be ended early.

        Args:
            head: the job.
            payload: its bytes.
            timeout_s: seconds of work on it after which the process counts as hung and is ended.
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
        worker.asked = number = worker.asked + 1
        if worker.jobs < self._depth:
            self._roomy.append(worker)
            self._wake()

        def heard(found: Answer | None) -> None:
            release(found)
            if found is not None:
                worker.answered = number
                self._offer(worker)
                if not answer.done():  # else whoever waited was cancelled
                    answer.set_result(found)
                return
            begun, how = worker.answered + 1 == number, "took too long" if worker.link.late else "died"
            if begun and worker in self.workers:
                self._replace(worker, how)
            if not answer.done():
                answer.set_exception(WorkerLostError(f"the {self.kind} {how}", begun and worker.link.late, begun))
                answer.exception()  # counts as seen, also where whoever waits is cancelled just now

        worker.link.ask(wire.frame({"number": number, **head}, *payload), heard, timeout_s)
        try:
            return await answer
        except asyncio.CancelledError:
            worker.end(number)
            raise

    @property
    def idle(self) -> int:
        """Processes without work."""
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
        while not (self._idle or self._roomy):
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
        # Of those at work the one that has been at it for longest is likely to be the first to end.
        return self._idle.pop() if self._idle else self._roomy.popleft()

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
        """A process that has done with a job, or has just started: there is room in it."""
        if worker.link.closed:
            self._replace(worker, "died")
            return
        if worker in self._roomy:
            self._roomy.remove(worker)
        if worker.jobs:
            self._roomy.append(worker)
        else:
            self._idle.append(worker)
        self._wake()

    def _end(self, worker: Worker) -> None:
        worker.kill()
        if worker in self._roomy:
            self._roomy.remove(worker)
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
        try:
            launched = await launch(self.target, self.settings, self._descriptor)
        except OSError as error:
            raise self._no_start(f": {error}") from error
        if self._closed:
            launched.undo()
            raise ServeError(f"the {self.kind}s were stopped")
        first: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()

        def heard(found: Answer | None) -> None:
            if not first.done():
                first.set_result(found)

        link = await Link.over(launched.own, heard, self._start_timeout_s, self._most_bytes)
        worker = Worker(launched.process, link, launched.ends, {})
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

    def _no_start(self, why: str = "") -> ServeError:
        return ServeError(f"a {self.kind} process did not start{why}; run with --engine onnxruntime, or see the log")
