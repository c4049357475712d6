"""An engine process: letterboxed pixels from shared memory through the network, to answers as JSON or raw tensors."""

from __future__ import annotations

import contextlib
import json
import mmap
import threading
import time
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.bundle import Bundle, read_bundle
from pipeline.errors import BundleError, TrifocalError
from pipeline.imaging.geometry import Letterbox
from serving.answers import Options, answer_of
from serving.engines.base import Engine, Outputs, grey
from serving.engines.choose import Choice, open_engine
from serving.engines.compare import selftest
from serving.engines.mapped import unmap_pages
from serving.engines.registry import engine_module, split_spec
from serving.render import render_answer
from serving.schemas import MASK_FORMS
from serving.workers import stop, wire
from serving.workers.entry import await_work, enter, keep_freed, settle


def run(pipe: Connection, settings: dict[str, Any]) -> None:
    """Loads, tests and warms the engine, then computes until the service closes the pipe.

    Args:
        pipe: to the service.
        settings: `bundle` folder and its `version`, `engine`, `threads`, `buckets` of batch sizes, `shared`: a folder or None.
    """
    own, (descriptor, ends) = enter(pipe, "engine")
    keep_freed()
    with contextlib.suppress(EOFError, ConnectionError):
        try:
            worker = EngineWorker(settings, mmap.mmap(descriptor, 0))
        except TrifocalError as error:
            wire.send(own, {"error": str(error)})
            return
        settle()
        catch_up = stop.listen(ends, worker.give_up)
        wire.send(own, worker.ready)
        while True:
            await_work(own, worker.rest)
            head, _ = wire.receive(own)
            catch_up()
            answer, payload = worker.work(head)
            wire.send(own, answer, *payload)


class EngineWorker:
    """A loaded engine over the slab's memory."""

    def __init__(self, settings: dict[str, Any], memory: mmap.mmap) -> None:
        bundle = read_bundle(Path(settings["bundle"]))
        if bundle.manifest.version != settings["version"]:
            raise BundleError(f"bundle {bundle.path} was replaced while it was served; start the service again")
        choice, self._engine = _open(bundle, settings)
        failures = selftest(bundle, self._engine)
        if failures:
            raise TrifocalError(f"bundle {bundle.path} fails its own self-test here: {'; '.join(failures)}")
        self._number, self._at_work, self._turn = 0, False, threading.Lock()
        self._given_up: set[int] = set()
        self._shared: str | None = settings["shared"]
        self._heads = bundle.manifest.heads
        self._outputs = bundle.manifest.outputs
        height, width = bundle.manifest.input.size
        self._slots = np.frombuffer(memory, np.uint8).reshape(-1, height, width, 3)
        self._buckets: list[int] = settings["buckets"]
        for size in self._buckets:
            self._engine.warm_up(size)
        outputs = self._engine.infer(grey(1, (height, width)))
        for masks in MASK_FORMS:
            self._warm_answer(outputs, (height, width), masks)
        report = self._engine.report()
        self.ready: dict[str, Any] = {
            "spec": report.spec,
            "engine": f"{report.name} {report.version}",
            "device": report.device,
            "threads": report.threads,
            "choice": choice.describe(),
            "outputs": _signature(outputs, self._outputs),
        }

    def work(self, head: wire.Head) -> tuple[wire.Head, list[bytes]]:
        """A batch's answers: how long the network took, and the length of each item's bytes; or the error."""
        begun = time.perf_counter()
        slots: list[int] = head["slots"]
        try:
            if not self._begin(head["number"]):
                return {"error": "nobody waits for it any more"}, []
            outputs = self._engine.infer(self._batch(slots))
        except TrifocalError as error:
            return {"error": str(error)}, []
        finally:
            with self._turn:
                self._at_work = False
        computed = time.perf_counter()
        payload = [self._render(outputs, index, item) for index, item in enumerate(head["items"])]
        ended = time.perf_counter()
        answer = {
            "engine": computed - begun,
            "answer": ended - computed,
            "lengths": [len(part) for part in payload],
        }
        return answer, payload

    def give_up(self, number: int) -> None:
        """Ends the network's run on that job, or has it left out where its turn is still to come; for another thread to call."""
        with self._turn:
            if number > self._number:
                self._given_up.add(number)
            elif number == self._number and self._at_work:
                self._engine.cancel()

    def rest(self) -> None:
        """Gives back what an idle process can do without."""
        settle()
        if self._shared is not None:
            unmap_pages(Path(self._shared))

    def _begin(self, number: int) -> bool:
        """Whether that job, the next one, is still wanted."""
        with self._turn:
            wanted = number not in self._given_up
            self._given_up.discard(number)
            self._number, self._at_work = number, wanted
        return wanted

    def _warm_answer(self, outputs: Outputs, size: tuple[int, int], masks: str) -> None:
        frame = asdict(Letterbox.fit((2 * size[0], 2 * size[1]), size))
        self._render(outputs, 0, {"mode": "answer", "frame": frame, "heads": None, "threshold": None, "masks": masks})

    def _batch(self, slots: list[int]) -> NDArray[np.uint8]:
        """The slots' pixels, filled up to the next bucket: every new shape would cost the engine memory for good."""
        if len(slots) == 1:
            return self._slots[slots[0] : slots[0] + 1]
        size = next((bucket for bucket in self._buckets if bucket >= len(slots)), len(slots))
        return self._slots[slots + slots[-1:] * (size - len(slots))]

    def _render(self, outputs: Outputs, index: int, item: dict[str, Any]) -> bytes:
        tensors = b""
        if item["mode"] == "tensors":
            tensors = b"".join(np.ascontiguousarray(outputs[name][index]).tobytes() for name in self._outputs)
        frame = frame_from(item["frame"])
        heads = item["heads"]
        options = Options(item["threshold"], None if heads is None else tuple(heads), item["masks"] != "none")
        answer = answer_of(outputs, index, frame, self._heads, options)
        text = json.dumps(render_answer(answer, self._heads, item["masks"]), separators=(",", ":"))
        return tensors + text.encode()


def _open(bundle: Bundle, settings: dict[str, Any]) -> tuple[Choice, Engine]:
    """The engine that is named, its weights shared with the other streams where it can; raises TrifocalError."""
    spec, shared = settings["engine"], settings["shared"]
    if spec != "auto" and shared is not None:
        name, variant = split_spec(spec)
        load_shared = getattr(engine_module(name), "load_shared", None)
        engine: Engine | None = load_shared and load_shared(bundle, variant, settings["threads"], Path(shared))
        if engine is not None:
            return Choice(engine.report().spec), engine
    return open_engine(bundle, spec, settings["threads"], 1)


def frame_from(plain: dict[str, Any]) -> Letterbox:
    """A letterbox that came over the wire."""
    source, target, inner = (tuple(plain[key]) for key in ("source", "target", "inner"))
    return Letterbox(source, target, inner, plain["top"], plain["left"])


def _signature(found: Outputs, names: list[str]) -> list[dict[str, Any]]:
    """Each output's name, type and shape without the batch, and where its bytes lie among all outputs' of a picture."""
    signature, at = [], 0
    for name in names:
        value = found[name]
        place = {"start": at, "end": at + value[0].nbytes}
        signature.append({"name": name, "dtype": str(value.dtype), "shape": list(value.shape[1:]), **place})
        at += value[0].nbytes
    return signature
