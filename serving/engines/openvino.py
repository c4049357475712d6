"""OpenVINO: reads the same ONNX file; fp32, bf16 where the processor computes in it, int8 by NNCF's file."""

from __future__ import annotations

import contextlib
import importlib.util
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.bundle import Bundle
from pipeline.errors import BundleError, EngineError
from serving.engines.base import EngineReport, Outputs, first_line, grey, require_fit
from serving.engines.files import require_self_contained
from serving.engines.openvino_layout import lay_out
from serving.engines.own_thread import in_own_thread

NAME = "openvino"
VARIANTS = ("fp32", "bf16", "int8")
INSTALL = "pip install 'trifocal[openvino]'"


def available(variant: str) -> str | None:
    """None where the variant can run here, else why not and what to do."""
    if importlib.util.find_spec("openvino") is None:
        return f"openvino is not installed: {INSTALL}"
    if variant == "bf16" and not _computes_in_bf16():
        return "this processor does not compute in bf16 (it needs AMX or AVX512-BF16); take openvino:fp32"
    return None


def file_of(bundle: Bundle, variant: str) -> str | None:
    """The bundle's file that a variant runs: NNCF's where there is one, else the ONNX file of that precision."""
    if variant == "int8":
        return bundle.find("openvino", "int8") or bundle.find("onnx", "int8")
    return bundle.find("onnx", "fp32")


@dataclass(frozen=True, slots=True)
class _Ready:
    """A compiled model, its idle infer requests, one for each stream, and whether they may be ended before their time."""

    compiled: Any
    idle: SimpleQueue[Any]
    ends: bool


class OpenVinoEngine:
    """Compiled models, one for each batch that was warmed up, and pools of their infer requests: calls may run side by side.

    A model of one fixed batch takes 0.8 to 1.2 ms less a call than one that leaves it open: nothing is laid out anew, and
    transpositions melt into what follows. Other batches are computed in parts of those that are there, 1 at the least.

    Args:
        bundle: where the file is.
        variant: one of `VARIANTS`.
        threads: threads of one call.
        streams: calls that run side by side.
    """

    def __init__(self, bundle: Bundle, variant: str, threads: int, streams: int) -> None:
        import openvino

        name = file_of(bundle, variant)
        if name is None:
            raise EngineError(f"bundle {bundle.path} has no file for {NAME}:{variant}; export it with --int8")
        # Several processes would all pin their threads to the same cores.
        self._settings: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads * streams,
            "NUM_STREAMS": streams,
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": "f32" if variant == "fp32" or not _computes_in_bf16() else "bf16",
        }
        self._bundle, self._file, self._streams = bundle, name, streams
        self._input, self._names = bundle.manifest.input, bundle.outputs
        # int8 answers wrongly wherever height and width are open, also at the trained size.
        self._open = bundle.manifest.input.dynamic_size and variant != "int8"
        self._core = openvino.Core()
        self._model: Any = self._checked()  # until the first batch is known
        self._models: dict[int, _Ready] = {}
        self._turn = threading.Lock()
        self._busy: list[Any] = []
        self._cancelled = 0
        self._report = EngineReport(NAME, variant, openvino.__version__.split("-")[0], "cpu", threads, name)

    def _checked(self) -> Any:
        """The file's model of any batch; raises EngineError or BundleError."""
        with self._told():
            model = self._read(self._core, self._bundle, self._file)
            takes, answers = ([n for p in ports for n in p.get_names()] for ports in (model.inputs, model.outputs))
            require_fit(self._bundle, self._file, takes, answers)
            return _in_part(model, self._names) if len(self._names) < len(self._bundle.manifest.outputs) else model

    def _ready(self, batch: int) -> _Ready:
        """The model of that batch, or of any where sizes are open; compiled where it is not yet."""
        with self._turn:
            if batch not in self._models:
                model, self._model = self._model or self._checked(), None
                with self._told():
                    if not self._open:
                        model.reshape([batch, *self._input.size, 3])
                        lay_out(model)
                    compiled = in_own_thread(lambda: self._core.compile_model(model, "CPU", self._settings))
                idle: SimpleQueue[Any] = SimpleQueue()
                for _ in range(self._streams):
                    idle.put(compiled.create_infer_request())
                self._models = self._models | {batch: _Ready(compiled, idle, ends=not model.is_dynamic())}
        return self._models[batch]

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            path = self._bundle.path / self._file
            raise EngineError(f"{path}: OpenVINO cannot load it: {first_line(error)}") from error

    @staticmethod
    def _read(core: Any, bundle: Bundle, name: str) -> Any:
        data = bundle.content(name)
        if name.endswith(".onnx"):
            require_self_contained(data, bundle.path / name)
            return core.read_model(data)
        weights = name.removesuffix(".xml") + ".bin"
        if weights not in bundle.manifest.files:
            raise BundleError(f"bundle {bundle.path}: {name} has no {weights} beside it; export the bundle again")
        return core.read_model(data, bundle.content(weights))

    def infer(self, batch: NDArray[np.uint8]) -> Outputs:
        """RGB uint8 (B, H, W, 3) to the answers by name; raises EngineError."""
        begun = self._cancelled
        if self._open:
            return self._run(1, batch, begun)
        found, at = [], 0
        while at < len(batch):
            size = max((size for size in self._models if size <= len(batch) - at), default=1)
            found.append(self._run(size, batch[at : at + size], begun))
            at += size
        if len(found) == 1:
            return found[0]
        return {name: np.concatenate([each[name] for each in found]) for name in self._names}

    def _run(self, size: int, batch: NDArray[np.uint8], begun: int) -> Outputs:
        """One request's answers; raises EngineError, also where it was cancelled since `begun`, a count of `cancel`."""
        model = self._ready(size)
        request = model.idle.get()
        try:
            if model.ends:
                with self._turn:
                    self._busy.append(request)
            request.start_async({self._input.name: batch}, share_inputs=True)
            request.wait()
            answers: Outputs = {name: request.get_tensor(name).data.copy() for name in self._names}
        except RuntimeError as error:
            if not model.ends or self._cancelled == begun:
                raise EngineError(f"engine {NAME}: a batch {batch.shape} failed: {first_line(error)}") from error
        finally:
            cancelled = False
            if model.ends:
                with self._turn:
                    self._busy.remove(request)
                    cancelled = self._cancelled != begun
            # What a cancelled request still holds is nobody's answer.
            model.idle.put(model.compiled.create_infer_request() if cancelled else request)
        if cancelled:
            raise EngineError(f"engine {NAME}: a batch {batch.shape} was cancelled")
        return answers

    def warm_up(self, batch: int = 1) -> None:
        """Runs once on grey pixels; batches of that size are computed at once from then on."""
        if not self._open:
            self._ready(batch)
        self.infer(grey(batch, self._input.size))

    def cancel(self) -> None:
        """Ends the calls under way, within a millisecond, with an EngineError.

        Those of a model with a shape that is open anywhere, as behind non-maximum suppression, run to their end: cancelled,
        OpenVINO fails the next call or gives it an older answer.
        """
        with self._turn:
            self._cancelled += 1
            for request in self._busy:
                request.cancel()

    def report(self) -> EngineReport:
        """What runs here."""
        return self._report


def _in_part(model: Any, outputs: list[str]) -> Any:
    """The model without what leads to its other outputs alone."""
    import openvino

    wanted = [port.node for port in model.outputs if not port.get_names().isdisjoint(outputs)]
    return openvino.Model(wanted, model.get_parameters(), model.get_friendly_name())


def _computes_in_bf16() -> bool:
    """Whether the processor has bf16 instructions; asked of the system first, which is quicker than the library."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        import openvino

        return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "avx512_bf16" in flags or "amx_bf16" in flags


def load(bundle: Bundle, variant: str, threads: int, streams: int) -> OpenVinoEngine:
    """The engine over a bundle; raises EngineError or BundleError."""
    return OpenVinoEngine(bundle, variant, threads, streams)
