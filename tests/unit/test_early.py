"""Pictures that are begun while the rest of their request is still on its way."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.asgi import World, in_loop, metric, settle

KIND = ("Content-Type", "multipart/form-data; boundary=edge")
END = b"--edge--\r\n"
PAUSE = 0.05


def file(data):
    return b'--edge\r\nContent-Disposition: form-data; name="f"; filename="%s.png"\r\n\r\n%s\r\n' % (data, data)


def field(name, value):
    return f'--edge\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


# A part is whole when the next boundary has come.
EDGE = b"--edge\r\n"


def send(world, *parts, **options):
    """A form whose parts come one by one, with pauses in between."""
    return world.request([*parts], headers=[KIND, *options.pop("headers", ())], **options)


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@in_loop
async def test_a_picture_is_begun_when_it_is_whole_and_the_answers_keep_their_order():
    world = World()
    exchange = send(world, file(b"a") + file(b"b") + EDGE, 1.0, file(b"c").removeprefix(EDGE) + END)
    await until(lambda: world.model.begun == [b"a", b"b"])
    assert exchange.parts  # the rest is still to come
    assert world.model.admission.items == 2
    await until(lambda: len(world.model.begun) == 3)
    world.model.gate.set()
    answer = await exchange.answer()
    assert [image["name"] for image in answer.json["images"]] == ["a.png", "b.png", "c.png"]
    assert (world.model.begun, world.model.given_up) == ([b"a", b"b", b"c"], [])
    assert (world.model.admission.items, world.model.admission.bytes) == (0, 0)


@in_loop
async def test_fields_ahead_of_pictures_and_the_query_count_for_those_that_are_begun_early():
    world = World()
    world.model.gate.set()
    exchange = send(
        world, field("threshold", "0.25") + file(b"a") + EDGE, PAUSE, file(b"b").removeprefix(EDGE) + END,
        path="/predict?masks=none",
    )  # fmt: skip
    assert (await exchange.answer()).status == 200
    assert [(one.threshold, one.masks) for one in world.model.wanted] == [(0.25, "none")] * 2
    assert world.model.begun == [b"a", b"b"]


@in_loop
async def test_a_field_behind_pictures_has_them_begun_anew():
    world = World()
    exchange = send(world, file(b"a") + EDGE, PAUSE, field("threshold", "0.25").removeprefix(EDGE) + END)
    await until(lambda: world.model.given_up)
    world.model.gate.set()
    assert (await exchange.answer()).status == 200
    assert world.model.begun == [b"a", b"a"]
    assert [one.threshold for one in world.model.wanted] == [None, 0.25]
    assert world.model.admission.items == 0


@in_loop
async def test_a_field_between_pictures_counts_for_those_behind_it_at_once():
    world = World()
    exchange = send(
        world, file(b"a") + EDGE, PAUSE, field("threshold", "0.25").removeprefix(EDGE) + file(b"b") + EDGE, PAUSE,
        file(b"c").removeprefix(EDGE) + END,
    )  # fmt: skip
    await until(lambda: len(world.model.begun) == 4)
    world.model.gate.set()
    assert (await exchange.answer()).status == 200
    assert (world.model.begun, world.model.given_up) == ([b"a", b"a", b"b", b"c"], [b"a"])
    assert [one.threshold for one in world.model.wanted] == [None, 0.25, 0.25, 0.25]
    assert metric(world, 'trifocal_images_total{outcome="answered"}') == 3


@in_loop
async def test_pictures_that_are_done_keep_nobody_out_while_the_rest_is_sent():
    world = World(queue_items=2)
    world.model.gate.set()
    begun = b"".join(file(name) for name in (b"a", b"b"))
    exchange = send(world, begun + EDGE, 1.0, file(b"c").removeprefix(EDGE) + END)
    await until(lambda: len(world.model.begun) == 2)
    await settle()
    assert world.model.admission.items == 0
    other = await world.request(b"other").answer()
    assert other.status == 200
    assert exchange.parts  # the rest is still to come
    assert len((await exchange.answer()).json["images"]) == 3
    assert world.model.admission.items == 0


@pytest.mark.parametrize(
    ("rest", "status", "kind"),
    [
        (field("treshold", "0.2").removeprefix(EDGE) + END, 400, "unknown-option"),
        (b"no header\r\n\r\n", 400, "bad-request"),
        (b"", 400, "bad-request"),
        (b"".join(file(b"%d" % number) for number in range(9)).removeprefix(EDGE) + END, 413, "too-many-images"),
        (b"x" * 60_000, 413, "body-too-large"),
    ],
)
def test_what_is_wrong_behind_a_picture_gives_up_what_was_begun(rest, status, kind):
    @in_loop
    async def test():
        world = World(max_images=8)
        answer = await send(world, file(b"a") + EDGE, PAUSE, rest).answer()
        assert (answer.status, answer.json["type"].rpartition(":")[2]) == (status, kind)
        await settle()
        assert world.model.given_up == world.model.begun
        assert world.model.begun[0] == b"a"
        assert (world.model.admission.items, world.model.admission.bytes) == (0, 0)

    test()


@in_loop
async def test_a_client_that_leaves_while_it_still_sends_is_not_computed_for():
    world = World()
    exchange = send(world, file(b"a") + EDGE, PAUSE, None)
    await until(lambda: world.model.begun)
    await asyncio.wait_for(exchange.task, 10)
    await settle()
    assert world.model.given_up == [b"a"]
    assert world.model.admission.items == 0


@in_loop
async def test_while_others_are_in_the_house_nothing_is_begun_before_all_has_come():
    world = World()
    other = world.request(b"other")
    await until(lambda: world.model.begun)
    exchange = send(world, file(b"a") + EDGE, PAUSE, file(b"b").removeprefix(EDGE) + END)
    await until(lambda: exchange.read > 40)
    await settle()
    assert world.model.begun == [b"other"]
    world.model.gate.set()
    assert (await exchange.answer()).status == 200
    assert (await other.answer()).status == 200
    assert world.model.begun == [b"other", b"a", b"b"]


@in_loop
async def test_a_picture_that_is_to_be_drawn_is_not_begun_before_all_has_come():
    world = World()
    exchange = send(world, file(b"a") + EDGE, PAUSE, None, headers=[("Accept", "image/png")])
    await asyncio.wait_for(exchange.task, 10)
    assert world.model.begun == []
