"""What every network must pass: it trains on the built-in data, and its ONNX graph answers as it does."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from pipeline.backbones.build import build_backbone
from pipeline.bundle import InputSpec, Manifest, read_bundle
from pipeline.data.module import VisionData
from pipeline.export.folder import describe_file, write_manifest
from pipeline.export.graph import AnswerGraph
from pipeline.export.onnx import export_onnx
from pipeline.export.parity import raw_differences
from pipeline.labels import LabelSpace
from serving.engines.compare import TOLERANCES, raw_failures
from serving.engines.registry import load_engine
from tasks.multitask import MultiTaskModule
from tasks.network import build_network


@lru_cache
def built_in(side=64, **options):
    """The built-in shapes, enough for a batch."""
    return VisionData(size=side, batch_size=4, augment="none", shapes={"images": 10, "size": max(side, 32)}, **options)


@lru_cache
def first_batch(data):
    return next(iter(data.train_dataloader()))


def passes(folder, backbone, heads, data=None, steps=4, lr=1e-3, **options):
    """Trains a few steps on one batch, in which the loss must fall; exports, and compares the answers at 1, 2 and 5."""
    data = data or built_in()
    torch.manual_seed(0)
    module = MultiTaskModule(spaces=data.label_spaces, size=data.size, backbone=backbone, heads=heads, **options)
    network, batch = module.network.train(), first_batch(data)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        torch.manual_seed(0)  # the same units are dropped in each step
        raw = network(batch.images)
        named = network.named_heads().items()
        loss = torch.stack(
            [term for name, head in named for term in head.loss(raw[name], batch.targets[name]).values()]
        )
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        losses.append(float(loss.detach().sum()))
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0], losses
    network.eval().requires_grad_(False)
    exports(folder, network, data.size)
    return network


def exports(folder, network, size, engine="onnxruntime:fp32"):
    """Asserts that the ONNX graph answers as eager PyTorch."""
    graph = AnswerGraph(network).eval()
    images = np.random.default_rng(0).integers(0, 255, (5, *size, 3), np.uint8)
    manifest = Manifest("test", InputSpec(*size, 114), graph.specs(), opset=20)
    export_onnx(graph, folder / "model.onnx", manifest)
    manifest.files["model.onnx"] = describe_file(folder / "model.onnx", "onnx", "fp32")
    write_manifest(folder, manifest)
    found = raw_differences(graph, load_engine(read_bundle(folder), engine), images, graph.specs())
    assert raw_failures(found, TOLERANCES["fp32"], max(size)) == []


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def on_meta(backbone, classes=1000, size=(224, 224), in_channels=3, head=None, **options):
    """A network for image labels without memory for its weights: for counting."""
    spaces = {"label": LabelSpace("classes", tuple(map(str, range(classes))))}
    with torch.device("meta"):
        return build_network(backbone, in_channels, None, {"label": head or {}}, spaces, options, size)


def shapes_of(backbone, size, in_channels=3, **options):
    """(channels, height, width) of the maps there are."""
    body = build_backbone(backbone, in_channels, options=options, size=size).eval()
    with torch.no_grad():
        return [tuple(m.shape[1:]) for m in body(torch.zeros(1, in_channels, *size)) if m.shape[1]]


def multiplications(module, *inputs):
    """Multiplications of the convolutions and linear layers in one pass over the inputs."""
    counted = []

    def count(layer, given, out):
        if isinstance(layer, torch.nn.Conv2d):
            counted.append(out[0].numel() * layer.weight[0].numel())
        else:
            counted.append(out[0].numel() * layer.in_features)

    hooks = [
        layer.register_forward_hook(count)
        for layer in module.modules()
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear))
    ]
    with torch.no_grad():
        module(*inputs)
    for hook in hooks:
        hook.remove()
    return sum(counted)
