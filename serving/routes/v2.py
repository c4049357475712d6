"""The Open Inference Protocol at /v2: what Triton's and KServe's clients speak."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from serving.body import read_body, require_plain
from serving.deployment import Deployment, TensorAnswer
from serving.oip import ANSWERS, DATATYPES, ENCODED, Inference, Output, Tensor, parse_inference, write_response
from serving.problems import Problem
from serving.routes.plain import PlainRoute
from serving.routes.predict import deadline_of, named, unless_gone
from serving.schemas import problems
from serving.schemas_v2 import INFER_RESPONSES, MODEL_RESPONSES, ONE_MODEL, ONE_VERSION, infer_request
from serving.service import Service

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], route_class=PlainRoute)

_LARGE = 1 << 16
"""Bodies from here on are parsed and written beside the event loop."""


@router.get("")
async def server(request: Request) -> Response:  # noqa: ARG001  # a plain route's signature
    """What this server is."""
    return JSONResponse({"name": "trifocal", "version": "1", "extensions": ["binary_tensor_data"]})


@router.get("/health/live")
async def live(request: Request) -> Response:  # noqa: ARG001  # likewise
    """The process lives."""
    return JSONResponse({"live": True})


@router.get("/health/ready", responses=problems(503, oip=True))
async def ready(request: Request) -> Response:
    """New requests are welcome; 503 while stopping."""
    _require_ready(request)
    return JSONResponse({"ready": True})


@router.get("/models/{name}/ready", responses=MODEL_RESPONSES, openapi_extra=ONE_MODEL)
@router.get(
    "/models/{name}/versions/{version}/ready",
    name="version_ready",
    responses=MODEL_RESPONSES,
    openapi_extra=ONE_VERSION,
)
async def model_ready(request: Request) -> Response:
    """The model answers; 404 for another name or version."""
    model = _model(request)
    _require_ready(request)
    return JSONResponse({"name": model.manifest.name, "ready": True})


@router.get("/models/{name}", responses=MODEL_RESPONSES, openapi_extra=ONE_MODEL)
@router.get(
    "/models/{name}/versions/{version}", name="version_metadata", responses=MODEL_RESPONSES, openapi_extra=ONE_VERSION
)
async def model_metadata(request: Request) -> Response:
    """Inputs (give one of the two) and outputs; tensors are in the network's frame, `answers` in each picture's own."""
    model = _model(request)
    spec = model.manifest.input
    outputs = [
        {"name": out["name"], "datatype": DATATYPES[out["dtype"]], "shape": [-1, *out["shape"]]}
        for out in model.ready["outputs"]
    ]
    return JSONResponse(
        {
            "name": model.manifest.name,
            "versions": [model.version],
            "platform": model.ready["spec"].replace(":", "_"),
            "inputs": [
                {"name": spec.name, "datatype": "UINT8", "shape": [-1, spec.height, spec.width, 3]},
                {"name": ENCODED, "datatype": "BYTES", "shape": [-1]},
            ],
            "outputs": [*outputs, {"name": ANSWERS, "datatype": "BYTES", "shape": [-1]}],
        }
    )


@router.post("/models/{name}/infer", responses=INFER_RESPONSES, openapi_extra=infer_request(ONE_MODEL))
@router.post(
    "/models/{name}/versions/{version}/infer",
    name="version_infer",
    responses=INFER_RESPONSES,
    openapi_extra=infer_request(ONE_VERSION),
)
async def infer(request: Request) -> Response:
    """Pixels or encoded pictures in, tensors or readable answers out; all or none of a request's pictures."""
    service: Service = request.app.state.service
    begun = time.perf_counter()
    deadline_s = deadline_of(request, service.settings.deadline_s)
    _model(request)
    require_plain(request)
    with service.using() as model, model.admission.ticket(deadline_s) as ticket:
        with service.traces.stage("read"):
            body = await read_body(request, service.settings.max_body, service.settings.body_timeout_s, ticket)
        inference = await _beside(len(body), _parse, request, model, body, service.settings.max_images)
        ticket.take_items(len(inference.pictures))
        service.traces.note(model_version=model.version, pictures=len(inference.pictures))
        answered = await unless_gone(request, _all(model, inference, begun, deadline_s))
        service.metrics.images.labels("answered").inc(len(answered))
        size = sum(len(answer.tensors) for answer in answered)
        content, length = await _beside(size, _write, model, inference, answered)
        service.metrics.stage("total", time.perf_counter() - begun)
    headers = named(model)
    if length is not None:
        headers["Inference-Header-Content-Length"] = str(length)
    kind = "application/json" if length is None else "application/octet-stream"
    return Response(content, media_type=kind, headers=headers)


def _require_ready(request: Request) -> None:
    service: Service = request.app.state.service
    if not service.ready:
        raise Problem("stopping", "the service takes no new requests")


def _model(request: Request) -> Deployment:
    """The model, where the path names it and its version rightly; raises Problem."""
    service: Service = request.app.state.service
    model = service.model
    name, version = request.path_params["name"], request.path_params.get("version", model.version)
    if name != model.manifest.name or version != model.version:
        raise Problem(
            "not-found",
            f"model {name[:80]!r} version {version[:40]!r}; here is {model.manifest.name!r} version {model.version!r}",
        )
    return model


async def _beside(size: int, work: Any, *arguments: Any) -> Any:
    """Runs work in a thread where it may take long."""
    return await asyncio.to_thread(work, *arguments) if size > _LARGE else work(*arguments)


def _parse(request: Request, model: Deployment, body: bytes, most: int) -> Inference:
    spec = model.manifest.input
    names = [out["name"] for out in model.ready["outputs"]]
    length = request.headers.get("inference-header-content-length")
    return parse_inference(body, length, spec.name, spec.size, names, most)


async def _all(model: Deployment, inference: Inference, begun: float, deadline_s: float) -> list[TensorAnswer]:
    try:
        async with asyncio.timeout(deadline_s - (time.perf_counter() - begun)), asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(model.infer(picture, f"{ENCODED}[{index}]", inference.encoded))
                for index, picture in enumerate(inference.pictures)
            ]
    except TimeoutError as error:
        raise Problem("deadline", f"not answered within {deadline_s:g} s") from error
    except BaseExceptionGroup as group_error:
        problem = next((one for one in group_error.exceptions if isinstance(one, Problem)), None)
        raise (problem or group_error.exceptions[0]) from None
    return [task.result() for task in tasks]


def _write(model: Deployment, inference: Inference, answered: list[TensorAnswer]) -> tuple[bytes, int | None]:
    known = {out["name"]: out for out in model.ready["outputs"]}
    head = {"model_name": model.manifest.name, "model_version": model.version}
    if inference.request_id:
        head["id"] = inference.request_id
    return write_response(head, [_tensor(output, known, answered) for output in inference.outputs])


def _tensor(output: Output, known: dict[str, Any], answered: list[TensorAnswer]) -> Tensor:
    if output.name == ANSWERS:
        return Tensor(ANSWERS, "BYTES", (len(answered),), [_readable(answer) for answer in answered], output.binary)
    spec = known[output.name]
    data = b"".join(answer.tensors[spec["start"] : spec["end"]] for answer in answered)
    return Tensor(output.name, DATATYPES[spec["dtype"]], (len(answered), *spec["shape"]), data, output.binary)


def _readable(answer: TensorAnswer) -> bytes:
    size = json.dumps({"width": answer.width, "height": answer.height}).encode()
    return b'{"size":' + size + b',"heads":' + answer.heads + b"}"
