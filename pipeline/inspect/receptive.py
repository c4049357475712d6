"""What a position sees: the receptive field by the layers' arithmetic, by the gradient, and by a NaN as the check.

The gradient's field is that of Luo et al. 2016 (https://arxiv.org/abs/1701.04128): pixels whose gradient is above
4.55 % of the largest. It is smaller than the theory says, and grows with training.
"""

from __future__ import annotations

import copy
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.imaging.draw import sheet, write_text
from pipeline.inspect.colours import enlarged, heat
from pipeline.inspect.fields import Field, channels_first
from pipeline.inspect.layers import captured, field_size, fields_of
from pipeline.inspect.look import Look, NotHereError
from pipeline.inspect.page import Picture, Section, Table

EFFECTIVE = 0.0455
"""Share of the largest gradient from which a pixel counts: what lies within two standard deviations of a Gaussian."""


def look_at_fields(look: Look) -> Section:
    """Theory, gradient and check of each layer."""
    subject = look.subject
    modules = {name: subject.layer(name) for name in look.layers}
    inputs = (subject.channels, *subject.size)
    fields = fields_of(subject.module, modules, *inputs[:1], subject.size)
    mapped = {name: module for name, module in modules.items() if fields.get(name) is not None}
    if not mapped:
        raise NotHereError("needs layers with rows and columns: --layers")
    middle = (subject.size[0] // 2, subject.size[1] // 2)
    reached = nan_reach(subject.module, mapped, inputs, middle)
    rows, tiles, figures = [], [], {}
    for name, module in mapped.items():
        field = fields[name]
        assert field is not None
        theory, stride = field_size(subject.module, module, subject.channels, subject.size)
        gradient = gradient_map(subject.module, module, _inputs(look))
        effective = effective_side(gradient)
        verdict = compare(reached[name], theory_reach(field, middle))
        rows.append((name, _sides(theory), _sides(stride), round(effective, 1), verdict))
        figures[name] = {"theory": theory, "stride": stride, "effective": effective, "nan_check": verdict}
        tiles.append(_tile(f"{name} {_sides(theory)}", gradient, field))
    lead = (
        "The theoretical field is the square of pixels that one position of a layer depends on, by the arithmetic of"
        " kernels and strides along every path. The effective field is what really weighs: the side of the square with as"
        " many pixels as have a gradient above 4.55 % of the largest, for the position in the middle. The check puts a"
        f" NaN into pixel {middle} and compares where it comes out with the theory: `agrees` at every position, `within`"
        " where strides or dilation leave gaps, `differs` where the theory is wrong."
    )
    header = ("layer", "theoretical field", "stride", "effective side", "NaN check")
    picture = Picture(
        "receptive", sheet(tiles, 4), "Gradient of the middle position, square root; the box is the theory"
    )
    return Section("Receptive fields", lead, [picture], [Table(header, rows)], figures)


def gradient_map(network: nn.Module, module: nn.Module, images: Tensor) -> NDArray[np.float32]:
    """Mean absolute gradient (H, W) of a layer's middle position to the pixels, over images (B, C, H, W).

    The channels are summed with fixed random signs, so that they do not cancel in the same way everywhere.
    """
    given = images.detach().clone().requires_grad_()
    with captured({"it": module}) as held, torch.enable_grad():
        network(given)
        maps = channels_first(held["it"], (images.shape[2], images.shape[3]))
        signs = torch.randn(maps.shape[1], generator=torch.Generator().manual_seed(0)).sign()
        spot = maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2]
        (gradient,) = torch.autograd.grad((spot * signs).sum(), given)
    out: NDArray[np.float32] = gradient.abs().mean((0, 1)).float().numpy()
    return out


def effective_side(gradient: NDArray[np.float32]) -> float:
    """Side in pixels of the square with as many pixels as are above the limit; 0 for no gradient at all."""
    top = float(gradient.max())
    return float((gradient > EFFECTIVE * top).sum()) ** 0.5 if top > 0 else 0.0


def nan_reach(
    network: nn.Module, modules: dict[str, nn.Module], inputs: tuple[int, int, int], pixel: tuple[int, int]
) -> dict[str, NDArray[np.bool_]]:
    """Which positions (H', W') of each layer one NaN pixel (row, column) of an image (C, H, W) reaches.

    In double precision, whose convolutions are plain matrix products: the fast ones of single precision compute tiles of
    positions from shared sums, over which a NaN spreads.
    """
    paths = {id(module): path for path, module in network.named_modules()}
    double = copy.deepcopy(network).double().eval()  # a traced network forgets its mode when copied
    same = {name: double.get_submodule(paths[id(module)]) for name, module in modules.items()}
    images = torch.zeros(1, *inputs, dtype=torch.float64)
    images[:, :, pixel[0], pixel[1]] = torch.nan
    with captured(same) as held, torch.no_grad():
        double(images)
    return {name: channels_first(maps, inputs[1:])[0].isnan().any(0).numpy() for name, maps in held.items()}


def theory_reach(field: Field, pixel: tuple[int, int]) -> NDArray[np.bool_]:
    """Which positions (H', W') have the pixel (row, column) in their field."""
    rows = (field.rows.low <= pixel[0]) & (pixel[0] <= field.rows.high)
    columns = (field.columns.low <= pixel[1]) & (pixel[1] <= field.columns.high)
    out: NDArray[np.bool_] = rows[:, None] & columns[None]
    return out


def compare(reached: NDArray[np.bool_], theory: NDArray[np.bool_]) -> str:
    """`agrees`, `within` or `differs`."""
    if reached.shape == theory.shape and bool((reached == theory).all()):
        return "agrees"
    return "within" if reached.shape == theory.shape and not bool((reached & ~theory).any()) else "differs"


def _inputs(look: Look) -> Tensor:
    """Pictures where there are any, else noise of the same spread."""
    try:
        return look.subject.given([pixels for _, pixels in look.images[:8]])
    except NotHereError:
        noise = torch.randn(8, look.subject.channels, *look.subject.size, generator=torch.Generator().manual_seed(0))
        return noise if not look.subject.spaces else 127 + 60 * noise


def _tile(title: str, gradient: NDArray[np.float32], field: Field) -> Any:
    """The gradient's map with the box that the theory gives the middle position."""
    shown = enlarged(heat(np.sqrt(gradient / max(float(gradient.max()), 1e-30))), 224)
    down, across = shown.shape[0] // gradient.shape[0], shown.shape[1] // gradient.shape[1]
    row, column = len(field.rows) // 2, len(field.columns) // 2
    low = (int(field.columns.low[column]) * across, int(field.rows.low[row]) * down)
    high = (int(field.columns.high[column] + 1) * across - 1, int(field.rows.high[row] + 1) * down - 1)
    cv2.rectangle(shown, low, high, (255, 80, 80), 1)
    return write_text(shown, title, (4, 14))


def _sides(sides: tuple[float, ...] | None) -> str:
    return "whole image" if sides is None else " x ".join(f"{side:g}" for side in sides)
