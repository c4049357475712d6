"""Jobs that wait in a busy process: they follow at once, are lost without blame, and are left out when nobody waits."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from serving.workers import stop, wire
from serving.workers.pool import WorkerLostError
from tests.unit.test_deployment import ask, until, with_deployment
from tests.unit.workers import call, patient, with_pool


def started(*jobs):
    return [asyncio.ensure_future(job) for job in jobs]


def test_idle_processes_come_first_then_the_one_that_has_worked_for_longest():
    async def test(pool, slab, lost):
        tasks = started(*(call(pool, "pause") for _ in range(5)))
        await asyncio.sleep(0.2)
        assert [worker.jobs for worker in pool.workers] == [2, 2]
        assert (pool.idle, pool.waiting) == (0, 1)
        order = []
        for number, task in enumerate(tasks):
            task.add_done_callback(lambda _, number=number: order.append(number))
        found = [head["pid"] for head, _ in await asyncio.gather(*tasks)]
        assert found[0] != found[1]
        assert found[2:4] == found[:2]
        assert sorted(order[:2]) == [0, 1]
        assert order[4] == 4
        assert (pool.idle, lost) == (2, [])

    with_pool(test, count=2, depth=2)


def test_a_waiting_job_is_in_the_process_before_the_one_ahead_of_it_is_answered():
    async def test(pool, slab, lost):
        begun = time.monotonic()
        first, second = started(call(pool, "pause"), call(pool, "echo", data=bytes(1 << 20)))
        await first
        await second
        assert 0.4 <= time.monotonic() - begun < 0.8
        (worker,) = pool.workers
        assert (worker.asked, worker.answered) == (2, 2)

    with_pool(test, depth=2)


def test_a_death_is_blamed_on_the_job_that_was_begun_and_counts_once():
    async def test(pool, slab, lost):
        first, second = started(call(pool, "die"), call(pool, "echo"))
        with pytest.raises(WorkerLostError) as blamed:
            await first
        with pytest.raises(WorkerLostError) as innocent:
            await second
        assert (blamed.value.begun, innocent.value.begun) == (True, False)
        await call(pool, "echo")
        assert lost == ["tester"]
        assert len(pool.workers) == 1

    with_pool(test, depth=2)


def test_time_runs_for_the_job_that_is_worked_on():
    async def test(pool, slab, lost):
        first, second = started(call(pool, "pause"), call(pool, "echo", timeout_s=0.3))
        await first
        await second
        hung, behind = started(call(pool, "hang", timeout_s=0.3), call(pool, "echo", timeout_s=60))
        for task, begun in ((hung, True), (behind, False)):
            with pytest.raises(WorkerLostError, match="took too long") as error:
                await task
            assert (error.value.hung, error.value.begun) == (begun, begun)
        assert lost == ["tester"]

    with_pool(test, depth=2)


def test_whoever_leaves_while_waiting_ends_its_own_job_alone():
    async def test(pool, slab, lost):
        first, second = started(call(pool, "wait"), call(pool, "wait"))
        await asyncio.sleep(0.05)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        head, _ = await first  # its process hears of the other's number, as it was told
        assert (head["number"], head["told"]) == (1, 2)
        (worker,) = pool.workers
        worker.end(2)
        await until(lambda: worker.jobs == 0)
        assert lost == []

    with_pool(test, target=patient, depth=2)


def test_whoever_asks_hears_at_once_of_all_that_was_told():
    hears, tells = os.pipe()
    heard, caught = [], []
    catch_up = stop.listen(hears, heard.append)
    for number in range(1, 200):
        stop.tell(tells, number)
        catch_up()
        caught.append(heard[-1])
    assert caught == heard == list(range(1, 200))
    os.close(tells)


def test_messages_are_taken_whole_however_they_come():
    first, second = wire.frame({"a": 1}, b"xyz"), wire.frame({"b": 2})
    wanted = [({"a": 1}, b"xyz"), ({"b": 2}, b"")]
    for cut in range(len(first + second) + 1):
        got = bytearray((first + second)[:cut])
        taken = []
        while (found := wire.taken(got)) is not None:
            taken.append(found)
        assert taken == wanted[: (cut >= len(first)) + (cut == len(first + second))]
        got += (first + second)[cut:]
        while (found := wire.taken(got)) is not None:
            taken.append(found)
        assert (taken, got) == (wanted, b"")


def test_a_picture_that_waits_in_the_engine_is_left_out_when_its_client_leaves(tmp_path):
    async def test(deployment):
        streams = deployment._engines.streams
        (worker,) = streams.workers
        os.kill(worker.process.pid, signal.SIGSTOP)
        first = ask(deployment)
        await until(lambda: worker.jobs == 1)
        second, third = ask(deployment), ask(deployment)
        await until(lambda: worker.jobs == 2)
        for leaves in (second, third):  # one waits in the engine, the other in the queue
            leaves.cancel()
        await asyncio.gather(second, third, return_exceptions=True)
        os.kill(worker.process.pid, signal.SIGCONT)
        assert b'"colour"' in (await first).heads
        await until(lambda: worker.jobs == 0)
        assert deployment._metrics._registry.get_sample_value("trifocal_batch_size_sum") == 1
        await ask(deployment)
        assert deployment._slab.free == deployment._slab.count
        await deployment.close()

    with_deployment(tmp_path / "known", test, lone=1)


def test_time_spent_waiting_in_the_engine_counts_as_the_queue_and_not_as_work(tmp_path):
    async def test(deployment):
        (worker,) = deployment._engines.streams.workers
        os.kill(worker.process.pid, signal.SIGSTOP)
        tasks = [ask(deployment) for _ in range(3)]
        await until(lambda: worker.jobs == 2)
        await asyncio.sleep(0.3)
        os.kill(worker.process.pid, signal.SIGCONT)
        second = sorted(await asyncio.gather(*tasks), key=lambda answer: answer.seconds["queue"])[1]
        assert second.seconds["queue"] > 0.3 > second.seconds["engine"] + second.seconds["answer"]
        assert deployment.admission._seconds < 0.3
        await deployment.close()

    with_deployment(tmp_path / "known", test, lone=1)
