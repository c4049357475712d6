"""One model version at work: its shared memory, its decode and engine processes, and the way of a picture through them."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, field
from typing import Any, cast

from pipeline.bundle import Bundle
from serving.admission import Admission
from serving.compute import Done, Engines, Job
from serving.observe import Metrics
from serving.problems import Problem
from serving.scheduler import Scheduler
from serving.settings import Settings
from serving.traces import OFF, Traces
from serving.workers import kinds
from serving.workers.pool import WorkerLostError, WorkerPool
from serving.workers.slab import Lease, Slab

log = logging.getLogger("trifocal.deployment")

DRAWING = 3
"""Times as long as decoding a picture may drawing its answer take: every pixel is decoded, tinted and coded."""


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """What a request wants: heads (None for all), a score threshold (None for each head's own), the masks' form."""

    heads: tuple[str, ...] | None = None
    threshold: float | None = None
    masks: str = "rle"


@dataclass(frozen=True, slots=True)
class ImageAnswer:
    """One picture's answer: `heads` as JSON bytes, the size as sent and upright, its format, and where time went."""

    heads: bytes
    height: int
    width: int
    format: str
    notes: list[str]
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TensorAnswer:
    """One picture's outputs as bytes in order, its readable answer as JSON bytes, and its size upright."""

    tensors: bytes
    heads: bytes
    height: int
    width: int


class Deployment:
    """A bundle that answers.

    Args:
        bundle: the network.
        version: what its answers name it.
        settings: the service's.
        metrics: where stages are counted.
        traces: where they are traced.
    """

    def __init__(
        self, bundle: Bundle, version: str, settings: Settings, metrics: Metrics, traces: Traces = OFF
    ) -> None:
        self.bundle, self.version, self.manifest = bundle, version, bundle.manifest
        self._settings, self._metrics, self._traces = settings, metrics, traces
        height, width = self.manifest.input.size
        self.slot_bytes = height * width * 3
        slots = max(1, min(settings.queue_items, settings.queue_bytes // self.slot_bytes))
        # Work that was given up keeps its slot until its process has done with it, while others are let in already.
        in_work = settings.decode_lanes() + settings.lanes() * settings.batch() * settings.depth()
        self._slab = Slab(self.slot_bytes, slots + in_work)
        self.admission = Admission(
            slots, settings.queue_bytes, settings.max_wait_s, settings.lanes(), metrics.in_the_house
        )
        self.ready: dict[str, Any] = {}
        self._decoders = self._decoder_pool()
        self._engines = Engines(bundle, settings, self._slab.descriptor, metrics, self.admission)
        self._scheduler: Scheduler[Job, Done] | None = None

    @property
    def run_id(self) -> str | None:
        """The MLflow run that trained the network."""
        found = self.manifest.provenance.get("run_id")
        return str(found) if found else None

    async def start(self) -> None:
        """Starts the processes; each engine passes the bundle's self-test first. Raises EngineError or ServeError."""
        try:
            await self._engines.choose()
            # Both are waited for, that none is left half started where the other fails.
            started = await asyncio.gather(self._engines.start(), self._decoders.start(), return_exceptions=True)
            for one in started:
                if isinstance(one, BaseException):
                    raise one  # noqa: TRY301  # the handler below closes what did start
            self.ready = cast("dict[str, Any]", started[0])
        except BaseException:
            await self.close()
            raise
        settings = self._settings
        streams, ahead = settings.lanes(), settings.lanes() * (settings.depth() - 1)
        self._scheduler = Scheduler(self._engines.run, streams, settings.batch(), settings.batch_delay_s, ahead)

    async def close(self) -> None:
        """Ends the processes and returns the memory."""
        if self._scheduler is not None:  # an empty one is false
            self._scheduler.stop()
        await self._engines.close()
        if self._scheduler is not None:
            await self._scheduler.close()
        self._decoders.close()
        self._slab.close()

    async def predict(self, data: bytes, name: str, options: PredictOptions) -> ImageAnswer:
        """One encoded picture to its answer; raises Problem. To be called between `admission.enter` and `leave`."""
        lease = self._slab.lend()
        try:
            found = await self._decode(data, name, lease)
            item = {
                "mode": "answer",
                "frame": found["frame"],
                "heads": options.heads,
                "threshold": options.threshold,
                "masks": options.masks,
            }
            done, queued = await self._compute(Job(lease, item))
        finally:
            lease.drop()
        height, width = found["frame"]["source"]
        seconds = {"decode": found["seconds"], "queue": queued, "engine": done.engine_s, "answer": done.answer_s}
        for stage, value in seconds.items():
            self._metrics.stage(stage, value)
        return ImageAnswer(done.payload, height, width, found["format"], found["notes"], seconds)

    async def infer(self, data: bytes, name: str, encoded: bool) -> TensorAnswer:
        """A picture, or RGB uint8 (height, width, 3) of the network's size, to all outputs and the readable answer.

        Raises:
            Problem: as `predict`.
        """
        lease = self._slab.lend()
        try:
            if encoded:
                frame = (await self._decode(data, name, lease))["frame"]
            else:
                self._slab.put(lease.slot, data)
                size = self.manifest.input.size
                frame = {"source": size, "target": size, "inner": size, "top": 0, "left": 0}
            item = {"mode": "tensors", "frame": frame, "heads": None, "threshold": None, "masks": "rle"}
            done, _ = await self._compute(Job(lease, item))
        finally:
            lease.drop()
        end = self.ready["outputs"][-1]["end"]
        return TensorAnswer(done.payload[:end], done.payload[end:], *frame["source"])

    async def draw(self, data: bytes, name: str, answer: ImageAnswer, image_format: str) -> bytes:
        """The picture with its answer (masks as PNG) drawn over it, encoded; raises Problem."""
        seconds = DRAWING * self._settings.decode_timeout_s
        job = {
            "job": "draw",
            "name": name,
            "heads": json.loads(answer.heads),
            "format": image_format,
            "seconds": seconds,
        }
        _, payload = await self._decode_call(job, data)
        return payload

    async def _decode(self, data: bytes, name: str, lease: Lease) -> dict[str, Any]:
        job = {"job": "decode", "name": name, "slot": lease.slot, "seconds": self._settings.decode_timeout_s}
        head, _ = await self._decode_call(job, data, lease)
        return head

    async def _decode_call(
        self, job: dict[str, Any], data: bytes, lease: Lease | None = None
    ) -> tuple[dict[str, Any], bytes]:
        with self._traces.stage(job["job"], picture=job["name"], bytes=len(data)):
            head, payload = await self._decode_tries(job, data, lease)
            if "error" in head:
                raise Problem(head["error"], head["detail"])
            return head, payload

    async def _decode_tries(
        self, job: dict[str, Any], data: bytes, lease: Lease | None
    ) -> tuple[dict[str, Any], bytes]:
        """A decoder that died may have been killed from outside: one more try, unless it hung."""
        timeout, tries = job["seconds"], 2

        def release(_: object) -> None:
            if lease:
                lease.drop()

        while True:
            if lease:
                lease.hold()
            try:
                return await self._decoders.call(job, data, timeout_s=timeout, release=release)
            except WorkerLostError as error:
                tries -= 1
                if error.hung:
                    raise Problem("decoder-failed", f"{job['name']}: not decoded within {timeout:g} s") from error
                if not tries:
                    raise Problem("decoder-failed", f"{job['name']}: the decoder broke down on it twice") from error

    async def _compute(self, job: Job) -> tuple[Done, float]:
        if self._scheduler is None:
            raise Problem("stopping", "the model is not loaded")
        done, queued = await self._scheduler.submit(job, job.item["mode"])
        queued += done.waited_s
        worked = done.engine_s + done.batch * done.answer_s
        self._traces.past("queue", worked + queued, queued)
        self._traces.past("engine", worked, done.engine_s, batch=done.batch)
        self._traces.past("answer", done.batch * done.answer_s, done.answer_s)
        return done, queued

    def _decoder_pool(self) -> WorkerPool:
        settings = self._settings
        plain = {
            "size": list(self.manifest.input.size),
            "max_pixels": settings.max_pixels,
            "memory": settings.decode_memory,
            "spaces": {name: space.to_dict() for name, space in self.manifest.spaces.items()},
        }
        lost = self._metrics.lost
        return WorkerPool(kinds.decoder, plain, settings.decode_lanes(), self._slab.descriptor, "decoder", lost)
