"""POST /predict: pictures in, answers out."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response

from pipeline.errors import nearest
from serving.body import Form, FormReader, Upload, require_plain, take_body
from serving.deployment import Deployment, ImageAnswer, PredictOptions
from serving.headers import whole_number
from serving.problems import Problem
from serving.routes.early import EarlyPictures
from serving.routes.plain import PlainRoute
from serving.schemas import MASK_FORMS, PREDICT_REQUEST, PREDICT_RESPONSES
from serving.service import Service

router = APIRouter(route_class=PlainRoute)
Result = TypeVar("Result")

PICTURES = {"image/png": ".png", "image/jpeg": ".jpg"}
"""Forms of an annotated picture, by media type."""

_JSON = "application/json"
_FITTING = {
    "": (_JSON,),
    "*/*": (_JSON, "image/jpeg", "image/png"),
    "application/*": (_JSON,),
    _JSON: (_JSON,),
    "image/*": ("image/jpeg", "image/png"),
}
"""What an Accept header's words stand for, the usual form first."""

_OPTIONS = ("heads", "masks", "threshold")


@router.post("/predict", responses=PREDICT_RESPONSES, openapi_extra=PREDICT_REQUEST)
async def predict(request: Request) -> Response:
    """Every head's answer to each picture, in pixels of the picture as it was sent, upright."""
    service: Service = request.app.state.service
    begun = time.perf_counter()
    deadline_s = deadline_of(request, service.settings.deadline_s)
    with service.using() as model, model.admission.ticket(deadline_s) as ticket:
        settings = service.settings
        require_plain(request)
        reader = FormReader(request.headers.get("content-type", ""), settings.max_images)
        early = EarlyPictures(ticket, partial(_one, service, model), partial(_early_options, request, model))

        def take(part: bytes, more: bool) -> None:
            reader.feed(part)
            if more:
                early.came(reader.so_far)

        try:
            with service.traces.stage("read"):
                await take_body(request, settings.max_body, settings.body_timeout_s, ticket, take)
                form = reader.end()
            service.metrics.stage("read", time.perf_counter() - begun)
            if not form.uploads:
                raise Problem("bad-request", "there is no picture in the request; send a file, or one as the body")
            options, picture = _options(request, form, model)
            service.traces.note(model_version=model.version, pictures=len(form.uploads))
            work = _all(model, form.uploads, early.all(form.uploads, options), picture, begun, deadline_s)
            answered = await unless_gone(request, work)
        finally:
            early.cancel()
        for found in answered:
            service.metrics.images.labels(found.kind if isinstance(found, Problem) else "answered").inc()
        response = _respond(request, model, form.uploads, answered, begun)
        service.metrics.stage("total", time.perf_counter() - begun)
        return response


def deadline_of(request: Request, default_s: float) -> float:
    """Seconds until the answer is worthless, from `X-Deadline-Ms`; raises Problem."""
    told = request.headers.get("x-deadline-ms")
    if told is None:
        return default_s
    milliseconds = whole_number(told)
    if milliseconds is None or not 0 < milliseconds <= 600_000:
        raise Problem("unknown-option", f"X-Deadline-Ms is {told[:40]!r}; it takes 1 to 600000 milliseconds")
    return milliseconds / 1000


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The work's result; when the client hangs up first, the work is cancelled and Problem is raised."""
    task, gone = asyncio.current_task(), False
    assert task is not None

    async def watch() -> None:
        nonlocal gone
        await request.receive()  # the body was read: there is nothing else to come than its end
        gone = True
        task.cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        return await work
    except (asyncio.CancelledError, Problem):  # a picture's problem of the same moment may have come out instead
        if gone and task.uncancel() == 0:
            raise Problem("client-gone", "the client hung up before its answer") from None
        raise
    finally:
        watcher.cancel()


def _options(request: Request, form: Form, model: Deployment) -> tuple[PredictOptions, str | None]:
    """The request's options, and the annotated picture's media type where one is wanted; raises Problem."""
    given: dict[str, str] = {}
    for name, value in (*form.fields, *request.query_params.multi_items()):
        if name not in _OPTIONS:
            raise Problem("unknown-option", f"unknown option {name[:40]!r}{nearest(name, _OPTIONS)}")
        if name in given:
            raise Problem("bad-request", f"{name} is given twice; give it once, several heads by comma")
        given[name] = value
    heads = tuple(part.strip() for part in given["heads"].split(",")) if given.get("heads") else None
    for head in heads or ():
        if head not in model.manifest.heads:
            raise Problem("unknown-option", f"the model has no head {head[:40]!r}{nearest(head, model.manifest.heads)}")
    masks = given.get("masks", "rle")
    if masks not in MASK_FORMS:
        raise Problem("unknown-option", f"masks={masks[:40]!r}; it takes {', '.join(MASK_FORMS)}")
    picture = _picture(request)
    if picture and len(form.uploads) != 1:
        raise Problem("not-acceptable", "an annotated picture is the answer to one picture; send them one by one")
    return PredictOptions(heads, _threshold(given.get("threshold")), "png" if picture else masks), picture


def _early_options(request: Request, model: Deployment, so_far: Form) -> PredictOptions | None:
    """The options as far as they have come; None where they are of no use before all has come."""
    options, picture = _options(request, so_far, model)
    return None if picture else options


def _threshold(text: str | None) -> float | None:
    if text is None or not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise Problem("unknown-option", f"threshold={text[:40]!r}; it takes a number from 0 to 1")
    return value


def _liked(accept: str) -> tuple[list[str], set[str]]:
    """An Accept header's media types, the best liked first, and those that are refused by a quality of 0."""
    found, refused = [], set()
    for part in accept.lower().split(","):
        kind, *parameters = (word.strip() for word in part.split(";"))
        told = next((word[2:] for word in parameters if word.startswith("q=")), "1")
        quality = float(told) if re.fullmatch(r"[01](\.\d{0,3})?", told) else 1.0
        if quality > 0:
            found.append((quality, kind))
        else:
            refused.add(kind)
    return [kind for _, kind in sorted(found, key=lambda one: -one[0])], refused


def _picture(request: Request) -> str | None:
    """The media type that a request's Accept likes best of those that this route answers with; None for JSON."""
    accept = ", ".join(request.headers.getlist("accept")) or "*/*"
    liked, refused = _liked(accept)
    for kind in liked:
        fitting = _FITTING.get(kind, (kind,) if kind in PICTURES else ())
        for form in fitting:
            if form not in refused:
                return form if form in PICTURES else None
    raise Problem("not-acceptable", f"Accept: {accept[:80]}")


async def _all(
    model: Deployment,
    uploads: list[Upload],
    work: Coroutine[Any, Any, list[ImageAnswer | Problem]],
    picture: str | None,
    begun: float,
    deadline_s: float,
) -> list[ImageAnswer | Problem | bytes]:
    try:
        async with asyncio.timeout(deadline_s - (time.perf_counter() - begun)):
            answered = await work
            if picture and isinstance(answered[0], ImageAnswer):
                only = uploads[0]
                return [await model.draw(only.data, only.name, answered[0], PICTURES[picture])]
            return list(answered)
    except TimeoutError as error:
        raise Problem("deadline", f"not answered within {deadline_s:g} s") from error


async def _one(service: Service, model: Deployment, upload: Upload, options: PredictOptions) -> ImageAnswer | Problem:
    """One picture's answer, or what is wrong with it."""
    try:
        _require_size(upload, service.settings.max_image)
        return await model.predict(upload.data, upload.name, options)
    except Problem as problem:
        return problem


def _require_size(upload: Upload, limit: int) -> None:
    if len(upload.data) > limit:
        raise Problem("image-too-large", f"{upload.name}: {len(upload.data)} bytes; at most {limit}")
    if not upload.data:
        raise Problem("broken-image", f"{upload.name}: the file is empty")


def _respond(
    request: Request,
    model: Deployment,
    uploads: list[Upload],
    answered: list[ImageAnswer | Problem | bytes],
    begun: float,
) -> Response:
    """All pictures failed alike: the first one's problem; else one entry for each, the failed ones with theirs."""
    if isinstance(answered[0], bytes):
        return Response(answered[0], media_type=_picture(request), headers=named(model))
    problems = [found for found in answered if isinstance(found, Problem)]
    if len(problems) == len(answered):
        raise problems[0]
    entries = [_entry(upload, found) for upload, found in zip(uploads, answered, strict=True)]
    head = {
        "model": {"name": model.manifest.name, "version": model.version, "run_id": model.run_id},
        "engine": model.ready["spec"],
        "request_id": request.state.request_id,
        "milliseconds": round(1000 * (time.perf_counter() - begun), 2),
    }
    # The heads' JSON was written where it was computed; it is not parsed again here.
    body = json.dumps(head, separators=(",", ":")).encode()[:-1] + b',"images":[' + b",".join(entries) + b"]}"
    return Response(body, media_type="application/json", headers=named(model))


def _entry(upload: Upload, found: ImageAnswer | Problem | bytes) -> bytes:
    if isinstance(found, Problem):
        return json.dumps({"name": upload.name, "error": found.document()}).encode()
    assert isinstance(found, ImageAnswer)
    plain = {
        "name": upload.name,
        "size": {"width": found.width, "height": found.height},
        "format": found.format,
        "notes": found.notes,
        "milliseconds": {stage: round(1000 * value, 2) for stage, value in found.seconds.items()},
    }
    return json.dumps(plain, separators=(",", ":")).encode()[:-1] + b',"heads":' + found.heads + b"}"


def named(model: Deployment) -> dict[str, str]:
    """Headers that name the version which answered."""
    return {"X-Model-Version": model.version}
