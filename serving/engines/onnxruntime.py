"""ONNX Runtime: always installed; fp32 and int8 on CPUs, CUDA and TensorRT where their providers are."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.bundle import Bundle
from pipeline.errors import EngineError
from serving.engines.base import EngineReport, Outputs, first_line, grey, require_fit
from serving.engines.files import require_self_contained
from serving.engines.mapped import mapped_session

# Its official builds report their use to their maker, from a thread of their own, unless told not to before they load.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

NAME = "onnxruntime"
VARIANTS = ("fp32", "int8", "cuda", "tensorrt")
INSTALL = "pip install onnxruntime"

_PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_SETTINGS = {"cuda": {"use_tf32": "0"}}
"""Of the providers. TF32 keeps 10 bits of a number: more than the tolerance of float32 lets it lose."""


def available(variant: str) -> str | None:
    """None where the variant can run here, else why not and what to do."""
    if importlib.util.find_spec("onnxruntime") is None:
        return f"onnxruntime is not installed: {INSTALL}"
    provider = _PROVIDERS.get(variant)
    if provider is None:
        return None
    import onnxruntime as ort

    if provider not in ort.get_available_providers() or not Path("/dev/nvidiactl").exists():
        return f"ONNX Runtime has no {provider} here: it needs an NVIDIA GPU and pip install onnxruntime-gpu"
    return None


def file_of(bundle: Bundle, variant: str) -> str | None:
    """The bundle's file that a variant runs."""
    return bundle.find("onnx", "int8" if variant == "int8" else "fp32")


class OnnxRuntimeEngine:
    """A session over `model.onnx` or `model.int8.onnx`.

    Args:
        bundle: where the file is.
        variant: one of `VARIANTS`.
        threads: threads of one call; 1 lets several calls run side by side without hindering each other.
        shared: folder where processes of one service share the weights; None holds them here.
    """

    def __init__(self, bundle: Bundle, variant: str, threads: int, shared: Path | None = None) -> None:
        import onnxruntime as ort

        name = file_of(bundle, variant)
        if name is None:
            raise EngineError(f"bundle {bundle.path} has no {variant} ONNX file; export it with --int8")
        data = bundle.content(name)
        require_self_contained(data, bundle.path / name)
        if len(bundle.outputs) < len(bundle.manifest.outputs):
            data = _in_part(data, bundle)
        providers: list[Any] = [(_PROVIDERS[variant], _SETTINGS.get(variant, {}))] if variant in _PROVIDERS else []
        try:
            if shared is None:
                both = [*providers, "CPUExecutionProvider"]
                self._session = ort.InferenceSession(data, _options(threads), providers=both)
            else:
                self._session = mapped_session(data, shared, lambda: _options(threads))
        except Exception as error:  # its exceptions share no other base
            raise EngineError(f"{bundle.path / name}: ONNX Runtime cannot load it: {first_line(error)}") from error
        if providers and self._session.get_providers()[0] != _PROVIDERS[variant]:
            raise EngineError(f"engine {NAME}:{variant}: no usable GPU on this machine; take --engine {NAME}")
        self._input = bundle.manifest.input
        self._run_options, self._runs = ort.RunOptions, list[Any]()
        takes, answers = (
            [each.name for each in ends] for ends in (self._session.get_inputs(), self._session.get_outputs())
        )
        require_fit(bundle, name, takes, answers)
        self._names = bundle.outputs
        device = "gpu" if providers else "cpu"
        self._report = EngineReport(NAME, variant, ort.__version__, device, threads, name)

    def infer(self, batch: NDArray[np.uint8]) -> Outputs:
        """RGB uint8 (B, H, W, 3) to the answers by name; raises EngineError."""
        options = self._run_options()
        self._runs.append(options)
        try:
            values: list[Any] = self._session.run(self._names, {self._input.name: batch}, options)
        except Exception as error:  # its exceptions share no other base
            raise EngineError(f"engine {NAME}: a batch {batch.shape} failed: {first_line(error)}") from error
        finally:
            self._runs.remove(options)
        return dict(zip(self._names, values, strict=True))

    def warm_up(self, batch: int = 1) -> None:
        """Runs once on grey pixels."""
        self.infer(grey(batch, self._input.size))

    def cancel(self) -> None:
        """Ends the calls of `infer` under way after the operator they are at; they raise EngineError."""
        for options in list(self._runs):
            options.terminate = True

    def report(self) -> EngineReport:
        """What runs here."""
        return self._report


def _options(threads: int) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised, and told by us
    # Idle threads must sleep: a service that waits for requests would burn its cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0" if threads > 1 else "1")
    return options


def _in_part(data: bytes, bundle: Bundle) -> bytes:
    """The network without what leads to unwanted outputs alone; whole where `onnx` is missing or cannot take it apart.

    The session's own option for it, only_execute_path_to_fetches, saved nothing in ONNX Runtime 1.31.
    """
    try:
        import onnx
        from onnx.utils import Extractor

        model, inner = onnx.load_from_string(data), {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}
        if any(each.type in inner for node in model.graph.node for each in node.attribute):
            return data  # what inner graphs use of the outer one is not followed there
        return bytes(Extractor(model).extract_model([bundle.manifest.input.name], bundle.outputs).SerializeToString())
    except Exception:  # noqa: BLE001  # what is wrong with the file is told when the session opens it
        return data


def load_shared(bundle: Bundle, variant: str, threads: int, folder: Path) -> OnnxRuntimeEngine | None:
    """The engine with weights that lie once in `folder` for all who load it so; None where that cannot be done."""
    if variant in _PROVIDERS or available(variant) is not None:
        return None
    try:
        return OnnxRuntimeEngine(bundle, variant, threads, folder)
    except (EngineError, OSError):  # no room on the disk, or a network that cannot be written anew: each holds its own
        return None


def load(bundle: Bundle, variant: str, threads: int, streams: int) -> OnnxRuntimeEngine:  # noqa: ARG001
    """The engine over a bundle; raises EngineError or BundleError."""
    return OnnxRuntimeEngine(bundle, variant, threads)
