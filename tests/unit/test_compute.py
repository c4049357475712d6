"""A picture that is alone gets the process with all cores; several share the streams; neither is ever waited for."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
import uvloop

from pipeline.bundle import read_bundle
from serving import compute
from serving.deployment import Deployment, PredictOptions
from serving.observe import Metrics
from serving.settings import Settings
from tests.unit.batch.helpers import picture
from tests.unit.bundles import known_bundle

PICTURE = picture(0)


def with_deployment(folder, test):
    """Runs a test within an event loop, on a deployment of two streams and a process for lone pictures."""

    async def body():
        plain = Settings("", engine="onnxruntime", streams=2, threads=1, decoders=2, lone=2)
        deployment = Deployment(read_bundle(known_bundle(folder)), "1", plain, Metrics())
        await deployment.start()
        await test(deployment)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(body())


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)


async def ask(deployment):
    with deployment.admission.ticket(10) as ticket:
        ticket.take_items(1)
        return await deployment.predict(PICTURE, "a.png", PredictOptions())


def jobs(pool):
    return sum(worker.asked for worker in pool.workers)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(compute, "LONE_AFTER_S", 0.0)


def test_one_picture_has_all_cores_and_several_share_the_streams(tmp_path):
    async def test(deployment):
        engines = deployment._engines
        await until(lambda: engines.lone is not None and engines.lone.idle)
        assert [pool.settings["threads"] for pool in (engines.streams, engines.lone)] == [1, 2]
        alone = await ask(deployment)
        assert (jobs(engines.streams), jobs(engines.lone)) == (0, 1)
        assert deployment.admission._seconds == 0  # the queue's pace is the streams'
        with deployment.admission.ticket(10) as another:
            another.take_items(1)
            together = await ask(deployment)
        assert (jobs(engines.streams), jobs(engines.lone)) == (1, 1)
        assert deployment.admission._seconds > 0
        assert together.heads == alone.heads
        await deployment.close()

    with_deployment(tmp_path / "known", test)


def test_a_lone_picture_outlives_its_process_which_comes_back(tmp_path):
    async def test(deployment):
        engines = deployment._engines
        await until(lambda: engines.lone is not None and engines.lone.idle)
        (worker,) = engines.lone.workers
        os.kill(worker.process.pid, signal.SIGSTOP)
        asked = asyncio.ensure_future(ask(deployment))
        await until(lambda: not engines.lone.idle)
        assert b'"colour"' in (await ask(deployment)).heads  # the lone process is at work: a stream answers
        os.kill(worker.process.pid, signal.SIGKILL)
        assert b'"colour"' in (await asked).heads
        await until(lambda: engines.lone.idle)
        assert deployment._slab.free == deployment._slab.count
        await deployment.close()

    with_deployment(tmp_path / "known", test)


@pytest.mark.parametrize("fault", ["no int8 ONNX file", "Too many open files"])
def test_one_that_cannot_start_is_done_without(fault, tmp_path, monkeypatch, caplog):
    async def test(deployment):
        engines = deployment._engines
        await until(lambda: engines._starting is not None and engines._starting.done())
        assert b'"colour"' in (await ask(deployment)).heads
        assert jobs(engines.streams) == 1
        assert not engines.lone.idle
        await deployment.close()
        assert deployment._slab.free == deployment._slab.count

    async def fail():
        raise OSError(24, "Too many open files")

    real = compute.Engines._pool

    def pool(self, spec, count, threads=None):
        if fault == "no int8 ONNX file":
            return real(self, "onnxruntime:int8" if threads else spec, count, threads)
        found = real(self, spec, count, threads)
        if threads:
            found.start = fail
        return found

    monkeypatch.setattr(compute.Engines, "_pool", pool)
    with_deployment(tmp_path / "known", test)
    assert "no process for lone pictures, which the others compute: " in caplog.text
    assert fault in caplog.text


@pytest.mark.parametrize("wait", [0.0, 0.05])
def test_the_end_may_come_while_it_starts(tmp_path, wait, caplog):
    async def test(deployment):
        await asyncio.sleep(wait)
        await deployment.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with_deployment(tmp_path / "known", test)
    assert not caplog.messages


@pytest.mark.parametrize(
    ("given", "threads"),
    [
        ({}, 4),
        ({"lone": 1}, 0),
        ({"lone": 3}, 3),
        ({"workers": 2}, 0),
        ({"streams": 1}, 0),  # it has all cores already
        ({"threads": 2}, 4),
        ({"engine": "onnxruntime:cuda"}, 0),
    ],
)
def test_threads_for_a_lone_picture(monkeypatch, given, threads):
    monkeypatch.setattr("serving.settings.cpu_limit", lambda: 4)
    assert Settings("", **given).lone_threads() == threads
