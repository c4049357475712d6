"""The scheduler by itself: who is computed when and with whom, and what becomes of those who give up."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.problems import Problem
from serving.scheduler import BatchError, Scheduler
from serving.workers.pool import WorkerLostError


class Engine:
    """Computes when told to: each batch waits for its gate; an item's result is its double."""

    def __init__(self):
        self.batches: list[list[int]] = []
        self.gates: list[asyncio.Event] = []
        self.broken: dict[int, list[Exception]] = {}

    async def run(self, items):
        gate = asyncio.Event()
        self.batches.append(list(items))
        self.gates.append(gate)
        await gate.wait()
        for item in items:
            if self.broken.get(item):
                raise self.broken[item].pop(0)
        return [2 * item for item in items]

    async def release(self, index):
        self.gates[index].set()
        await settle()


async def settle():
    """Lets everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


def drive(test):
    """Runs a test coroutine with an engine; ends its schedulers."""

    def wrapped():
        async def body():
            engine, made = Engine(), []

            def scheduler(*args, **options):
                made.append(Scheduler(engine.run, *args, **options))
                return made[-1]

            await test(engine, scheduler)
            for one in made:
                await one.close()

        asyncio.run(body())

    wrapped.__name__ = test.__name__
    return wrapped


def submit(scheduler, *items, key=None):
    return [asyncio.ensure_future(scheduler.submit(item, key)) for item in items]


@drive
async def test_an_idle_stream_takes_work_at_once_and_alone(engine, scheduler):
    queue = scheduler(2, 8)
    submit(queue, 1, 2)
    await settle()
    assert engine.batches == [[1], [2]]  # side by side, not together


@drive
async def test_when_all_are_busy_the_next_free_one_takes_a_batch_in_order(engine, scheduler):
    queue = scheduler(1, 3)
    tasks = submit(queue, 0, 1, 2, 3, 4)
    await settle()
    assert engine.batches == [[0, 1, 2]]  # all were there before the stream ran
    await engine.release(0)
    assert engine.batches[1] == [3, 4]
    await engine.release(1)
    assert [task.result()[0] for task in tasks] == [0, 2, 4, 6, 8]
    assert len(queue) == 0


@drive
async def test_only_equal_kinds_go_together_and_nobody_is_overtaken_within_a_kind(engine, scheduler):
    queue = scheduler(1, 4)
    submit(queue, 0, key="a")
    await settle()
    for item, key in ((1, "a"), (2, "b"), (3, "a"), (4, "b")):
        submit(queue, item, key=key)
    await settle()
    await engine.release(0)
    assert engine.batches[1] == [1, 3]
    await engine.release(1)
    assert engine.batches[2] == [2, 4]


@drive
async def test_who_gives_up_while_waiting_is_never_computed(engine, scheduler):
    queue = scheduler(1, 2)
    submit(queue, 0)
    await settle()
    waiting = submit(queue, *range(1, 41))
    await settle()
    assert len(queue) == 40
    for task in waiting:
        task.cancel()
    last = submit(queue, 99)
    await settle()
    assert len(queue) == 1
    await engine.release(0)
    await engine.release(1)
    assert engine.batches == [[0], [99]]
    assert last[0].result()[0] == 198


@drive
async def test_a_batch_that_all_gave_up_is_cancelled_and_its_stream_goes_on(engine, scheduler):
    queue = scheduler(1, 2)
    first, second = submit(queue, 1, 2)
    await settle()
    later = submit(queue, 3, 4)
    await settle()
    first.cancel()
    await settle()
    assert engine.batches == [[1, 2]]  # one still waits
    second.cancel()
    await settle()
    assert engine.batches == [[1, 2], [3, 4]]
    await engine.release(0)  # too late
    await engine.release(1)
    assert [task.result()[0] for task in later] == [6, 8]


@drive
async def test_a_stream_that_ends_while_its_batch_is_given_up_ends(engine, scheduler):
    queue = scheduler(1, 2)
    (only,) = submit(queue, 1)
    await settle()
    only.cancel()
    await asyncio.sleep(0)
    await queue.close()
    (late,) = submit(queue, 2)
    await settle()
    assert engine.batches == [[1]]
    late.cancel()


@drive
async def test_a_refused_batch_is_tried_item_by_item_once(engine, scheduler):
    queue = scheduler(1, 3)
    engine.broken[2] = [BatchError("no"), BatchError("still no")]
    submit(queue, 0)
    await settle()
    tasks = submit(queue, 1, 2, 3)
    await settle()
    for index in range(5):
        await engine.release(index)
        if index + 1 == len(engine.gates):
            break
    assert engine.batches == [[0], [1, 2, 3], [1], [2], [3]]
    assert tasks[0].result()[0] == 2
    assert tasks[2].result()[0] == 6
    with pytest.raises(Problem, match="still no"):
        tasks[1].result()


@drive
async def test_a_dead_engine_costs_one_retry_and_a_second_death_the_item(engine, scheduler):
    queue = scheduler(1, 1)
    engine.broken = {1: [WorkerLostError("died")], 2: [WorkerLostError("died"), WorkerLostError("died again")]}
    once, twice = submit(queue, 1, 2)
    for index in range(4):
        await settle()
        await engine.release(index)
    assert once.result()[0] == 2
    with pytest.raises(Problem, match="died again"):
        twice.result()


@drive
async def test_a_death_that_came_before_its_turn_costs_an_item_no_try(engine, scheduler):
    queue = scheduler(1, 1)
    engine.broken[1] = [*(WorkerLostError("died ahead", begun=False) for _ in range(3)), WorkerLostError("died")]
    (task,) = submit(queue, 1)
    for index in range(5):
        await settle()
        await engine.release(index)
    assert task.result()[0] == 2


@drive
async def test_a_fault_of_ours_does_not_end_the_stream(engine, scheduler):
    queue = scheduler(1, 1)
    engine.broken[1] = [ValueError("a slip")]
    first, second = submit(queue, 1, 2)
    for index in range(2):
        await settle()
        await engine.release(index)
    with pytest.raises(ValueError, match="a slip"):
        first.result()
    assert second.result()[0] == 4


@drive
async def test_closing_tells_whoever_waits(engine, scheduler):
    queue = scheduler(1, 1)
    running, waiting = submit(queue, 1, 2)
    await settle()
    await queue.close()
    for task in (running, waiting):
        with pytest.raises(Problem, match="stopped"):
            await task


@drive
async def test_a_delay_gathers_a_fuller_batch(engine, scheduler):
    queue = scheduler(1, 4, delay_s=0.01)
    submit(queue, 1)
    await settle()
    submit(queue, 2, 3)
    while not engine.batches:
        await asyncio.sleep(0.001)
    assert engine.batches == [[1, 2, 3]]


@drive
async def test_what_is_handed_over_ahead_leaves_one_item_for_whoever_is_free_first(engine, scheduler):
    queue = scheduler(2, 1, ahead=2)
    submit(queue, 1, 2, 3)
    await settle()
    assert engine.batches == [[1], [2]]
    submit(queue, 4)
    await settle()
    assert engine.batches == [[1], [2], [3]]  # behind one of the two, while 4 is left
    submit(queue, 5, 6)
    await settle()
    assert engine.batches == [[1], [2], [3], [4]]
    for index, begun in ((1, 5), (0, 5), (2, 5), (3, 6)):  # the last item stays until a stream is free
        await engine.release(index)
        assert len(engine.batches) == begun
    assert engine.batches[4:] == [[5], [6]]


@settings(deadline=None)  # the machine may be busy
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), max_size=40),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(0, 3),
)
def test_everyone_who_stays_is_answered_once_rightly(arrivals, streams, max_batch, ahead):
    async def body():
        seen: list[int] = []

        async def run(items):
            await asyncio.sleep(0)
            assert len({arrivals[item][0] for item in items}) == 1
            assert len(items) <= max_batch
            seen.extend(items)
            return [2 * item for item in items]

        queue = Scheduler(run, streams, max_batch, ahead=ahead)
        tasks = []
        for item, (key, _) in enumerate(arrivals):
            tasks += submit(queue, item, key=key)
            if item % 3 == 0:
                await asyncio.sleep(0)
        gone = [task for task, (_, stays) in zip(tasks, arrivals, strict=True) if not stays]
        for task in gone:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await queue.close()
        for item, (_, stays) in enumerate(arrivals):
            if stays:
                assert results[item][0] == 2 * item
        assert len(seen) == len(set(seen))

    asyncio.run(body())
