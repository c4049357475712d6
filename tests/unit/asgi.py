"""The service's application without sockets or processes: a model that answers when told to, and a client of raw ASGI."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

from pipeline.bundle import InputSpec, Manifest
from serving.admission import Admission
from serving.app import build_app
from serving.deployment import ImageAnswer
from serving.observe import Metrics
from serving.service import Service
from serving.settings import Settings
from tests.unit.bundles import HEADS

SETTINGS = Settings("unused", queue_items=8, queue_bytes=100_000, deadline_s=5.0, max_body=50_000)


class FakeModel:
    """A deployment whose pictures wait for `gate`; `begun` and `given_up` tell what became of them."""

    def __init__(self, settings):
        self.manifest = Manifest("fake", InputSpec(32, 32, 114), HEADS, version="7")
        self.version, self.run_id, self.ready = "7", None, {"spec": "fake:fp32"}
        self.admission = Admission(settings.queue_items, settings.queue_bytes, settings.max_wait_s, 1)
        self.gate = asyncio.Event()
        self.begun, self.given_up, self.wanted = [], [], []

    async def predict(self, data, name, options):
        self.begun.append(data)
        self.wanted.append(options)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.given_up.append(data)
            raise
        return ImageAnswer(b"{}", 4, 5, "PNG", [], {})


class World:
    """An application over a fake model."""

    def __init__(self, **changes):
        settings = replace(SETTINGS, **changes)
        self.service = Service(settings, Metrics())
        self.model = self.service._current = FakeModel(settings)
        self.app = build_app(self.service)

    def request(self, body=b"x", path="/predict", method="POST", headers=(), client="1.2.3.4"):
        return Exchange(self.app, body, path, method, headers, client)


class Exchange:
    """One request; `body` is bytes, or a list of chunks, pauses in seconds, and None where the client leaves."""

    def __init__(self, app, body, path, method, headers, client):
        self.gone = asyncio.Event()
        self.parts = [body] if isinstance(body, bytes) else list(body)
        self.read = 0
        self.status, self.headers, self.body = 0, {}, b""
        path, _, query = path.partition("?")
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
            "client": (client, 1), "server": ("here", 80),
        }  # fmt: skip
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def _receive(self):
        while self.parts and isinstance(self.parts[0], float):
            await asyncio.sleep(self.parts.pop(0))
        if self.parts:
            part = self.parts.pop(0)
            if part is None:
                return {"type": "http.disconnect"}
            self.read += len(part)
            return {"type": "http.request", "body": part, "more_body": bool(self.parts)}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.body += message.get("body", b"")

    async def answer(self):
        await asyncio.wait_for(self.task, 20)
        return self

    @property
    def json(self):
        return json.loads(self.body)


def metric(world, name):
    """One sample of the world's metrics by the start of its line; 0 where it is absent."""
    lines = world.service.metrics.expose().decode().splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), 0.0)


async def settle():
    for _ in range(50):
        await asyncio.sleep(0)


def in_loop(test):
    """Runs a test coroutine."""

    def wrapped():
        asyncio.run(test())

    wrapped.__name__, wrapped.__doc__ = test.__name__, test.__doc__
    return wrapped
