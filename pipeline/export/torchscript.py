"""TorchScript: the same graph traced, frozen and checked at several batch sizes."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from pipeline.errors import ExportError
from pipeline.export.graph import AnswerGraph


def export_torchscript(graph: AnswerGraph, path: Path, size: tuple[int, int]) -> None:
    """Writes the graph, traced at batch 2 on (height, width); raises ExportError when another batch size differs."""
    example = torch.zeros(2, *size, 3, dtype=torch.uint8)
    with warnings.catch_warnings(), torch.no_grad():
        # TorchScript is deprecated in torch, and tracing tells of every shape that becomes a constant.
        warnings.simplefilter("ignore")
        plain = torch.jit.trace(graph, (example,), check_trace=False)  # type: ignore[no-untyped-call]  # torch's gap
        traced = torch.jit.freeze(plain)
        for batch in (1, 5):
            shapes = [tuple(answer.shape) for answer in traced(example[:1].expand(batch, -1, -1, -1).contiguous())]
            if any(shape[0] != batch for shape in shapes):
                raise ExportError(f"TorchScript keeps the batch size it was traced with: {shapes}")
        torch.jit.save(traced, str(path))
