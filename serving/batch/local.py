"""One machine: reading, decoding, inference and writing overlap, each bounded, so that memory does not grow with the folder."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from serving.batch.plan import Item, Part
from serving.batch.work import Done, Read, Worker

AHEAD = 3
"""Batches that wait read, for each worker."""

REMOTE_READERS = 16
"""Objects fetched side by side: each fetch waits for the network, not for a core."""

Store = Callable[[Part, list[Done]], None]


@dataclass(slots=True)
class _Progress:
    """A part under way: what its batches gave so far."""

    part: Part
    missing: int
    done: dict[int, Done] = field(default_factory=dict)


class LocalRun:
    """Answers parts by threads; each of them decodes and infers, so that no core waits for another.

    Args:
        worker: answers a batch.
        workers: number of threads.
        batch: images a batch.
        store: keeps a finished part; called from one thread, in the order in which parts are finished.
    """

    def __init__(self, worker: Worker, workers: int, batch: int, store: Store) -> None:
        self._worker, self._workers, self._batch, self._store = worker, workers, batch, store
        self._slots = threading.Semaphore(workers * (AHEAD + 1))
        self._unwritten = threading.Semaphore(3)
        self._guard = threading.Lock()
        self._trouble: BaseException | None = None

    def run(self, parts: Iterable[Part], remote: bool) -> None:
        """Answers all parts; the first error of any thread ends it and is raised here."""
        readers = ThreadPoolExecutor(REMOTE_READERS if remote else 1, "read")
        pool = ThreadPoolExecutor(self._workers, "work")
        writer = ThreadPoolExecutor(1, "write")
        try:
            for part in parts:
                self._unwritten.acquire()
                self._feed(part, readers, pool, writer, remote)
                if self._trouble is not None:
                    break
            self._end(readers, pool, writer)
        except BaseException as error:  # noqa: BLE001  # raised below
            self._trouble = self._trouble or error
            self._worker.stop()
            self._end(readers, pool, writer)  # where its user stops it, what waits is not begun any more
        if self._trouble is not None:
            raise self._trouble

    def _end(self, *executors: ThreadPoolExecutor) -> None:
        """Waits for all that is under way; for what waits only where there is no trouble."""
        for executor in executors:
            executor.shutdown(wait=True, cancel_futures=self._trouble is not None)

    def _feed(
        self,
        part: Part,
        readers: ThreadPoolExecutor,
        pool: ThreadPoolExecutor,
        writer: ThreadPoolExecutor,
        remote: bool,
    ) -> None:
        batches = [part.items[at : at + self._batch] for at in range(0, len(part.items), self._batch)]
        progress = _Progress(part, len(batches))
        for number, items in enumerate(batches):
            self._slots.acquire()
            if self._trouble is not None:
                return
            groups = [[item] for item in items] if remote else [list(items)]
            reads = [readers.submit(self._worker.read, group) for group in groups]
            pool.submit(self._answer, progress, number, items, reads, writer)

    def _answer(
        self,
        progress: _Progress,
        number: int,
        items: tuple[Item, ...],
        reads: list[Future[Read]],
        writer: ThreadPoolExecutor,
    ) -> None:
        try:
            if self._trouble is not None:
                return
            read = [each.result() for each in reads]
            done = self._worker.process(items, [content for each in read for content in each.contents])
            done.seconds["read"] += sum(each.seconds for each in read)
            with self._guard:
                progress.done[number] = done
                progress.missing -= 1
                whole = not progress.missing
            if whole:
                writer.submit(self._keep, progress)
        except BaseException as error:  # noqa: BLE001  # raised by `run`
            self._stop(error)
        finally:
            self._slots.release()

    def _keep(self, progress: _Progress) -> None:
        try:
            self._store(progress.part, [progress.done[number] for number in sorted(progress.done)])
        except BaseException as error:  # noqa: BLE001  # raised by `run`
            self._stop(error)
        finally:
            self._unwritten.release()

    def _stop(self, error: BaseException) -> None:
        self._trouble = self._trouble or error
        self._worker.stop()
        self._unwritten.release()
