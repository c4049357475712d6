"""What every engine offers, and the words that name one: `onnxruntime`, `onnxruntime:int8`, `openvino:bf16`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.bundle import Bundle
from pipeline.errors import BundleError

Outputs = dict[str, NDArray[Any]]
"""The graph's answers by output name, the batch first."""


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What runs: engine, variant, its package's version, device, threads, and the bundle's file."""

    name: str
    variant: str
    version: str
    device: str
    threads: int
    file: str

    @property
    def spec(self) -> str:
        """`name:variant`, as `--engine` takes it."""
        return f"{self.name}:{self.variant}"


class Engine(Protocol):
    """A loaded network. `infer` may be called from several threads at once."""

    def infer(self, batch: NDArray[np.uint8]) -> Outputs:
        """RGB uint8 (B, H, W, 3) to the answers by name; raises EngineError."""

    def warm_up(self, batch: int = 1) -> None:
        """Runs once on grey pixels, so that the first request does not pay for lazy work."""

    def cancel(self) -> None:
        """Ends the calls of `infer` under way, which raise EngineError; for another thread. May let them go on."""

    def report(self) -> EngineReport:
        """What runs here."""


def require_fit(bundle: Bundle, name: str, takes: Iterable[str], answers: Iterable[str]) -> None:
    """Raises BundleError for a file whose input or answers, by name, are not those of the bundle's manifest."""
    found = {*takes, *answers}
    missing = ", ".join(each for each in (bundle.manifest.input.name, *bundle.outputs) if each not in found)
    if missing:
        raise BundleError(f"{bundle.path / name} knows no {missing}: it is of another bundle; export or copy it again")


def grey(batch: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A batch of grey images of (height, width)."""
    return np.full((batch, *size, 3), 114, np.uint8)


def first_line(error: BaseException) -> str:
    """The first line of an error, at most 300 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
