"""For operators and probes: /healthz, /readyz, /model, /metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from serving.problems import Problem
from serving.schemas import problems
from serving.service import Service

router = APIRouter()


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process lives."""
    return {"status": "alive"}


@router.get("/readyz", responses=problems(503))
async def readyz(request: Request) -> dict[str, str]:
    """New requests are welcome; 503 while stopping."""
    service: Service = request.app.state.service
    if not service.ready:
        raise Problem("stopping", "the service takes no new requests")
    return {"status": "ready"}


@router.get("/model", responses=problems(401, 503))
async def model(request: Request) -> dict[str, Any]:
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
    return {
        "name": manifest.name,
        "version": deployment.version,
        "run_id": deployment.run_id,
        "heads": heads,
        "input": {"height": manifest.input.height, "width": manifest.input.width},
        "engine": {key: deployment.ready[key] for key in ("spec", "engine", "device", "threads", "choice")},
        "provenance": manifest.provenance,
    }


@router.get("/metrics", response_class=PlainTextResponse, responses=problems(401))
async def metrics(request: Request) -> Response:
    """All figures for Prometheus."""
    service: Service = request.app.state.service
    return Response(service.metrics.expose(), media_type=CONTENT_TYPE_LATEST)
