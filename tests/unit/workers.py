"""Worker processes that do as they are told, and a pool of them around a test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import time

import uvloop

from serving.workers import stop, wire
from serving.workers.entry import enter
from serving.workers.pool import WorkerPool
from serving.workers.slab import Slab

PAUSES = {"hang": 600.0, "pause": 0.4}


def jobs(own):
    """What the service asks for, until it is gone."""
    with contextlib.suppress(EOFError):
        while True:
            yield wire.receive(own)


def obedient(pipe, settings):
    """Does as it is told: dies, hangs, or says who it is."""
    own, _ = enter(pipe, "test")
    if settings.get("refuse"):
        wire.send(own, {"error": "no engine here"})
        return
    if settings.get("die"):
        os._exit(3)
    wire.send(own, {"ready": True})
    for head, data in jobs(own):
        if head["do"] == "die":
            os._exit(3)
        if head["do"] in PAUSES:
            time.sleep(PAUSES[head["do"]])
        wire.send(own, {"pid": os.getpid()}, bytes(data))


def patient(pipe, settings):
    """Works on each job until it is told to end that one."""
    own, (_, ends) = enter(pipe, "test")
    told = queue.SimpleQueue()
    stop.listen(ends, told.put)
    wire.send(own, {"ready": True})
    for head, _ in jobs(own):
        wire.send(own, {"number": head["number"], "told": told.get() if head["do"] == "wait" else None})


def hasty(pipe, settings):
    """Says what it was told to say in place of an answer."""
    own, _ = enter(pipe, "test")
    wire.send(own, {"ready": True})
    for head, data in jobs(own):
        if head["do"] == "raw":
            own.sendall(data)
        else:
            wire.send(own, {"pid": os.getpid()})
        if head["do"] == "last":
            os._exit(1)


def with_pool(test, target=obedient, count=1, depth=1, **settings):
    """Runs a test coroutine over a started pool; `lost` lists what it was told of."""

    async def body():
        slab, lost = Slab(1 << 16, 4), []
        pool = WorkerPool(target, settings, count, slab.descriptor, "tester", lost.append, depth=depth)
        try:
            await pool.start()
            await test(pool, slab, lost)
        finally:
            pool.close()
            slab.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # the service's own loop
        runner.run(body())


def call(pool, do, released=None, timeout_s=60.0, data=b""):
    return pool.call({"do": do}, data, timeout_s=timeout_s, release=lambda _: (released or []).clear())
