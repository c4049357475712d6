"""The proof: raw outputs against eager PyTorch, and the task metrics through the serving path; what fails is told."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.bundle import HeadSpec
from pipeline.export.graph import AnswerGraph
from pipeline.export.scoring import MAIN, Scores
from serving.engines.base import Engine, Outputs
from serving.engines.compare import differences

BATCHES = (1, 2, 5)


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
        worst = {name: float(np.maximum(worst.get(name, 0.0), value)) for name, value in found.items()}  # keeps NaN
    return worst


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
    """Figures of six digits, NaN as None, for JSON."""
    if isinstance(values, dict):
        return {key: rounded(value) for key, value in values.items()}
    if isinstance(values, float):
        return float(f"{values:.6g}") if math.isfinite(values) else None
    return values
