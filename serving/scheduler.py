"""The queue between requests and engine streams: an idle stream takes work at once, a busy one returns for a batch.

Nothing here knows of HTTP, pictures or processes: `run` computes a batch, whatever that is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from serving.problems import Problem
from serving.workers.pool import WorkerLostError

Work = TypeVar("Work")
Result = TypeVar("Result")


@dataclass(eq=False, slots=True)
class _Entry(Generic[Work, Result]):
    work: Work
    key: Hashable
    queued_at: float
    future: asyncio.Future[tuple[Result, float]] = field(repr=False)
    tries: int = 0


class BatchError(Exception):
    """The engine refused a batch; its items are tried singly once."""


class Scheduler(Generic[Work, Result]):
    """`streams` batches are computed side by side; the rest waits in order. What nobody waits for any more is given up.

    Args:
        run: computes a batch of equal key; one result per item in order. Raises BatchError or WorkerLostError.
            Cancelled when all of its items were given up; its stream goes on when it has ended.
        streams: batches side by side.
        max_batch: most items of a batch.
        delay_s: how long a free stream waits for a fuller batch; 0 on a CPU.
        ahead: batches handed over while all streams are busy, of what waits but for the last item: that one goes to
            whichever stream is free first.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Work]], Awaitable[Sequence[Result]]],
        streams: int,
        max_batch: int,
        delay_s: float = 0.0,
        ahead: int = 0,
    ) -> None:
        self._run, self._max_batch, self._delay_s = run, max_batch, delay_s
        self._queue: deque[_Entry[Work, Result]] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._ahead, self._free = ahead, streams + ahead
        self._loop = asyncio.get_running_loop()
        self._streams = [asyncio.ensure_future(self._stream()) for _ in range(streams + ahead)]

    def __len__(self) -> int:
        """Items that wait and are still wanted."""
        return sum(not entry.future.done() for entry in self._queue)

    async def submit(self, work: Work, key: Hashable = None) -> tuple[Result, float]:
        """Waits for an item's result; gives it and the seconds it was queued.

        Cancelling this takes the item out of the queue: it is not computed.

        Raises:
            Problem: the engine failed on this very item, twice where its process died.
        """
        entry = _Entry[Work, Result](work, key, self._loop.time(), self._loop.create_future())
        self._queue.append(entry)
        self._wake()
        return await entry.future

    def stop(self) -> None:
        """Cancels the streams and what they run; whoever still waits for a turn is told."""
        for stream in self._streams:
            stream.cancel()
        _fail(self._queue, Problem("stopping", "the service stopped before this picture's turn"))
        self._queue.clear()

    async def close(self) -> None:
        """Stops, and waits until what ran has ended."""
        self.stop()
        await asyncio.gather(*self._streams, return_exceptions=True)

    def _wake(self) -> None:
        while self._idle:
            turn = self._idle.pop()
            if not turn.done():
                turn.set_result(None)
                return

    async def _stream(self) -> None:
        while True:
            batch = await self._next()
            if batch:
                self._free -= 1
                try:
                    await self._compute(batch)
                finally:
                    self._free += 1

    def _may_begin(self) -> bool:
        """Whether something waits; while all streams are busy, whether more than one item does."""
        return len(self._queue) > (1 if self._free <= self._ahead else 0)

    async def _next(self) -> list[_Entry[Work, Result]]:
        """The oldest item, and those behind it that fit into its batch; those given up meanwhile are dropped."""
        while not self._may_begin():
            turn: asyncio.Future[None] = self._loop.create_future()
            self._idle.append(turn)
            await turn
        if self._delay_s and len(self) < self._max_batch:
            await asyncio.sleep(self._delay_s)
        # Free streams share what there is: a batch is for when all others are busy.
        most = min(self._max_batch, max(1, -(-len(self) // self._free)))
        batch: list[_Entry[Work, Result]] = []
        kept: deque[_Entry[Work, Result]] = deque()
        while self._queue and len(batch) < most:
            entry = self._queue.popleft()
            if entry.future.done():
                continue
            if batch and (entry.key != batch[0].key or entry.tries or batch[0].tries):
                kept.append(entry)
                continue
            batch.append(entry)
        self._queue.extendleft(reversed(kept))
        return batch

    async def _compute(self, batch: list[_Entry[Work, Result]]) -> None:
        begun = self._loop.time()
        try:
            results = await self._run_while_wanted(batch)
        except (BatchError, WorkerLostError) as error:
            self._again(batch, error)
            return
        except asyncio.CancelledError:
            _fail(batch, Problem("stopping", "the service stopped while it computed this"))
            raise
        except Exception as error:  # noqa: BLE001  # a fault of ours must not end the stream; whoever waits raises it
            _fail(batch, error)
            return
        if results is None:
            return
        for entry, result in zip(batch, results, strict=True):
            if not entry.future.done():
                entry.future.set_result((result, begun - entry.queued_at))

    async def _run_while_wanted(self, batch: list[_Entry[Work, Result]]) -> Sequence[Result] | None:
        """The results; None when all items were given up meanwhile, and the run with them."""
        stream, wanted = asyncio.current_task(), True
        assert stream is not None

        def left(_: object) -> None:
            nonlocal wanted
            if running and wanted and all(entry.future.done() for entry in batch):
                wanted = False
                stream.cancel()

        running = True
        for entry in batch:
            entry.future.add_done_callback(left)
        try:
            return await self._run([entry.work for entry in batch])
        except asyncio.CancelledError:
            if not wanted and stream.uncancel() == 0:
                return None
            raise
        finally:
            running = False

    def _again(self, batch: list[_Entry[Work, Result]], error: Exception) -> None:
        """Back to the front of the queue, to be tried singly; those tried before, or refused alone, fail."""
        again = []
        for entry in batch:
            begun = not isinstance(error, WorkerLostError) or error.begun
            hopeless = entry.tries > 0 or (isinstance(error, BatchError) and len(batch) == 1)
            if begun and hopeless:
                _fail([entry], Problem("engine-failed", str(error)))
            else:
                entry.tries += begun
                again.append(entry)
        self._queue.extendleft(reversed(again))
        for _ in again:
            self._wake()


def _fail(entries: Iterable[_Entry[Work, Result]], error: Exception) -> None:
    for entry in entries:
        if not entry.future.done():
            entry.future.set_exception(error)
