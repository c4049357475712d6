"""Export from end to end: read the checkpoint, write the files, prove them, and only then give the folder its name."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bundle import Bundle, InputSpec, Manifest, read_bundle
from pipeline.data.module import VisionData
from pipeline.errors import ConfigError, ExportError
from pipeline.export.folder import describe_file, finish, write_manifest, writing
from pipeline.export.gate import Gate, require_passed
from pipeline.export.graph import AnswerGraph, Trained, build_graph, load_trained
from pipeline.export.onnx import OPSET, export_onnx
from pipeline.export.parity import eager_outputs, rounded
from pipeline.imaging.geometry import FILL
from pipeline.provenance import code_version, environment
from serving.engines.registry import usable_specs
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
        say(f"measuring the trained network on {len(data.records('val'))} images of the validation split")
        gate = Gate.open(graph, data, options.allow_worse)
        write_selftest(part / "selftest.npz", graph, gate.images[:2])
        files["selftest.npz"] = describe_file(part / "selftest.npz", "selftest")
        manifest = replace(manifest, files=files)
        write_manifest(part, manifest)
        if options.dynamic_size:
            gate.require_other_sizes(part)
        checks: dict[str, Any] = {
            "eager": {"metrics": rounded(gate.wanted), "milliseconds": eager_speed(graph, gate.images)}
        }
        for spec in usable_specs(read_bundle(part)):
            say(f"checking {spec}")
            checks[spec] = gate.check(part, spec)
        require_passed(checks)
        if options.int8:
            manifest = add_int8(part, manifest, gate, checks, say)
            require_passed(checks)
        write_manifest(part, replace(manifest, checks=checks))
        finish(part, options.out)
    return read_bundle(options.out)


def add_int8(part: Path, manifest: Manifest, gate: Gate, checks: dict[str, Any], say: Say) -> Manifest:
    """Adds the quantised files, with as few layers in float as the gate lets pass; fills `checks`."""
    from pipeline.export import quantize

    images = quantize.calibration_images(gate.data, manifest.input.size)
    for engine, make, names in (
        ("onnxruntime", quantize.quantize_onnx, {"model.int8.onnx": "onnx"}),
        ("openvino", quantize.quantize_openvino, {"model.int8.xml": "openvino", "model.int8.bin": "openvino-weights"}),
    ):
        if engine == "openvino" and not (find_spec("nncf") and find_spec("openvino")):
            say("int8 for OpenVINO is left out: pip install 'trifocal[openvino]'")
            continue
        spec = f"{engine}:int8"
        for kept, keep in quantize.ladder(part / "model.onnx"):
            say(f"quantising for {engine}, in float: {', '.join(kept) or 'nothing'}")
            make(part / "model.onnx", part / next(iter(names)), images, keep)
            written = {name: describe_file(part / name, kind, "int8") for name, kind in names.items()}
            manifest = replace(manifest, files={**manifest.files, **written})
            write_manifest(part, manifest)
            checks[spec] = {**gate.check(part, spec), "float": kept, "calibration_images": len(images)}
            if checks[spec]["passed"]:
                break
    return manifest


def eager_speed(graph: AnswerGraph, images: np.ndarray[Any, Any], seconds: float = 0.5) -> float:
    """Milliseconds per image of the network in PyTorch, float32, one image at a time: the best of some calls."""
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - started < seconds:
        begun = time.perf_counter()
        eager_outputs(graph, images[:1])
        times.append(time.perf_counter() - begun)
    return round(min(times) * 1000, 3)


def write_selftest(path: Path, graph: AnswerGraph, images: np.ndarray[Any, Any]) -> None:
    """A few images and the network's answers; probabilities of masks are left out for their size."""
    answers = eager_outputs(graph, images)
    masks = {name.removesuffix(".mask") for name in answers if name.endswith(".mask")}
    kept = {k: v for k, v in answers.items() if not (k.endswith(".probabilities") and k.rpartition(".")[0] in masks)}
    np.savez_compressed(path, images=images, **kept)  # type: ignore[arg-type]  # numpy's stub takes them for flags


def data_of(trained: Trained, options: ExportOptions) -> VisionData:
    """The data the checkpoint was validated on, or the one given.

    Raises:
        ExportError: there is none.
        ConfigError: a format without a folder.
    """
    if trained.data is None and not options.data.get("root"):
        raise ExportError(f"checkpoint {options.checkpoint} does not say its data; name it by --data.root")
    # What only training needs may be missing in other data, or from this machine.
    settings = {**(trained.data or {"size": 320}), "augment": "none", "balance": None}
    if options.data.get("format") and not (options.data.get("root") or settings.get("root")):
        raise ConfigError("--data.format is that of a folder; name it by --data.root")
    if options.data.get("root"):
        settings |= {"sources": None, "shapes": None, "signals": None}
    data = VisionData.from_settings(settings, **options.data)
    if not data.records("val"):
        raise ExportError("the data has no val images to measure on; set data.split, or name other data by --data.root")
    data.align({name: head.space for name, head in trained.network.named_heads().items()})
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
