"""The gate: one engine's answers measured against the trained network's, and what is refused."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.bundle import read_bundle
from pipeline.data.module import VisionData
from pipeline.errors import EngineError, ExportError
from pipeline.export.graph import AnswerGraph
from pipeline.export.onnx import SMALLEST
from pipeline.export.parity import eager_outputs, metric_differences, metric_failures, raw_differences, rounded
from pipeline.export.scoring import Scores, eager_scores, sample_images, served_scores
from serving.engines.choose import measure
from serving.engines.compare import TOLERANCES, differences, precision_of, raw_failures
from serving.engines.registry import load_engine
from serving.predictor import Predictor


@dataclass(frozen=True, slots=True)
class Gate:
    """What every engine is held against.

    Attributes:
        graph: the trained network in PyTorch.
        data: the images it was validated on.
        wanted: its metrics there.
        images: a few of them as the network sees them.
        allow_worse: the limit on the metrics instead of the strict ones.
    """

    graph: AnswerGraph
    data: VisionData
    wanted: Scores
    images: NDArray[np.uint8]
    allow_worse: float | None

    @classmethod
    def open(cls, graph: AnswerGraph, data: VisionData, allow_worse: float | None) -> Gate:
        """Measures the trained network."""
        return cls(graph, data, eager_scores(graph.network, data), sample_images(data, data.size, 5), allow_worse)

    def check(self, folder: Path, spec: str) -> dict[str, Any]:
        """One engine over the bundle in a folder: raw differences, metrics, speed, limits and what failed."""
        bundle = read_bundle(folder)
        heads, precision = bundle.manifest.heads, precision_of(spec)
        tolerance = TOLERANCES[precision]
        engine = load_engine(bundle, spec)
        raw = raw_differences(self.graph, engine, self.images, heads)
        measured = served_scores(Predictor(bundle, engine), self.data)
        limit = max(self.allow_worse or 0.0, tolerance.metric)
        off = metric_differences(self.wanted, measured, heads)
        failures = raw_failures(raw, tolerance, max(bundle.manifest.input.size))
        failures += metric_failures(off, self.wanted, measured, heads, limit)
        return {
            "passed": not failures,
            "failures": failures,
            "precision": precision,
            "raw": rounded(raw),
            "metrics": rounded(measured),
            "difference": rounded(off),
            "limit": limit,
            "milliseconds": measure(engine, bundle, 0.5),
            "measured": time.strftime("%Y-%m-%d", time.gmtime()),
        }

    def require_other_sizes(self, folder: Path) -> None:
        """Sees that ONNX Runtime answers pictures of another height and width as PyTorch does; raises ExportError."""
        bundle = read_bundle(folder)
        unit = bundle.manifest.input.multiple
        rows, columns = (max(SMALLEST, -(-side // unit)) for side in bundle.manifest.input.size)
        height, width = unit * (rows + 2), unit * (columns + 1)  # not the sizes that the exporter saw
        more = ((0, 0), (0, height - self.images.shape[1]), (0, width - self.images.shape[2]), (0, 0))
        batch = np.pad(self.images[:2], more, mode="wrap")
        try:
            found = load_engine(bundle, "onnxruntime").infer(batch)
            off = differences(eager_outputs(self.graph, batch), found, bundle.manifest.heads)
            failures = raw_failures(off, TOLERANCES["fp32"], max(height, width))
        except EngineError as error:
            failures = [str(error)]
        if failures:
            raise ExportError(
                f"pictures of {height} x {width} pixels get other answers than PyTorch's ({failures[0]});"
                " leave --dynamic-size out"
            )


def require_passed(checks: dict[str, Any]) -> None:
    """Raises ExportError when an engine's answers differ.

    bf16 is how a machine computes, not a file of the bundle: where it fails, only that engine is not chosen.
    """
    failed = {s: c["failures"] for s, c in checks.items() if not c.get("passed", True) and c["precision"] != "bf16"}
    if failed:
        told = "; ".join(f"{spec}: {', '.join(lines)}" for spec, lines in failed.items())
        raise ExportError(
            f"the exported network does not answer as the trained one: {told}."
            f" Nothing was written; --allow-worse loosens the limit on the metrics"
        )
