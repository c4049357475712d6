"""ONNX: one self-contained file with a dynamic batch, batch norms folded, what it needs to be used inside it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pipeline.bundle import Manifest
from pipeline.errors import ExportError
from pipeline.export.fold import fold_batch_norms
from pipeline.export.graph import AnswerGraph

OPSET = 20
SMALLEST, LARGEST = 4, 128
"""Open sides in multiples of 32 pixels: below 128 pixels the pyramid has fewer points than an answer has boxes."""


def export_onnx(graph: AnswerGraph, path: Path, manifest: Manifest, dynamic_size: bool = False) -> None:
    """Writes the graph.

    Args:
        graph: in evaluation mode.
        path: the file.
        manifest: its input gives the size; heads and preprocessing go into the file's metadata.
        dynamic_size: also leave height and width open.

    Raises:
        ExportError: the network cannot be exported, or not with open sizes.
    """
    size = manifest.input.size
    open_axes: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=4096)}
    if dynamic_size:
        unit = manifest.input.multiple
        rows, columns = (torch.export.Dim(name, min=SMALLEST, max=LARGEST) for name in ("rows", "columns"))
        open_axes |= {1: unit * rows, 2: unit * columns}
        # Two unlike sides, so that the exporter does not take them for one number.
        size = unit * (SMALLEST + 1), unit * (SMALLEST + 3)
    example = torch.zeros(2, *size, 3, dtype=torch.uint8)
    try:
        with _quiet():
            program = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                external_data=False,
                dynamic_shapes={"images": open_axes},
                input_names=[manifest.input.name],
                output_names=graph.names,
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:  # whatever the exporter meets, of any kind
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        hint = "; leave --dynamic-size out" if dynamic_size else ""
        raise ExportError(f"the network cannot be exported to ONNX{hint}: {reason}") from error
    assert program is not None
    program.save(str(path), external_data=False)
    finish_file(path, manifest)


def finish_file(path: Path, manifest: Manifest) -> None:
    """Writes the metadata into an ONNX file and sees that it is whole; raises ExportError."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    fold_batch_norms(model.graph)
    del model.metadata_props[:]
    for key, value in metadata(manifest).items():
        model.metadata_props.add(key=key, value=value)
    # Traces of the exporter: long, and they name the files of this machine.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
        if node.op_type == "Conv":  # named as the network names the layer
            node.name = node.input[1].removesuffix(".folded").removeprefix("network.").removesuffix(".weight")
    del model.graph.metadata_props[:]
    model.producer_name, model.doc_string = "trifocal", ""
    onnx.checker.check_model(model)
    onnx.save(model, str(path), save_as_external_data=False)


def metadata(manifest: Manifest) -> dict[str, str]:
    """What a reader of the ONNX file alone needs, as JSON texts: `trifocal.heads`, `.input`, `.preprocessing`."""
    heads = {name: asdict(head) for name, head in manifest.heads.items()}
    return {
        "trifocal.heads": json.dumps(heads),
        "trifocal.input": json.dumps(asdict(manifest.input)),
        "trifocal.preprocessing": json.dumps(manifest.preprocessing),
        "trifocal.version": manifest.version,
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's progress lines and deprecation notes from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
