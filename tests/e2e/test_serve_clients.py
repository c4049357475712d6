"""Clients as other languages and tools have them: what they offer, how they probe, how they repeat themselves."""

from __future__ import annotations

import socket

import pytest

from tests.e2e.services import picture


def connect(service, data: bytes) -> bytes:
    """Sends raw bytes of a last request and reads until the other side closes."""
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        raw.sendall(data)
        found = b""
        while part := raw.recv(65_536):
            found += part
        return found


@pytest.mark.parametrize("offer", ["Upgrade: h2c", "UPGRADE:websocket"])
def test_a_client_that_offers_another_protocol_is_answered_in_this_one(service, offer):
    # As Java's own client sends every first request.
    data = picture()
    head = (
        "POST /predict HTTP/1.1\r\nHost: here\r\nConnection: Upgrade, HTTP2-Settings, close\r\n"
        f"{offer}\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    answer = connect(service, head.encode() + data)
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b'"labels":["red"]' in answer
    assert "upgrade" not in service.text.lower()


@pytest.mark.parametrize(
    "path", ["/", "/healthz", "/readyz", "/model", "/page/page.js", "/v2/models/known", "/nowhere"]
)
def test_head_tells_what_get_would(service, path):
    got, told = service.client.get(path), service.client.head(path)
    assert told.status_code == got.status_code
    assert told.headers["content-type"] == got.headers["content-type"]
    assert told.headers["content-length"] == str(len(got.content))
    assert told.content == b""


def test_a_head_counts_under_its_route_and_takes_no_post(service):
    counted = 'trifocal_requests_total{method="HEAD",route="/docs",status="200"}'
    before = service.metric(counted)
    assert service.client.head("/docs").status_code == 200
    assert service.metric(counted) == before + 1
    assert service.client.head("/predict").headers["allow"] == "POST"


def test_what_is_no_http_gets_a_problem_document(service):
    head, _, body = connect(service, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/problem+json" in head
    assert f"content-length: {len(body)}".encode() in head
    assert b'"remedy"' in body


@pytest.mark.parametrize(
    ("query", "fields"),
    [("?heads=colour&heads=things", {}), ("?masks=png", {"masks": "none"}), ("", {"threshold": ["0.1", "0.2"]})],
)
def test_an_option_given_twice_is_refused(service, query, fields):
    answer = service.client.post(f"/predict{query}", files={"image": ("a.png", picture())}, data=fields)
    assert answer.status_code == 400
    assert "given twice" in answer.json()["detail"]


def test_a_path_can_not_forge_a_line_of_the_log(service):
    assert service.client.get("/x%0A00:00:00%20forged%20status=200%1B[31m").status_code == 404
    service.wait_for("forged")
    line = next(line for line in service.log if "forged" in line)
    assert "path='/x\\n00:00:00 forged status=200\\x1b[31m'" in line
    assert "status=404" in line
