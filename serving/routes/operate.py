"""For operators and probes: /healthz, /readyz, /model, /metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from serving.problems import Problem
from serving.routes.plain import PlainRoute
from serving.schemas import MODEL_EXAMPLE, problems, shown
from serving.service import Service

router = APIRouter(route_class=PlainRoute)

_ALIVE, _READY = {"status": "alive"}, {"status": "ready"}


@router.get("/healthz", responses=shown(_ALIVE))
async def healthz(request: Request) -> Response:  # noqa: ARG001  # a plain route's signature
    """The process lives."""
    return JSONResponse(_ALIVE)


@router.get("/readyz", responses={**shown(_READY), **problems(503)})
async def readyz(request: Request) -> Response:
    """New requests are welcome; 503 while stopping."""
    service: Service = request.app.state.service
    if not service.ready:
        raise Problem("stopping", "the service takes no new requests")
    return JSONResponse(_READY)


@router.get("/model", responses={**shown(MODEL_EXAMPLE), **problems(401, 503)})
async def model(request: Request) -> Response:
    """What answers: version, heads and classes with their colours, input, engine, provenance."""
    service: Service = request.app.state.service
    deployment = service.model
    manifest = deployment.manifest
    heads = {
        name: {
            "kind": head.kind,
            "classes": list(head.classes),
            "colours": [list(colour) for colour in head.space.colours],
            "threshold": head.threshold,
        }
        for name, head in manifest.heads.items()
    }
    return JSONResponse(
        {
            "name": manifest.name,
            "version": deployment.version,
            "run_id": deployment.run_id,
            "heads": heads,
            "input": {"height": manifest.input.height, "width": manifest.input.width},
            "engine": {key: deployment.ready[key] for key in ("spec", "engine", "device", "threads", "choice")},
            "provenance": manifest.provenance,
        }
    )


@router.get("/metrics", response_class=PlainTextResponse, responses=problems(401))
async def metrics(request: Request) -> Response:
    """All figures for Prometheus."""
    service: Service = request.app.state.service
    return Response(service.metrics.expose(), media_type=CONTENT_TYPE_LATEST)
