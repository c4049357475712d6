"""The first layer's filters: what the network looks for in raw pixels."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from pipeline.imaging.draw import sheet
from pipeline.inspect.colours import enlarged, stretched
from pipeline.inspect.layers import leaves
from pipeline.inspect.look import Look, NotHereError
from pipeline.inspect.page import Picture, Section

Pixels = NDArray[np.uint8]
MOST = 128
"""Filters drawn."""


def look_at_filters(look: Look) -> Section:
    """A sheet of the first convolution's kernels."""
    name, layer = first_convolution(look.subject.module)
    name = name.removeprefix(look.subject.prefix)
    tiles = filter_tiles(layer.weight.detach())
    out, into, height, width = layer.weight.shape
    lead = (
        f"The {out} kernels of {name}, {height} x {width} pixels over {into} channels, each stretched to its own range:"
        " in colour where the image has three channels, else its mean over them. A trained network shows edges, colour"
        " contrasts and blobs; noise means that it has not learnt, or learns too fast."
    )
    norms = layer.weight.detach().flatten(1).norm(dim=1)
    figures = {"layer": name, "shape": [out, into, height, width], "norms": [round(float(n), 5) for n in norms]}
    picture = Picture("filters", sheet(tiles, 16), f"Filters of {name}" + (f", the first {MOST}" if out > MOST else ""))
    return Section("First filters", lead, [picture], figures=figures)


def first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d]:
    """The first convolution with its path; raises NotHereError where there is none."""
    for name, module in leaves(network).items():
        if isinstance(module, _ConvNd) and module.weight.ndim == 4:
            return name, module  # type: ignore[return-value]  # four dimensions are a Conv2d's
    raise NotHereError("needs a network with a convolution of images")


def filter_tiles(weight: Tensor) -> list[Pixels]:
    """Each kernel of (out, in, h, w) as a picture of at least 32 pixels: RGB for three inputs, else grey."""
    kernels = weight.float() if weight.shape[1] == 3 else weight.float().mean(1, keepdim=True).expand(-1, 3, -1, -1)
    pictures = torch.movedim(kernels[:MOST], 1, -1).cpu().numpy()
    return [enlarged((255 * stretched(kernel)).astype(np.uint8), 32) for kernel in pictures]
