"""Networks to export, and the files of their bundles without any check."""

from __future__ import annotations

from dataclasses import replace

import torch

from pipeline.bundle import InputSpec, Manifest, read_bundle
from pipeline.export.folder import describe_file, write_manifest
from pipeline.export.onnx import export_onnx
from pipeline.export.torchscript import export_torchscript
from tasks.multitask import MultiTaskModule

SHAPES = {"images": 40, "size": 96}


def network(data, **options):
    """A module with random but telling weights: batch norms that do something, scores that differ."""
    torch.manual_seed(0)
    module = MultiTaskModule(spaces=data.label_spaces, **options).eval().requires_grad_(False)
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.1, 0.1)
            layer.running_var.uniform_(0.8, 1.2)
            layer.weight.uniform_(0.8, 1.2)
    for head in module.network.named_heads().values():
        if head.kind == "boxes":
            for branch in (head.one, head.many):
                for tower in branch.class_tower:
                    torch.nn.init.normal_(tower[1].weight, std=0.3)
    return module


def write(graph, folder, dynamic_size=False, torchscript=True):
    """The files of a bundle, without any check."""
    folder.mkdir()
    manifest = Manifest("test", InputSpec(64, 64, 114, dynamic_size=dynamic_size), graph.specs(), opset=20)
    export_onnx(graph, folder / "model.onnx", manifest, dynamic_size)
    files = {"model.onnx": describe_file(folder / "model.onnx", "onnx", "fp32")}
    if torchscript:
        export_torchscript(graph, folder / "model.ts.pt", (64, 64))
        files["model.ts.pt"] = describe_file(folder / "model.ts.pt", "torchscript", "fp32")
    write_manifest(folder, replace(manifest, files=files))
    return read_bundle(folder)
