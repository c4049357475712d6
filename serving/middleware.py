"""Around every request: its id, keys, quota, one log line, one count, and a document instead of a trace.

Plain ASGI: Starlette's decorated middleware would hide that a client has hung up.
"""

from __future__ import annotations

import hmac
import logging
import os
import re
import time
from collections.abc import Iterable, MutableMapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.headers import whole_number
from serving.problems import MEDIA_TYPE, Problem
from serving.routes.plain import PlainRoute
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
        direct: routes whose endpoint is asked without the application's layers in between, which took an eighth of this
            process's time for a request. Such an endpoint takes the request alone, and its route has no parameters.
    """

    def __init__(self, app: ASGIApp, service: Service, direct: Iterable[PlainRoute] = ()) -> None:
        self._app, self._service = app, service
        self._direct = {(method, route.path): route for route in direct for method in route.methods or ()}
        self._refused, self._told_at = 0, 0.0
        self._keys = [key.encode() for key in service.settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        # The server has asked already, but for pipelined requests.
        refusal = None if "let_in" in state else self.turn_away(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        # A HEAD is answered as a GET; the server, which keeps the scope as it came, leaves the body out.
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        with self._service.traces.request(inner):
            await self._answer(inner, receive, send)
        self._count({**inner, "method": scope["method"]}, state.get("status", 0), time.perf_counter() - begun)

    def turn_away(self, scope: MutableMapping[str, Any]) -> Response | None:
        """Key, quota and room, by the head alone: the refusal, counted; None where the request is let in.

        To be asked once for a request, before anything of its body is read: under overload, refusing must cost next to
        nothing.
        """
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        headers = {name: value for name, value in scope["headers"] if name in _WANTED}
        state["request_id"] = _request_id(headers.get(b"x-request-id", b""))
        state["oip"] = scope["path"].startswith("/v2")
        try:
            self._let_in(scope, headers)
        except Problem as problem:
            with self._service.traces.request(scope):
                state["status"] = problem.status
                response = problem_response(problem, state)
            response.raw_headers += [(b"x-request-id", state["request_id"].encode()), *self._for_page(headers)]
            self._count(scope, problem.status, 0)
            return response
        state["let_in"] = True
        return None

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope["state"]
        request_id = state["request_id"]

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                state["status"] = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
                if self._service.draining:  # a request that came on this connection later could be lost
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            route = self._direct.get((scope["method"], scope["path"]))
            if route is None:
                await self._app(scope, receive, answer)
            else:
                scope["app"], scope["route"] = self._app, route
                response: Response = await route.endpoint(Request(scope, receive))
                await response(scope, receive, answer)
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
        given = _key(headers)
        # All keys are compared, so that time tells nothing about which one is near.
        known = sum(hmac.compare_digest(given, key) for key in self._keys)
        if self._keys and not known:
            raise Problem("unauthorized", f"{path} needs an API key")
        client = given.decode("latin-1") if self._keys else (scope.get("client") or ("",))[0]
        if scope["method"] == "POST":
            self._service.quota.take(client)
            size, most = (
                whole_number(headers.get(b"content-length", b"").decode("latin-1")),
                self._service.settings.max_body,
            )
            if size is not None and size > most:
                raise Problem("body-too-large", f"{size} bytes; at most {most}")
            self._service.require_room()

    def _for_page(self, headers: dict[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        """What lets a page of an allowed origin read a refusal, which the CORS layer further in never sees."""
        origin, allowed = headers.get(b"origin", b"").decode("latin-1"), self._service.settings.cors
        if not origin or (origin not in allowed and "*" not in allowed):
            return []
        return [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin"), _EXPOSED]

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None) or _route(scope["path"])
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
_WANTED = frozenset({b"x-request-id", b"authorization", b"x-api-key", b"content-length", b"origin"})
EXPOSED_HEADERS = ("Retry-After", "X-Model-Version", "X-Request-ID")
"""What other origins' pages may read besides the body."""

_EXPOSED = (b"access-control-expose-headers", ", ".join(EXPOSED_HEADERS).encode())
_CLOSING = frozenset({"body-too-large", "slow-sender", "unauthorized", "over-quota"})
"""Problems after which the rest of the body is not worth reading."""


def _route(path: str) -> str:
    """Which route a request was for that was refused before routing; few names, whatever strangers ask for."""
    if path.startswith("/v2/models/") and path.endswith("/infer"):
        return "/v2/models/{name}/infer"
    return path if path in {"/predict", "/model", "/metrics"} else "unknown"


def _key(headers: dict[bytes, bytes]) -> bytes:
    """The API key; a header of another scheme, as some proxies add it, is none."""
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")


def _request_id(given: bytes) -> str:
    text = given.decode("latin-1")
    return text if _SANE_ID.fullmatch(text) else os.urandom(16).hex()


def problem_response(problem: Problem, state: MutableMapping[str, Any]) -> Response:
    """The problem as a document; `state` is the request's, which then knows the reason."""
    state["reason"] = problem.kind
    headers = problem.headers()
    if problem.kind == "unauthorized":
        headers["WWW-Authenticate"] = "Bearer"
    if problem.kind in _CLOSING:
        headers["Connection"] = "close"
    return Response(problem.encode(state["request_id"], state["oip"]), problem.status, headers, MEDIA_TYPE)
