"""The application: routes, problem documents and the envelope, over a service."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from serving.middleware import EXPOSED_HEADERS, INTERNAL, Envelope, problem_response
from serving.problems import Problem
from serving.routes import operate, page, predict, v2
from serving.routes.plain import PlainRoute
from serving.service import Service


def build_app(service: Service) -> Envelope:
    """The ASGI application of a service."""
    app = FastAPI(
        title="Trifocal",
        summary="Image labels, boxes and masks from one network.",
        version="1",
        description="Errors are RFC 9457 problem documents: what is wrong, where, and what helps.",
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.service = service
    for routes in (page, predict, operate, v2):
        app.include_router(routes.router)
    for kind, handler in ((Problem, _problem), (HTTPException, _refused), (Exception, _fault)):
        app.add_exception_handler(kind, handler)
    if service.settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.settings.cors,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key", "X-Deadline-Ms", "X-Request-ID"],
            expose_headers=EXPOSED_HEADERS,
        )
        return Envelope(app, service)  # every answer needs that layer's headers
    return Envelope(app, service, [route for route in predict.router.routes if isinstance(route, PlainRoute)])


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return problem_response(error, request.scope["state"])


async def _refused(request: Request, error: Exception) -> Response:
    """Starlette's own refusals, told as ours."""
    status = getattr(error, "status_code", 500)
    kind = {404: "not-found", 405: "method-not-allowed"}.get(status, "bad-request")
    response = problem_response(Problem(kind, f"{request.method} {request.url.path[:200]}"), request.scope["state"])
    response.headers.update(getattr(error, "headers", None) or {})  # which methods a path takes instead
    return response


async def _fault(request: Request, error: Exception) -> Response:  # noqa: ARG001  # the envelope logs it
    return problem_response(Problem("internal", INTERNAL), request.scope["state"])
