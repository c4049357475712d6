"""A deployment whose engine process stands still: what is given up keeps its stream, and the end waits for nobody."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import cv2
import numpy as np
import uvloop

from pipeline.bundle import read_bundle
from serving.deployment import Deployment, PredictOptions
from serving.observe import Metrics
from serving.settings import Settings
from tests.unit.bundles import known_bundle

PICTURE = cv2.imencode(".png", np.full((8, 8, 3), 200, np.uint8))[1].tobytes()


def with_deployment(folder, test, **settings):
    """Runs a test coroutine over a started deployment of one stream, on the service's own loop."""

    async def body():
        plain = Settings("", engine="onnxruntime", streams=1, decoders=1, **settings)
        deployment = Deployment(read_bundle(known_bundle(folder)), "1", plain, Metrics())
        await deployment.start()
        await test(deployment)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(body())


def ask(deployment):
    return asyncio.ensure_future(deployment.predict(PICTURE, "a.png", PredictOptions()))


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)


def test_a_stream_goes_on_when_the_process_has_done_with_what_was_given_up(tmp_path):
    async def test(deployment):
        engines, queue = deployment._engines.streams, deployment._scheduler
        (worker,) = engines.workers
        os.kill(worker.process.pid, signal.SIGSTOP)
        left = ask(deployment)
        await until(lambda: not engines.idle)
        left.cancel()
        stayed = [ask(deployment) for _ in range(3)]
        await until(lambda: len(queue) == 3)
        await asyncio.sleep(0.1)
        assert (len(queue), engines.waiting) == (3, 0)  # they fill the next batch, and count as waiting
        os.kill(worker.process.pid, signal.SIGCONT)
        answers = await asyncio.gather(*stayed)
        assert all(b'"colour"' in answer.heads for answer in answers)
        assert deployment._metrics._registry.get_sample_value("trifocal_batch_size_sum") in (
            3,
            4,
        )  # the first may have ended
        assert deployment._slab.free == deployment._slab.count
        await deployment.close()

    with_deployment(tmp_path / "known", test, max_batch=4)


def test_the_end_leaves_no_task_behind(tmp_path):
    async def test(deployment):
        before = asyncio.all_tasks()
        await ask(deployment)
        await deployment.close()
        assert asyncio.all_tasks() == {asyncio.current_task()} < before

    with_deployment(tmp_path / "known", test)


def test_the_end_waits_for_no_process_that_hangs(tmp_path):
    async def test(deployment):
        os.kill(deployment._engines.streams.workers[0].process.pid, signal.SIGSTOP)
        left = ask(deployment)
        await until(lambda: not deployment._engines.streams.idle)
        left.cancel()
        stayed = [ask(deployment) for _ in range(2)]
        await until(lambda: deployment._engines.streams.workers[0].jobs == 2)
        await until(lambda: len(deployment._scheduler) == 1)
        begun = time.monotonic()
        await deployment.close()
        told = sorted(str(found) for found in await asyncio.gather(*stayed, return_exceptions=True))
        assert ["stopped before" in one or "stopped while" in one for one in told] == [True, True]
        assert told[0] != told[1]
        assert time.monotonic() - begun < 10
        assert deployment._slab.free == deployment._slab.count

    with_deployment(tmp_path / "known", test)
