"""What a network costs, layer by layer: parameters, multiply-adds, activation memory, measured time."""

from __future__ import annotations

import math
import time
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.inspect.layers import Layer, Listing, leaves
from pipeline.inspect.look import Look
from pipeline.inspect.page import Section, Table


def measure_times(network: nn.Module, images: Tensor, layers: list[Layer], repeats: int, prefix: str = "") -> float:
    """Fills `milliseconds` of the layers; returns those of the whole pass: medians of `repeats` passes on the CPU.

    What a layer's own time leaves out (additions, concatenations) is in the whole only. `images` is one image (1, C, H, W).
    """
    spent: dict[str, list[float]] = {layer.name: [] for layer in layers}
    whole: list[float] = []
    begun: dict[str, float] = {}
    handles = []
    for path, module in leaves(network).items():
        name = path.removeprefix(prefix)
        if name not in spent:
            continue

        def before(module: nn.Module, given: Any, name: str = name) -> None:  # noqa: ARG001  # the hook's signature
            begun[name] = time.perf_counter()

        def after(module: nn.Module, given: Any, out: Any, name: str = name) -> None:  # noqa: ARG001  # likewise
            spent[name][-1] += time.perf_counter() - begun[name]

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        with torch.inference_mode():
            for _ in range(repeats + 1):
                for times in spent.values():
                    times.append(0.0)
                started = time.perf_counter()
                network(images)
                whole.append(time.perf_counter() - started)
    finally:
        for handle in handles:
            handle.remove()
    for layer in layers:
        layer.milliseconds = 1000 * median(spent[layer.name][1:])  # the first pass sets up
    return 1000 * median(whole[1:])


def costs_figures(listing: Listing, milliseconds: float) -> dict[str, Any]:
    """The listing as plain values, as `--json` gives them."""
    return {
        "size": list(listing.size),
        "parameters": listing.parameters,
        "multiply_adds": listing.multiply_adds,
        "activation_bytes": listing.activation_bytes,
        "milliseconds": milliseconds,
        "layers": [
            {
                "name": layer.name,
                "kind": layer.kind,
                "input": list(layer.input),
                "output": list(layer.output),
                "parameters": layer.parameters,
                "multiply_adds": layer.multiply_adds,
                "activation_bytes": layer.activation_bytes,
                "calls": layer.calls,
                "receptive_field": None if layer.receptive_field is None else list(layer.receptive_field),
                "stride": None if layer.stride is None else list(layer.stride),
                "milliseconds": layer.milliseconds,
            }
            for layer in listing.layers
        ],
    }


def look_at_costs(look: Look) -> Section:
    """The layer table with its sums."""
    listing, subject, milliseconds = look.listing, look.subject, float("nan")
    if look.wish.repeats > 0:
        image = torch.zeros(1, subject.channels, *subject.size)
        milliseconds = measure_times(subject.module, image, listing.layers, look.wish.repeats, subject.prefix)
    lead = (
        f"One image of {listing.size[0]} x {listing.size[1]} pixels: {listing.parameters:,} parameters,"
        f" {listing.multiply_adds:,} multiply-adds (of convolutions and matrix products),"
        f" {listing.activation_bytes / 2**20:.1f} MiB of activations in float32"
        + ("." if math.isnan(milliseconds) else f", {milliseconds:.1f} ms on this CPU.")
        + " The receptive field is what one position of the layer depends on, the stride the pixels between neighbours."
    )
    header = ("layer", "kind", "input", "output", "parameters", "multiply-adds", "KiB", "field", "stride", "ms")
    rows = [
        (
            layer.name,
            layer.kind,
            _sides(layer.input),
            _sides(layer.output),
            layer.parameters,
            layer.multiply_adds,
            round(layer.activation_bytes / 1024, 1),
            _field(layer),
            "" if layer.stride is None else _sides(layer.stride),
            layer.milliseconds,
        )
        for layer in listing.layers
    ]
    return Section("Costs", lead, tables=[Table(header, rows)], figures=costs_figures(listing, milliseconds))


def _field(layer: Layer) -> str:
    if layer.receptive_field is not None:
        return _sides(layer.receptive_field)
    return "whole image" if len(layer.output) == 3 or layer.stride else ""


def _sides(values: tuple[float, ...]) -> str:
    return " x ".join(f"{value:g}" for value in values)
