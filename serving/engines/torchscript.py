"""TorchScript: for machines that have torch anyway, on the CPU or a GPU; the only file of serving that imports torch."""

from __future__ import annotations

import importlib
import importlib.util
import io
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.bundle import Bundle
from pipeline.errors import EngineError
from serving.engines.base import EngineReport, Outputs, first_line, grey
from serving.engines.files import require_torchscript

if TYPE_CHECKING:
    from torch import Tensor

NAME = "torchscript"
VARIANTS = ("fp32", "cuda")
INSTALL = "pip install torch torchvision"


def available(variant: str) -> str | None:
    """None where the variant can run here, else why not and what to do."""
    if importlib.util.find_spec("torch") is None:
        return f"torch is not installed: {INSTALL}"
    if variant == "cuda" and not _gpu():
        return "torch sees no GPU on this machine; take --engine torchscript"
    return None


def _gpu() -> bool:
    """Whether torch can use a GPU; torch, which takes seconds to import, is asked only where there is a driver."""
    if not Path("/dev/nvidiactl").exists() and not Path("/dev/kfd").exists():
        return False
    import torch

    return torch.cuda.is_available()


def file_of(bundle: Bundle, variant: str) -> str | None:  # noqa: ARG001  # every engine's signature
    """The bundle's file that a variant runs."""
    return bundle.find("torchscript", "fp32")


class TorchScriptEngine:
    """A frozen trace.

    Args:
        bundle: where the file is.
        variant: one of `VARIANTS`.
        threads: threads of one call; torch keeps one number for the whole process.
    """

    def __init__(self, bundle: Bundle, variant: str, threads: int) -> None:
        import torch

        name = file_of(bundle, variant)
        if name is None:
            raise EngineError(f"bundle {bundle.path} has no TorchScript file; export it without --no-torchscript")
        data = bundle.content(name)
        require_torchscript(data, bundle.path / name)
        self._device = torch.device("cuda" if variant == "cuda" else "cpu")
        if variant == "fp32":
            torch.set_num_threads(threads)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TorchScript is deprecated in torch
                if importlib.util.find_spec("torchvision") is not None:
                    importlib.import_module("torchvision")  # its operator suppresses boxes, where a network does so
                self._network = torch.jit.load(  # type: ignore[no-untyped-call]  # torch's gap
                    io.BytesIO(data), map_location=self._device
                )
        except RuntimeError as error:
            raise EngineError(f"{bundle.path / name}: torch cannot load it: {first_line(error)}") from error
        self._input = bundle.manifest.input
        self._names, self._wanted = bundle.manifest.outputs, frozenset(bundle.outputs)
        self._report = EngineReport(NAME, variant, torch.__version__, self._device.type, threads, name)

    def infer(self, batch: NDArray[np.uint8]) -> Outputs:
        """RGB uint8 (B, H, W, 3) to the answers by name; raises EngineError."""
        import torch

        try:
            with torch.inference_mode(), self._full_precision():
                answers: tuple[Tensor, ...] = self._network(torch.from_numpy(batch).to(self._device))
                named = zip(self._names, answers, strict=True)
                return {name: value.cpu().numpy() for name, value in named if name in self._wanted}
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"engine {NAME}: a batch {batch.shape} failed: {first_line(error)}") from error

    def _full_precision(self) -> AbstractContextManager[Any]:
        """On a GPU, convolutions without TF32: it keeps 10 bits of a number, and float32's tolerance wants more."""
        import torch

        if self._device.type == "cpu":
            return nullcontext()
        return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)

    def warm_up(self, batch: int = 1) -> None:
        """Runs three times on grey pixels: the first two let torch specialise on the shape."""
        for _ in range(3):
            self.infer(grey(batch, self._input.size))

    def cancel(self) -> None:
        """Does nothing: a traced network runs to its end."""

    def report(self) -> EngineReport:
        """What runs here."""
        return self._report


def load(bundle: Bundle, variant: str, threads: int, streams: int) -> TorchScriptEngine:  # noqa: ARG001
    """The engine over a bundle; raises EngineError or BundleError."""
    return TorchScriptEngine(bundle, variant, threads)
