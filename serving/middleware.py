"""Around every request: its id, keys, quota, one log line, one count, and a document instead of a trace.

Plain ASGI: Starlette's decorated middleware would hide that a client has hung up.
"""

from __future__ import annotations

import hmac
import logging
import re
import time
import uuid
from collections.abc import MutableMapping
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.problems import MEDIA_TYPE, Problem
from serving.service import Service

log = logging.getLogger("trifocal.access")

OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
"""Answered without a key: the page (it asks for one), the API's description, and what probes look at."""

INTERNAL = "see the service's log under this request's id"

_SANE_ID = re.compile(r"[\w.:-]{1,128}")


class Envelope:
    """The outermost layer.

    Args:
        app: what it wraps.
        service: whose settings and metrics count.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service
        self._refused, self._told_at = 0, 0.0
        self._keys = [key.encode() for key in service.settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: value for name, value in scope["headers"] if name in _WANTED}
        request_id = _request_id(headers.get(b"x-request-id", b""))
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["oip"] = scope["path"].startswith("/v2")
        begun = time.perf_counter()
        with self._service.traces.request(scope):
            await self._answer(scope, receive, send, headers)
        self._count(scope, state.get("status", 0), time.perf_counter() - begun)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, headers: dict[bytes, bytes]) -> None:
        state = scope["state"]
        request_id = state["request_id"]

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                state["status"] = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            self._let_in(scope, headers)
            await self._app(scope, receive, answer)
        except Problem as problem:
            await problem_response(problem, state)(scope, receive, answer)
        except Exception:
            log.exception("a fault of the service", extra={"fields": {"request": request_id}})
            if "status" not in state:
                await problem_response(Problem("internal", INTERNAL), state)(scope, receive, answer)

    def _let_in(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        path = scope["path"]
        # A browser asks by OPTIONS without a key whether it may ask with one.
        if path in OPEN_PATHS or path.startswith("/page/") or scope["method"] == "OPTIONS":
            return
        given = headers.get(b"authorization", b"").removeprefix(b"Bearer ") or headers.get(b"x-api-key", b"")
        # All keys are compared, so that time tells nothing about which one is near.
        known = sum(hmac.compare_digest(given, key) for key in self._keys)
        if self._keys and not known:
            raise Problem("unauthorized", f"{path} needs an API key")
        client = given.decode("latin-1") if self._keys else (scope.get("client") or ("",))[0]
        if scope["method"] == "POST":
            self._service.quota.take(client)
            # Before any routing: under overload, refusing must cost next to nothing.
            self._service.require_room()

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        self._service.metrics.requests.labels(route, scope["method"], str(status)).inc()
        reason = scope["state"].get("reason")
        if reason is not None and status != 500:
            self._service.metrics.rejected.labels(reason).inc()
        if reason in _REFUSALS:
            self._tell_refusals(reason)
        else:
            fields = {
                "request": scope["state"]["request_id"],
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": round(seconds * 1000, 1),
                **({"reason": reason} if reason else {}),
                **scope["state"].get("log", {}),
            }
            log.info("request", extra={"fields": fields})

    def _tell_refusals(self, reason: str) -> None:
        """One line a second at most: a line for each would slow the service down just when it is busy."""
        self._refused += 1
        now = time.monotonic()
        if now - self._told_at >= 1:
            log.warning("refused", extra={"fields": {"requests": self._refused, "last": reason}})
            self._refused, self._told_at = 0, now


_REFUSALS = frozenset({"overloaded", "over-quota"})
_WANTED = frozenset({b"x-request-id", b"authorization", b"x-api-key"})
_CLOSING = frozenset({"body-too-large", "slow-sender", "unauthorized", "over-quota"})
"""Problems after which the rest of the body is not worth reading."""


def _request_id(given: bytes) -> str:
    text = given.decode("latin-1")
    return text if _SANE_ID.fullmatch(text) else uuid.uuid4().hex


def problem_response(problem: Problem, state: MutableMapping[str, Any]) -> Response:
    """The problem as a document; `state` is the request's, which then knows the reason."""
    state["reason"] = problem.kind
    headers = problem.headers()
    if problem.kind == "unauthorized":
        headers["WWW-Authenticate"] = "Bearer"
    if problem.kind in _CLOSING:
        headers["Connection"] = "close"
    return Response(problem.encode(state["request_id"], state["oip"]), problem.status, headers, MEDIA_TYPE)
