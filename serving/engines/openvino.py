"""OpenVINO: reads the same ONNX file; fp32, bf16 where the processor computes in it, int8 by NNCF's file."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.bundle import Bundle
from pipeline.errors import BundleError, EngineError
from serving.engines.base import EngineReport, Outputs, first_line, grey, require_fit
from serving.engines.files import require_self_contained
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


class OpenVinoEngine:
    """A compiled model and a pool of its infer requests: each call takes one, so calls may run side by side.

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
        core = openvino.Core()
        # Several processes would all pin their threads to the same cores.
        settings: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads * streams,
            "NUM_STREAMS": streams,
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": "f32" if variant == "fp32" or not _computes_in_bf16() else "bf16",
        }
        try:
            model = self._read(core, bundle, name)
            if variant == "int8" and bundle.manifest.input.dynamic_size:
                # Its int8 answers wrongly wherever height and width are open, also at the trained size.
                model.reshape([-1, *bundle.manifest.input.size, 3])
            takes, answers = ([n for p in ports for n in p.get_names()] for ports in (model.inputs, model.outputs))
            require_fit(bundle, name, takes, answers)
            if len(bundle.outputs) < len(bundle.manifest.outputs):
                model = _in_part(model, bundle.outputs)
            self._compiled = in_own_thread(lambda: core.compile_model(model, "CPU", settings))
        except RuntimeError as error:
            raise EngineError(f"{bundle.path / name}: OpenVINO cannot load it: {first_line(error)}") from error
        self._input = bundle.manifest.input
        self._names = bundle.outputs
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for _ in range(streams):
            self._idle.put(self._compiled.create_infer_request())
        self._report = EngineReport(NAME, variant, openvino.__version__.split("-")[0], "cpu", threads, name)

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
        request = self._idle.get()
        try:
            request.infer({self._input.name: batch}, share_inputs=True)
            return {name: request.get_tensor(name).data.copy() for name in self._names}
        except RuntimeError as error:
            raise EngineError(f"engine {NAME}: a batch {batch.shape} failed: {first_line(error)}") from error
        finally:
            self._idle.put(request)

    def warm_up(self, batch: int = 1) -> None:
        """Runs once on grey pixels."""
        self.infer(grey(batch, self._input.size))

    def cancel(self) -> None:
        """Does nothing: after a cancelled request OpenVINO may give the next call an older answer, so all run to their end."""

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
