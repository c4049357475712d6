"""Export from end to end: read the checkpoint, write the files, prove them, and only then give the folder its name."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bundle import (
    Bundle,
    InputSpec,
    Manifest,
    describe_file,
    finish,
    read_bundle,
    write_manifest,
    writing,
)
from pipeline.data.module import VisionData
from pipeline.errors import ExportError
from pipeline.export.graph import AnswerGraph, Trained, build_graph, load_trained
from pipeline.export.onnx import OPSET, export_onnx
from pipeline.export.parity import eager_outputs, metric_differences, metric_failures, raw_differences, rounded
from pipeline.export.scoring import Scores, eager_scores, sample_images, served_scores
from pipeline.imaging.geometry import FILL
from pipeline.provenance import code_version, environment
from serving.engines.compare import TOLERANCES, precision_of, raw_failures
from serving.engines.registry import load_engine, usable_specs
from serving.predictor import Predictor
from tasks.network import MEAN, STD

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What `lightning export` was asked for.

    Attributes:
        checkpoint: the file.
        out: the bundle's folder.
        name: the model's name.
        int8: also write quantised files.
        allow_worse: by how much the metrics may differ, instead of the strict limits.
        dynamic_size: leave height and width open.
        mask_probabilities: masks with probabilities.
        torchscript: also write TorchScript.
        data: settings of the data that replace the checkpoint's (`root`, `format`).
    """

    checkpoint: Path
    out: Path
    name: str = "trifocal"
    int8: bool = False
    allow_worse: float | None = None
    dynamic_size: bool = False
    mask_probabilities: bool = True
    torchscript: bool = True
    data: dict[str, Any] = field(default_factory=dict)


def export(options: ExportOptions, say: Say) -> Bundle:
    """Writes a bundle that is proven to answer as the checkpoint does.

    Raises:
        CheckpointError, DataError: what goes in cannot be read.
        ExportError: the graph cannot be exported, or its answers differ; nothing stands under the final name then.
    """
    trained = load_trained(options.checkpoint)
    graph = build_graph(trained, options.mask_probabilities)
    data = data_of(trained, options)
    manifest = manifest_of(trained, graph, data, options)
    with writing(options.out) as part:
        say(f"exporting {options.checkpoint} to ONNX")
        export_onnx(graph, part / "model.onnx", manifest, options.dynamic_size)
        files = {"model.onnx": describe_file(part / "model.onnx", "onnx", "fp32")}
        if options.torchscript:
            from pipeline.export.torchscript import export_torchscript

            say("tracing TorchScript")
            export_torchscript(graph, part / "model.ts.pt", manifest.input.size)
            files["model.ts.pt"] = describe_file(part / "model.ts.pt", "torchscript", "fp32")
        images = sample_images(data, manifest.input.size, 5)
        write_selftest(part / "selftest.npz", graph, images[:2])
        files["selftest.npz"] = describe_file(part / "selftest.npz", "selftest")
        manifest = replace(manifest, files=files)
        write_manifest(part, manifest)
        say("measuring the trained network")
        wanted = eager_scores(graph.network, data)
        checks: dict[str, Any] = {"eager": {"metrics": rounded(wanted)}}
        for spec in usable_specs(read_bundle(part)):
            say(f"checking {spec}")
            checks[spec] = check(part, spec, graph, data, wanted, images, options)
        require_passed(checks)
        write_manifest(part, replace(manifest, checks=checks))
        finish(part, options.out)
    return read_bundle(options.out)


def write_selftest(path: Path, graph: AnswerGraph, images: np.ndarray[Any, Any]) -> None:
    """A few images and the network's answers; probabilities of masks are left out for their size."""
    answers = eager_outputs(graph, images)
    masks = {name.removesuffix(".mask") for name in answers if name.endswith(".mask")}
    kept = {k: v for k, v in answers.items() if not (k.endswith(".probabilities") and k.rpartition(".")[0] in masks)}
    np.savez_compressed(path, images=images, **kept)  # type: ignore[arg-type]  # numpy's stub takes them for flags


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


def check(
    folder: Path,
    spec: str,
    graph: AnswerGraph,
    data: VisionData,
    wanted: Scores,
    images: np.ndarray[Any, Any],
    options: ExportOptions,
) -> dict[str, Any]:
    """One engine's raw differences and metrics against the trained network, with limits and what failed."""
    bundle = read_bundle(folder)
    heads = bundle.manifest.heads
    precision = precision_of(spec)
    tolerance = TOLERANCES[precision]
    engine = load_engine(bundle, spec)
    raw = raw_differences(graph, engine, images, heads)
    started = time.monotonic()
    measured = served_scores(Predictor(bundle, engine), data)
    limit = tolerance.metric if options.allow_worse is None else max(options.allow_worse, tolerance.metric)
    off = metric_differences(wanted, measured, heads)
    failures = raw_failures(raw, tolerance, max(bundle.manifest.input.size))
    failures += metric_failures(off, wanted, measured, heads, limit)
    return {
        "passed": not failures,
        "failures": failures,
        "precision": precision,
        "raw": rounded(raw),
        "metrics": rounded(measured),
        "difference": rounded(off),
        "limit": limit,
        "seconds": round(time.monotonic() - started, 2),
    }


def data_of(trained: Trained, options: ExportOptions) -> VisionData:
    """The data the checkpoint was validated on, or the one given; raises ExportError when there is none."""
    if trained.data is None and not options.data.get("root"):
        raise ExportError(f"checkpoint {options.checkpoint} does not say its data; name it by --data.root")
    settings = dict(trained.data or {"size": 320})
    if options.data.get("root"):
        settings |= {"sources": None, "shapes": None}
    data = VisionData.from_settings(settings, **options.data)
    if not data.records("val"):
        raise ExportError("the data has no val images to measure on; set data.split, or name other data by --data.root")
    return data


def manifest_of(trained: Trained, graph: AnswerGraph, data: VisionData, options: ExportOptions) -> Manifest:
    """The manifest before files and checks."""
    preprocessing = {
        "colour": "RGB",
        "layout": "NHWC",
        "resize": "letterbox: keep the aspect ratio, centre, fill with grey",
        "inside_the_graph": {"scale": 1 / 255, "mean": list(MEAN), "std": list(STD)},
    }
    digest = data.digest()
    provenance = {
        "run_id": trained.run_id,
        "checkpoint": options.checkpoint.name,
        "checkpoint_sha256": hashlib.sha256(options.checkpoint.read_bytes()).hexdigest(),
        "epoch": trained.epoch,
        "exported": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "backbone": trained.settings["backbone"],
        "data": {split: {"sha256": f["sha256"], "images": f["images"]} for split, f in digest.items()},
        "code": code_version(),
        "environment": environment(),
    }
    size = InputSpec(data.size[0], data.size[1], FILL, dynamic_size=options.dynamic_size)
    version = f"{provenance['checkpoint_sha256'][:8]}-{int(time.time())}"
    return Manifest(
        options.name, size, graph.specs(), preprocessing=preprocessing, opset=OPSET, provenance=provenance,
        version=version,
    )  # fmt: skip
