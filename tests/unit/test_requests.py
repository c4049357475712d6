"""What a request meets before and while it is worked on: limits, deadlines, quotas, keys, clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace

import pytest

from serving.problems import Problem
from serving.routes.predict import unless_gone
from tests.unit.asgi import World, in_loop, metric, settle


@in_loop
async def test_a_picture_is_answered_and_everything_is_given_back():
    world = World()
    exchange = world.request(b"picture")
    await settle()
    assert world.model.admission.items == 1
    assert world.model.admission.bytes == 7
    world.model.gate.set()
    answer = await exchange.answer()
    assert answer.status == 200
    assert answer.json["images"][0]["size"] == {"width": 5, "height": 4}
    assert (world.model.admission.items, world.model.admission.bytes) == (0, 0)


@pytest.mark.parametrize("changes", [{}, {"cors": ("https://page.example",)}])
def test_predict_is_the_same_with_and_without_the_layers_in_between(changes):
    async def test():
        world = World(**changes)
        assert bool(world.app._direct) == (not changes)
        world.model.gate.set()
        found = {
            "answer": await world.request().answer(),
            "option": await world.request(path="/predict?maks=none").answer(),
            "method": await world.request(method="GET").answer(),
        }
        world.model.predict = None  # a slip of ours
        found["fault"] = await world.request().answer()
        assert {name: one.status for name, one in found.items()} == {
            "answer": 200, "option": 400, "method": 405, "fault": 500
        }  # fmt: skip
        for name, kind in {"option": "unknown-option", "method": "method-not-allowed", "fault": "internal"}.items():
            assert found[name].json["type"].endswith(f":{kind}")
        counted = 'trifocal_requests_total{method="POST",route="/predict",status='
        assert [metric(world, f'{counted}"{status}"') for status in (200, 400, 500)] == [1, 1, 1]

    in_loop(test)()


@in_loop
async def test_a_deadline_in_the_request_ends_the_work():
    world = World()
    answer = await world.request(headers=[("X-Deadline-Ms", "20")]).answer()
    assert answer.status == 504
    assert answer.json["type"].endswith(":deadline")
    assert "within 0.02 s" in answer.json["detail"]
    assert world.model.given_up == [b"x"]
    assert world.model.admission.items == 0


@in_loop
async def test_the_default_deadline_holds_without_one_in_the_request():
    world = World(deadline_s=0.02)
    assert (await world.request().answer()).status == 504


@pytest.mark.parametrize("value", ["0", "-1", "soon", "999999999999", "¹", "9" * 5000])
def test_a_deadline_that_makes_no_sense_is_refused(value):
    @in_loop
    async def test():
        answer = await World().request(headers=[("X-Deadline-Ms", value)]).answer()
        assert answer.status == 400
        assert "X-Deadline-Ms" in answer.json["detail"]

    test()


@in_loop
async def test_clients_that_hang_up_are_not_computed_for():
    world = World(queue_items=64)
    exchanges = [world.request(b"%d" % number) for number in range(40)]
    await settle()
    for exchange in exchanges:
        exchange.gone.set()
    for exchange in exchanges:
        await exchange.answer()
    assert len(world.model.given_up) == 40
    assert world.model.admission.items == 0
    assert metric(world, 'trifocal_rejections_total{reason="client-gone"}') == 40


@in_loop
async def test_a_client_that_leaves_as_its_picture_proves_broken_has_left():
    """A group of tasks gives the picture's problem precedence over the end of the request; nothing may be left of that end."""
    gone = asyncio.Event()

    async def work():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(5)
        raise Problem("broken-image", "a.png: it ends early")

    asyncio.get_running_loop().call_soon(gone.set)
    with pytest.raises(Problem, match="hung up"):
        await unless_gone(SimpleNamespace(receive=gone.wait), work())
    await asyncio.sleep(0)
    assert asyncio.current_task().cancelling() == 0


@in_loop
async def test_a_full_house_refuses_at_once_with_retry_after():
    world = World(queue_items=2)
    inside = [world.request() for _ in range(2)]
    await settle()
    refused = await world.request().answer()
    assert refused.status == 503
    assert int(refused.headers["retry-after"]) >= 1
    world.model.gate.set()
    for exchange in inside:
        assert (await exchange.answer()).status == 200
    assert (await world.request().answer()).status == 200


@in_loop
async def test_a_wait_that_would_be_too_long_is_refused_before_the_body_is_read():
    world = World()
    world.model.admission.observe(1, 30.0)
    first = world.request()
    await settle()
    refused = await world.request(b"y" * 1000).answer()
    assert refused.status == 503
    assert refused.read == 0
    assert metric(world, 'trifocal_requests_total{method="POST",route="/predict",status="503"}') == 1
    world.model.gate.set()
    assert (await first.answer()).status == 200


@in_loop
async def test_a_body_that_says_it_is_too_large_is_not_read():
    refused = await World().request(b"x" * 60_000, headers=[("Content-Length", "60000")]).answer()
    assert refused.status == 413
    assert refused.read == 0
    assert refused.headers["connection"] == "close"


@in_loop
async def test_a_chunked_body_is_cut_off_at_the_limit():
    refused = await World().request([b"x" * 10_000] * 100).answer()
    assert refused.status == 413
    assert refused.read <= 60_000
    assert refused.headers["connection"] == "close"


@in_loop
async def test_bytes_of_half_read_bodies_count():
    world = World()
    slow = [world.request([b"x" * 40_000, 5.0, b"end"]) for _ in range(2)]
    await settle()
    assert world.model.admission.bytes == 80_000
    refused = await world.request(b"x" * 30_000).answer()
    assert refused.status == 503
    for exchange in slow:
        exchange.task.cancel()


@in_loop
async def test_a_slow_sender_is_sent_away():
    world = World(body_timeout_s=0.05)
    refused = await world.request([b"x", 5.0, b"y"]).answer()
    assert refused.status == 408
    assert refused.headers["connection"] == "close"
    assert world.model.begun == []


@in_loop
async def test_a_quota_is_per_client():
    world = World(quota=1.0)
    world.model.gate.set()
    assert (await world.request().answer()).status == 200
    refused = await world.request().answer()
    assert refused.status == 429
    assert int(refused.headers["retry-after"]) == 1
    assert (await world.request(client="5.6.7.8").answer()).status == 200


@in_loop
async def test_api_keys_guard_everything_but_the_page_and_the_probes():
    world = World(api_keys=("secret", "other"))
    world.model.gate.set()
    for headers in ([], [("Authorization", "Bearer wrong")], [("X-API-Key", "secre")], [("X-API-Key", "")]):
        refused = await world.request(headers=headers).answer()
        assert refused.status == 401
        assert refused.headers["www-authenticate"] == "Bearer"
    beside = [("Authorization", "Basic c29tZTpib2R5"), ("X-API-Key", "secret")]
    for headers in (
        [("Authorization", "Bearer secret")],
        [("Authorization", "bearer secret")],
        [("X-API-Key", "other")],
        beside,
    ):
        assert (await world.request(headers=headers).answer()).status == 200
    for path in ("/healthz", "/readyz"):
        assert (await world.request(b"", path, "GET").answer()).status == 200
    for path in ("/metrics", "/model"):
        assert (await world.request(b"", path, "GET").answer()).status == 401


@in_loop
async def test_other_pages_may_call_only_where_cors_says_so():
    origin = [("Origin", "https://a.example"), ("Access-Control-Request-Method", "POST")]
    closed = await World().request(b"", "/predict", "OPTIONS", origin).answer()
    assert "access-control-allow-origin" not in closed.headers
    world = World(cors=("https://a.example",), api_keys=("secret",))
    world.model.gate.set()
    asked = await world.request(b"", "/predict", "OPTIONS", origin).answer()
    assert asked.headers["access-control-allow-origin"] == "https://a.example"
    answer = await world.request(headers=[*origin[:1], ("X-API-Key", "secret")]).answer()
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    other = await world.request(headers=[("Origin", "https://b.example"), ("X-API-Key", "secret")]).answer()
    assert "access-control-allow-origin" not in other.headers


@in_loop
async def test_the_openapi_document_shows_every_problem_of_predict():
    answer = await World().request(b"", "/openapi.json", "GET").answer()
    responses = answer.json["paths"]["/predict"]["post"]["responses"]
    assert {"200", "400", "401", "406", "408", "413", "415", "422", "429", "500", "503", "504"} <= set(responses)
    for status, response in responses.items():
        for example in response["content"].get("application/problem+json", {}).get("examples", {}).values():
            assert example["value"]["status"] == int(status)
    assert answer.json["paths"]["/v2/models/{name}/infer"]


@in_loop
async def test_a_fault_of_ours_is_a_document_without_a_trace():
    world = World()
    world.model.predict = None
    answer = await world.request().answer()
    assert answer.status == 500
    assert answer.json["type"].endswith(":internal")
    assert b"Trace" not in answer.body
    assert b"NoneType" not in answer.body
    assert answer.headers["x-request-id"] in answer.json["instance"]
    assert world.model.admission.items == 0


@in_loop
async def test_a_request_id_that_could_break_a_log_is_replaced():
    world = World()
    world.model.gate.set()
    answer = await world.request(headers=[("X-Request-ID", 'a"\tb')]).answer()
    assert len(answer.headers["x-request-id"]) == 32


@in_loop
async def test_readiness_ends_when_the_drain_begins_and_work_goes_on():
    world = World()
    exchange = world.request()
    await settle()
    world.service.draining = True
    assert (await world.request(b"", "/readyz", "GET").answer()).status == 503
    assert (await world.request(b"", "/healthz", "GET").answer()).status == 200
    world.model.gate.set()
    assert (await exchange.answer()).status == 200


@pytest.mark.parametrize(
    ("boundary", "body", "told"),
    [
        ("b", b"--b\r\n", "breaks off"),
        ("b", b"nothing of the kind", "broken"),
        ("b", b'--b\r\nContent-Disposition: form-data; name="heads"\r\n\r\nx\r\n--b--\r\n', "no picture"),
        ("b" * 300, b"--b\r\n", "300 exceeds"),
        ("", b"--b\r\n", "without a boundary"),
    ],
)
def test_broken_multipart_is_told(boundary, body, told):
    @in_loop
    async def test():
        headers = [("Content-Type", f"multipart/form-data; boundary={boundary}")]
        answer = await World().request(body, headers=headers).answer()
        assert answer.status == 400
        assert told in answer.json["detail"]

    test()


@in_loop
async def test_more_pictures_than_allowed_are_refused():
    part = b'--b\r\nContent-Disposition: form-data; name="i"; filename="a"\r\n\r\nx\r\n'
    headers = [("Content-Type", "multipart/form-data; boundary=b")]
    answer = await World(max_images=3).request(part * 4 + b"--b--\r\n", headers=headers).answer()
    assert answer.status == 413
    assert answer.json["type"].endswith(":too-many-images")
