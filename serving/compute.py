"""The engine processes of one model version: a core each for many pictures, all cores for one that is alone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.bundle import Bundle
from pipeline.errors import EngineError, ServeError
from serving.admission import Admission
from serving.observe import Metrics
from serving.scheduler import BatchError
from serving.scratch import Scratch
from serving.settings import Settings, on_gpu
from serving.workers import kinds, wire
from serving.workers.link import Answer
from serving.workers.pool import WorkerPool
from serving.workers.slab import Lease

log = logging.getLogger("trifocal.compute")

LONE_AFTER_S = 1.0
"""Seconds after the start when the process for lone pictures follows: the first answers need the cores themselves."""


@dataclass(frozen=True, slots=True)
class Job:
    """A picture in a slot of shared memory, and what is wanted of it."""

    lease: Lease
    item: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Done:
    """An answer's bytes, the seconds that it waited for its process, that its batch and its own JSON took, and the batch's size."""

    payload: bytes
    waited_s: float
    engine_s: float
    answer_s: float
    batch: int


class Engines:
    """Processes that compute batches.

    As many as there are streams share the cores, which makes the most of them where all are busy. One more has
    all (eight at most): a picture that is alone in the house would leave the others idle. It starts a little later, and
    where it does not start or is at work, the streams serve.

    Args:
        bundle: the network.
        settings: the service's.
        descriptor: the slab's.
        metrics: where batches and lost processes are counted.
        house: knows how many pictures there are, and learns how long a stream takes.
    """

    def __init__(self, bundle: Bundle, settings: Settings, descriptor: int, metrics: Metrics, house: Admission) -> None:
        self.bundle, self._settings, self._descriptor = bundle, settings, descriptor
        self._metrics, self._house = metrics, house
        self.streams: WorkerPool | None = None
        self.lone: WorkerPool | None = None
        self._later: asyncio.TimerHandle | None = None
        self._starting: asyncio.Task[None] | None = None
        self._closed = False
        self._spec, self._choice = settings.engine, wire.Head()
        self._scratch: Scratch | None = None
        with contextlib.suppress(OSError):  # without room for it, each engine process holds its own weights
            self._scratch = Scratch()

    async def choose(self) -> None:
        """Measures which engine is the fastest where that is asked for; raises EngineError or ServeError."""
        if self._spec == "auto":
            # Measuring loads every engine: that memory goes with the process that measured.
            scout = self._pool("auto", 1)
            found = await scout.start()
            self._spec, self._choice = str(found["spec"]), {"choice": found["choice"]}
            scout.close()

    async def start(self) -> wire.Head:
        """Starts the streams; each passes the bundle's self-test first. What one says of itself.

        Raises:
            EngineError: the engine cannot run.
            ServeError: a process did not start.
        """
        ready = {**await self._start_streams(), **self._choice}
        if self._settings.lone_threads() and not on_gpu(self._spec):
            self._later = asyncio.get_running_loop().call_later(LONE_AFTER_S, self._start_lone)
        return ready

    async def run(self, jobs: Sequence[Job]) -> list[Done]:
        """A batch's answers in order.

        Cancelling this ends the batch where its engine can; it then returns when the process is free again.

        Raises:
            BatchError: the engine refused it.
            WorkerLostError: its process died or hung.
        """
        pool, begun = self._pick(), time.monotonic()
        for job in jobs:
            job.lease.hold()

        free: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def release(found: Answer | None) -> None:
            for job in jobs:
                job.lease.drop()
            if found is not None and "error" not in found[0]:
                self._metrics.batch(len(jobs))  # also where nobody waits for it any more
            if not free.done():
                free.set_result(None)

        head = {"slots": [job.lease.slot for job in jobs], "items": [job.item for job in jobs]}
        try:
            answer, payload = await pool.call(head, timeout_s=self._settings.engine_timeout_s, release=release)
        except asyncio.CancelledError:
            await free  # its stream goes on when its process can
            raise
        if "error" in answer:
            raise BatchError(answer["error"])
        worked = answer["engine"] + answer["answer"]
        if pool is self.streams:  # a lone picture's time tells nothing of a queue's
            self._house.observe(len(jobs), worked)
        return _taken_apart(answer, payload, max(0.0, time.monotonic() - begun - worked))

    async def close(self) -> None:
        """Ends the processes and removes what they shared."""
        self._closed = True
        if self._later is not None:
            self._later.cancel()
        for pool in (self.streams, self.lone):
            if pool is not None:
                pool.close()
        if self._starting is not None:
            await self._starting
        if self._scratch is not None:
            self._scratch.close()

    def _pick(self) -> WorkerPool:
        if self.streams is None:
            raise BatchError("the engine is not loaded")
        return self.lone if self.lone is not None and self.lone.idle and self._house.items <= 1 else self.streams

    async def _start_streams(self) -> wire.Head:
        self.streams = self._pool(self._spec, self._settings.lanes())
        try:
            return await self.streams.start()
        except ServeError:
            if self._scratch is None or not any(self._scratch.path.glob("*.onnx")):  # none were shared
                raise
            log.warning("an engine process broke down on shared weights; each holds its own")
            self._scratch.close()
            self._scratch = None
            self.streams = self._pool(self._spec, self._settings.lanes())
            return await self.streams.start()

    def _start_lone(self) -> None:
        self.lone = self._pool(self._spec, 1, self._settings.lone_threads())
        self._starting = asyncio.ensure_future(self._await_lone(self.lone))

    async def _await_lone(self, pool: WorkerPool) -> None:
        try:
            await pool.start()
        except (EngineError, ServeError, OSError, EOFError) as error:  # the last: the nursery died over it
            if not self._closed:
                told = error or type(error).__name__
                log.warning("no process for lone pictures, which the others compute: %s", told)
        else:
            log.info("a picture that is alone has %d threads", self._settings.lone_threads())

    def _pool(self, spec: str, count: int, threads: int | None = None) -> WorkerPool:
        settings = self._settings
        size = 1 if threads else settings.batch()  # a lone picture is a batch
        plain = {
            "bundle": str(self.bundle.path),
            "version": self.bundle.manifest.version,
            "engine": spec,
            "threads": threads or settings.engine_threads(),
            "shared": str(self._scratch.path) if self._scratch else None,
            "buckets": sorted({1, *(1 << power for power in range(1, size.bit_length())), size}),
        }
        lost, most = self._metrics.lost, 1 << 33  # a batch's tensors may be long, and no stranger's bytes come here
        depth = 1 if threads else settings.depth()
        return WorkerPool(kinds.engine, plain, count, self._descriptor, "engine", lost, most_bytes=most, depth=depth)


def _taken_apart(answer: wire.Head, payload: bytes, waited_s: float) -> list[Done]:
    """One `Done` for each picture of a batch, which waited for its process so long."""
    parts, at, count = [], 0, len(answer["lengths"])
    for length in answer["lengths"]:
        parts.append(Done(payload[at : at + length], waited_s, answer["engine"], answer["answer"] / count, count))
        at += length
    return parts
