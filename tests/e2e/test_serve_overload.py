"""More work than the engines can do: refusals by the head alone, clients that leave, and nothing computed for them."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.e2e.services import Running, picture

QUEUE, STREAMS, ORIGIN = 40, 2, "https://a.example"


@pytest.fixture(scope="module")
def service(bundle):
    options = ("--streams", str(STREAMS), "--lone-threads", "1", "--decoders", "2", "--queue", str(QUEUE))
    with Running(bundle, *options, "--body-timeout", "2", "--max-body-mb", "2", "--deadline", "60") as running:
        yield running


@contextlib.contextmanager
def halted(service):
    """The engine processes stand still meanwhile."""
    engines = service.family("engine")
    assert len(engines) == STREAMS
    for process in engines:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in engines:
            process.send_signal(signal.SIGCONT)


def wait(until):
    deadline = time.monotonic() + 50
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextlib.contextmanager
def full(service):
    """The house is full of pictures meanwhile; they are answered in the end."""
    files = [("images", (f"{number}.png", picture())) for number in range(QUEUE)]
    with ThreadPoolExecutor(1) as pool:
        with halted(service):
            asked = pool.submit(httpx.post, service.url + "/predict", files=files, timeout=60)
            wait(lambda: service.metric("trifocal_queue_images") == QUEUE)
            assert service.metric("trifocal_queue_bytes") > sum(len(data) for _, (_, data) in files)
            yield
        answer = asked.result()
    assert answer.status_code == 200
    assert all("heads" in image for image in answer.json()["images"])
    assert (service.metric("trifocal_queue_images"), service.metric("trifocal_queue_bytes")) == (0, 0)


def connect(service) -> socket.socket:
    host, port = service.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def head(method: str, path: str, *more: str) -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: x", *more, "\r\n")).encode()


def answer(raw: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """The next answer of a connection: status, headers, body."""
    got = b""
    while b"\r\n\r\n" not in got:
        part = raw.recv(1)
        assert part, "closed without an answer"
        got += part
    first, *lines = got[:-4].decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    body = b""
    while len(body) < int(headers["content-length"]):
        body += raw.recv(int(headers["content-length"]) - len(body))
    return int(first.split()[1]), headers, body


def test_a_refusal_needs_no_body_and_keeps_the_connection(service):
    with full(service), connect(service) as raw:
        for number in range(3):
            raw.sendall(head("POST", "/predict", "Content-Length: 1000000", f"X-Request-ID: r{number}"))
            status, headers, body = answer(raw)  # not a byte of the body was sent
            assert status == 503
            assert int(headers["retry-after"]) >= 1
            assert headers["x-request-id"] == f"r{number}"
            assert "date" in headers
            document = json.loads(body)
            assert document["type"].endswith(":overloaded")
            assert f"{QUEUE} pictures are waiting" in document["detail"]
            raw.sendall(b"\r\n" * 500_000)  # the promised body, thrown away
        raw.sendall(head("GET", "/healthz"))
        assert answer(raw)[0] == 200


def test_an_ordinary_client_reads_its_refusal_whatever_it_sends(service):
    with httpx.Client(base_url=service.url, timeout=20) as client:
        with full(service):
            for path in ("/predict", "/v2/models/known/infer"):
                for size in (100, 60_000, 200_000, 1_500_000):
                    refused = client.post(path, content=b"x" * size)
                    assert refused.status_code == 503
                    assert ("error" in refused.json()) == path.startswith("/v2")
        for _ in range(3):
            assert client.post("/predict", content=b"x" * 4_000_000).status_code == 413
            assert client.post("/nowhere", content=b"x" * 1_500_000).status_code == 404


def test_pipelined_requests_are_refused_in_order(service):
    with full(service), connect(service) as raw:
        one = head("POST", "/predict", "Content-Length: 3", "X-Request-ID: %d") + b"abc"
        raw.sendall(
            head("GET", "/readyz")  # this one is answered in a task: those behind it wait for their turn
            + b"".join(one.replace(b"%d", b"%d" % number) for number in range(200))
            + head("GET", "/healthz")
        )
        assert answer(raw)[0] == 200
        for number in range(200):
            status, headers, _ = answer(raw)
            assert (status, headers["x-request-id"]) == (503, str(number))
        assert answer(raw)[0] == 200


def test_a_refused_client_that_never_sends_its_body_is_closed(service):
    with full(service), connect(service) as raw:
        raw.sendall(head("POST", "/predict", "Content-Length: 1000"))
        assert answer(raw)[0] == 503
        begun = time.monotonic()
        assert raw.recv(1) == b""
        assert 0.5 < time.monotonic() - begun < 10  # the time limit of a body


def test_refusals_are_counted_and_take_next_to_no_time(service):
    with full(service), connect(service) as raw:
        before = service.metric('trifocal_rejections_total{reason="overloaded"}')
        times = []
        for _ in range(200):
            begun = time.perf_counter()
            raw.sendall(head("POST", "/predict", "Content-Length: 0"))
            assert answer(raw)[0] == 503
            times.append(time.perf_counter() - begun)
        assert service.metric('trifocal_rejections_total{reason="overloaded"}') == before + 200
        assert sorted(times)[100] < 0.02


@pytest.mark.parametrize("busy", [True, False])
def test_clients_that_hang_up_are_not_computed_for(service, busy):
    """Streams that are busy compute for none of them; idle ones have begun with one each, which halted ones may finish."""
    data = picture()
    request = head("POST", "/predict", f"Content-Length: {len(data)}") + data
    read, left = 'trifocal_stage_seconds_count{stage="read"}', 'trifocal_rejections_total{reason="client-gone"}'
    computed, already, gone = (service.metric(name) for name in ("trifocal_batch_size_count", read, left))
    with ThreadPoolExecutor(STREAMS + 1) as pool:

        def ask(count):
            files = [("images", (f"{number}.png", data)) for number in range(count)]
            return pool.submit(httpx.post, service.url + "/predict", files=files, timeout=60)

        with halted(service):
            staying = [ask(1) for _ in range(STREAMS if busy else 0)]
            if busy:
                wait(lambda: service.metric(read) == already + STREAMS)
                time.sleep(0.3)  # decoded and handed to the streams
            leaving = [connect(service) for _ in range(QUEUE - STREAMS)]
            for raw in leaving:
                raw.sendall(request)
            time.sleep(0.05)
            for raw in leaving:
                raw.close()
            wait(lambda: service.metric(left) == gone + len(leaving))
            # Who comes now fills the house, while streams may still work for those that left. His pictures come after
            # whatever was wrongly left in the queue.
            count = QUEUE - len(staying)
            staying.append(ask(count))
            wait(lambda: service.metric("trifocal_queue_images") == QUEUE)
        for one in staying:
            assert one.result().status_code == 200, one.result().text
            assert all("heads" in image for image in one.result().json()["images"])
    more = service.metric("trifocal_batch_size_count") - computed - QUEUE
    assert more == 0 if busy else 0 <= more <= STREAMS, more


def test_keys_quota_and_origins_are_looked_at_before_the_body(bundle):
    keys = {"TRIFOCAL_API_KEYS": "secret"}
    with Running(bundle, "--quota", "3", "--cors", ORIGIN, "--drain", "0", **keys) as running:
        data, mine = picture(), {"X-API-Key": "secret", "Origin": ORIGIN}
        refused = running.client.post("/predict", content=b"x" * 1_000_000, headers={"Origin": ORIGIN})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == ORIGIN
        assert running.client.head("/model").status_code == 401
        with httpx.Client(base_url=running.url, timeout=20) as client:
            found = [client.post("/predict", content=data, headers=mine) for _ in range(3)]
            assert [one.status_code for one in found] == [200, 200, 200]  # each counted once
            while (refused := client.post("/predict", content=data, headers=mine)).status_code == 200:
                pass
        assert refused.status_code == 429
        assert refused.headers["access-control-allow-origin"] == ORIGIN
        assert "Retry-After" in refused.headers["access-control-expose-headers"]
        other = running.client.post("/predict", headers={"Origin": "https://b.example"})
        assert other.status_code == 401
        assert "access-control-allow-origin" not in other.headers
