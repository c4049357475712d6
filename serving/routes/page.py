"""The page at `/` and its few files: no build step, nothing from elsewhere."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response

from serving.problems import Problem
from serving.routes.plain import PlainRoute

router = APIRouter(include_in_schema=False, route_class=PlainRoute)

FOLDER = Path(__file__).parents[1] / "page"
KINDS = {
    "index.html": "text/html; charset=utf-8",
    "docs.html": "text/html; charset=utf-8",
    "docs.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "draw.js": "text/javascript; charset=utf-8",
    "example.jpg": "image/jpeg",
}

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@cache
def _read(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


@router.get("/")
async def index(request: Request) -> Response:  # noqa: ARG001  # a plain route's signature
    """The page."""
    return Response(_read("index.html"), media_type=KINDS["index.html"], headers=_HEADERS)


@router.get("/docs")
async def docs(request: Request) -> Response:  # noqa: ARG001  # likewise
    """The API's description."""
    return Response(_read("docs.html"), media_type=KINDS["docs.html"], headers=_HEADERS)


@router.get("/page/{name}")
async def part(request: Request) -> Response:
    """One of its files."""
    name = request.path_params["name"]
    if name not in KINDS:
        raise Problem("not-found", f"/page/{name[:80]}")
    return Response(_read(name), media_type=KINDS[name], headers=_HEADERS)
