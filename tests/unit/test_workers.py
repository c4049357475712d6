"""Worker processes that crash, hang, eat memory or refuse to start; and the shared memory that they write to."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import EngineError, ServeError
from serving.workers import decoder, wire
from serving.workers.link import Link
from serving.workers.pool import WorkerLostError
from serving.workers.slab import Slab
from tests.unit.workers import call, hasty, patient, with_pool


def test_a_call_brings_its_bytes_back():
    async def test(pool, slab, lost):
        data = os.urandom(1 << 20)
        _, back = await call(pool, "echo", data=data)
        assert back == data

    with_pool(test)


def test_a_job_that_nobody_waits_for_is_ended_and_no_other():
    async def test(pool, slab, lost):
        for _ in range(3):
            begun, released = time.monotonic(), [1]
            task = asyncio.ensure_future(call(pool, "wait", released))
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            found, _ = await call(pool, "echo")
            assert found["told"] is None
            assert released == []
            assert time.monotonic() - begun < 10
        assert found["number"] == 6
        assert lost == []

    with_pool(test, target=patient)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_first_word_that_is_there_before_anybody_asked_is_heard(loop):
    async def test():
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            wire.send(theirs, {"ready": True})
            heard = []
            link = await Link.over(ours, heard.append, 5)
            while not heard:
                await asyncio.sleep(0.01)
            assert heard == [({"ready": True}, b"")]
            link.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(test())


@pytest.mark.parametrize("text", [b"{", b"[]", b"[" * 100_000, b"\xff"])
def test_a_worker_that_speaks_nonsense_is_replaced_without_a_trace(text, caplog):
    async def test(pool, slab, lost):
        with pytest.raises(WorkerLostError, match="died"):
            await call(pool, "raw", data=struct.pack("!II", len(text), 0) + text)
        await call(pool, "echo")
        assert lost == ["tester"]

    with_pool(test, target=hasty)
    assert not [record for record in caplog.records if record.exc_info]


def test_a_process_that_dies_after_its_answer_is_replaced_before_anybody_needs_it():
    async def test(pool, slab, lost):
        for turn in range(1, 4):
            first, _ = await call(pool, "last")
            while len(lost) < turn:
                await asyncio.sleep(0.01)
            second, _ = await call(pool, "echo")
            assert second["pid"] != first["pid"]

    with_pool(test, target=hasty)


def test_processes_that_come_and_go_leave_no_descriptor_behind():
    async def test(pool, slab, lost):
        counts = []
        for turn in range(1, 5):
            first, _ = await call(pool, "echo")
            os.kill(first["pid"], 9)
            while len(lost) < turn or not pool.idle:
                await asyncio.sleep(0.01)
            counts.append(sum(1 for _ in Path("/proc/self/fd").iterdir()))
        assert counts[-1] <= counts[0]

    with_pool(test)


def test_an_answer_without_end_ends_the_worker():
    async def test(pool, slab, lost):
        pool.workers[0].link.most_bytes = 1 << 16
        with pytest.raises(WorkerLostError, match="died"):
            await call(pool, "echo", data=bytes(1 << 20))
        _, back = await call(pool, "echo", data=b"after")
        assert back == b"after"

    with_pool(test)


def test_a_process_that_dies_is_told_and_replaced():
    async def test(pool, slab, lost):
        first, _ = await call(pool, "echo")
        released = [1]
        with pytest.raises(WorkerLostError, match="died"):
            await call(pool, "die", released)
        assert released == []
        second, _ = await call(pool, "echo")
        assert second["pid"] != first["pid"]
        assert lost == ["tester"]

    with_pool(test)


def test_a_process_that_hangs_is_ended_and_replaced():
    async def test(pool, slab, lost):
        with pytest.raises(WorkerLostError, match="took too long") as found:
            await call(pool, "hang", timeout_s=0.2)
        assert found.value.hung
        await call(pool, "echo")

    with_pool(test)


def test_an_idle_process_that_dies_costs_nobody_anything():
    async def test(pool, slab, lost):
        first, _ = await call(pool, "echo")
        os.kill(first["pid"], 9)
        while not lost:
            await asyncio.sleep(0.01)
        second, _ = await call(pool, "echo")
        assert second["pid"] != first["pid"]

    with_pool(test)


def test_memory_is_held_until_the_process_has_done_though_the_caller_left():
    async def test(pool, slab, lost):
        released = [1]
        task = asyncio.ensure_future(call(pool, "hang", released, timeout_s=0.5))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert released == [1]
        await call(pool, "echo")
        assert released == []

    with_pool(test)


def test_who_leaves_while_waiting_for_a_process_makes_way():
    async def test(pool, slab, lost):
        busy = asyncio.ensure_future(call(pool, "hang", timeout_s=0.3))
        await asyncio.sleep(0.05)
        leaving, staying = (asyncio.ensure_future(call(pool, "echo")) for _ in range(2))
        await asyncio.sleep(0)
        assert pool.waiting == 2
        leaving.cancel()
        await asyncio.gather(busy, return_exceptions=True)
        await staying

    with_pool(test)


@pytest.mark.parametrize(("settings", "error"), [({"refuse": True}, EngineError), ({"die": True}, ServeError)])
def test_a_process_that_cannot_start_is_told(settings, error):
    async def test(pool, slab, lost):
        raise AssertionError("it started")

    with pytest.raises(error):
        with_pool(test, **settings)


def decode_settings(memory):
    return {"size": [32, 32], "max_pixels": 50_000_000, "memory": memory, "spaces": {}}


def test_a_picture_that_wants_too_much_memory_is_refused_and_the_decoder_lives():
    large = cv2.imencode(".png", np.zeros((4000, 4000, 3), np.uint8))[1].tobytes()
    small = cv2.imencode(".png", np.full((8, 8, 3), 200, np.uint8))[1].tobytes()

    async def test(pool, slab, lost):
        def decode(data):
            job = {"job": "decode", "name": "a.png", "slot": 1, "seconds": 60}
            return pool.call(job, data, timeout_s=60, release=lambda _: None)

        refused, _ = await decode(large)
        assert refused["error"] == "broken-image"
        answer, _ = await decode(small)
        assert answer["frame"]["source"] == [8, 8]
        assert lost == []

    with_pool(test, target=decoder.run, **decode_settings(16 << 20))


def test_a_slot_returns_when_its_last_holder_drops_it():
    slab = Slab(16, 2)
    first, second = slab.lend(), slab.lend()
    with pytest.raises(IndexError):
        slab.lend()
    first.hold()
    first.drop()
    assert slab.free == 0
    first.drop()
    assert slab.free == 1
    second.drop()
    slab.close()


@settings(deadline=None)  # the machine may be busy
@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=4), st.binary(max_size=200))
def test_messages_come_back_as_they_went(head, data):
    one, other = socket.socketpair()
    with one, other:
        wire.send(one, head, data)
        assert wire.receive(other) == (head, data)
        one.close()
        with pytest.raises(EOFError):
            wire.receive(other)
