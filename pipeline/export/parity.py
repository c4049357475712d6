"""The proof: raw outputs against eager PyTorch, and the task metrics through the serving path; what fails is told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.bundle import HeadSpec
from pipeline.export.graph import AnswerGraph
from pipeline.export.scoring import MAIN, Scores
from serving.engines.base import Engine, Outputs

BATCHES = (1, 2, 5)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an engine may be from eager PyTorch.

    Attributes:
        probability: of probabilities and scores, absolute.
        box: of box sides, as a share of the input's longer side.
        pixels: share of mask pixels of another class.
        metric: of each head's main metric, absolute.
    """

    probability: float
    box: float
    pixels: float
    metric: float


TOLERANCES = {
    "fp32": Tolerance(1e-3, 1e-3, 1e-3, 0.001),
    "bf16": Tolerance(0.1, 0.05, 0.05, 0.003),
    "int8": Tolerance(math.inf, math.inf, math.inf, 0.005),
}
"""By precision. int8 moves single values far; what counts there is the metric."""


def eager_outputs(graph: AnswerGraph, images: NDArray[np.uint8]) -> Outputs:
    """The graph's answers in PyTorch on uint8 (B, H, W, 3)."""
    with torch.inference_mode():
        answers = graph(torch.from_numpy(images))
    return {name: value.numpy() for name, value in zip(graph.names, answers, strict=True)}


def raw_differences(
    graph: AnswerGraph, engine: Engine, images: NDArray[np.uint8], heads: dict[str, HeadSpec]
) -> dict[str, float]:
    """The largest difference per output over batches of 1, 2 and 5 of at least five real images."""
    worst: dict[str, float] = {}
    for size in BATCHES:
        batch = np.ascontiguousarray(images[:size])
        found = differences(eager_outputs(graph, batch), engine.infer(batch), heads)
        worst = {name: max(worst.get(name, 0.0), value) for name, value in found.items()}
    return worst


def differences(wanted: Outputs, found: Outputs, heads: dict[str, HeadSpec]) -> dict[str, float]:
    """The largest difference per output.

    Probabilities and scores: absolute. Boxes: pixels, of the boxes that both sides rank alike. Masks: the share of
    pixels of another class.
    """
    out: dict[str, float] = {}
    for name, head in heads.items():
        for output in head.outputs:
            a, b = wanted[output], found[output]
            if a.shape != b.shape:
                out[output] = math.inf
            elif output.endswith(".mask"):
                out[output] = float((a != b).mean())
            elif output.endswith((".probabilities", ".scores")):
                out[output] = float(np.abs(a.astype(np.float64) - b).max(initial=0))
        if head.kind == "boxes":
            out[f"{name}.boxes"] = _box_difference(wanted, found, name)
    return out


def _box_difference(wanted: Outputs, found: Outputs, name: str) -> float:
    """Largest distance in pixels from a wanted box to the nearest found one of its class and about its score.

    Rows near the last rank are left out: of two almost equal scores either may be the one that is cut off.
    """
    worst = 0.0
    boxes, scores, classes = (wanted[f"{name}.{c}"] for c in ("boxes", "scores", "classes"))
    others, theirs, kinds = (found[f"{name}.{c}"] for c in ("boxes", "scores", "classes"))
    slack = 2 * float(np.abs(scores - theirs).max(initial=0)) + 1e-6
    for image in range(len(boxes)):
        sure = scores[image] > scores[image][-1] + slack
        for row in np.nonzero(sure)[0]:
            same = (kinds[image] == classes[image][row]) & (np.abs(theirs[image] - scores[image][row]) <= slack)
            if not same.any():
                return math.inf
            worst = max(worst, float(np.abs(others[image][same] - boxes[image][row]).max(1).min()))
    return worst


def raw_failures(found: dict[str, float], tolerance: Tolerance, side: int) -> list[str]:
    """A line for each output that differs by more than its tolerance; `side` is the input's longer side in pixels."""
    lines = []
    for name, value in found.items():
        column = name.rpartition(".")[2]
        limit = {"mask": tolerance.pixels, "boxes": tolerance.box * side}.get(column, tolerance.probability)
        if not value <= limit:
            lines.append(f"{name} differs by {value:.2g} (at most {limit:.2g})")
    return lines


def metric_differences(wanted: Scores, found: Scores, heads: dict[str, HeadSpec]) -> dict[str, float]:
    """How far each head's main metric is from the trained network's, absolute; 0 where nothing is labelled."""
    out = {}
    for name, head in heads.items():
        a, b = (scores[name].get(MAIN[head.kind], math.nan) for scores in (wanted, found))
        out[name] = 0.0 if math.isnan(a) and math.isnan(b) else abs(a - b)
    return out


def metric_failures(
    found: dict[str, float], wanted: Scores, measured: Scores, heads: dict[str, HeadSpec], limit: float
) -> list[str]:
    """A line for each head whose main metric is further off than `limit`."""
    lines = []
    for name, value in found.items():
        metric = MAIN[heads[name].kind]
        if not value <= limit + 1e-9:
            a, b = wanted[name].get(metric, math.nan), measured[name].get(metric, math.nan)
            lines.append(f"{name} {metric} is {b:.4f} instead of {a:.4f} (differs by at most {limit:g})")
    return lines


def rounded(values: Any) -> Any:
    """Figures with six digits, NaN as None, for JSON."""
    if isinstance(values, dict):
        return {key: rounded(value) for key, value in values.items()}
    if isinstance(values, float):
        return round(values, 6) if math.isfinite(values) else None
    return values
