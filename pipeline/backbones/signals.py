"""Networks on signals of one dimension, read as images one pixel high: convolutional, and fully connected beside it."""

from __future__ import annotations

from itertools import pairwise
from math import prod

from torch import Tensor, nn

from pipeline.backbones.build import Backbone, register_backbone
from pipeline.backbones.layers import he_initialised
from pipeline.backbones.traits import Features, Natural, Published, SizeError, Traits
from pipeline.errors import ConfigError


class SignalBody(nn.Module):
    """Three convolutions of width 3 and stride 2, valid: (B, C, 1, 40) to maps of 19, 9 and 4 places."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, (1, 3), (1, 2)), nn.ReLU(inplace=True))
            for channels in (in_channels, width, width)
        )
        he_initialised(self)

    def forward(self, signals: Tensor) -> Features:
        """The three maps, fine to coarse."""
        maps = [signals]
        for layer in self.layers:
            maps.append(layer(maps[-1]))
        return Features(maps[1:])


@register_backbone("conv1d", Natural((1, 40), channels=1, classes=10))
def conv1d(in_channels: int, size: tuple[int, int], width: int = 15) -> Backbone:
    """A convolutional network for MNIST-1D's signals of 40 samples: 2,050 parameters with its classifier of 10 classes.

    Three layers of 15 channels and a linear layer on all 60 numbers (Prince 2023, Understanding Deep Learning,
    section 10.2; the data: Greydanus 2020, https://arxiv.org/abs/2011.14439).

    Args:
        in_channels: 1 as published.
        size: (1, samples).
        width: channels of each layer.
    """
    if size[0] != 1 or size[1] < 15:
        told = f"data.size {list(size)} does not fit backbone 'conv1d': it takes [1, 15] or longer"
        raise SizeError(told, (1, max(15, size[1])))
    if width < 1:
        raise ConfigError(f"backbone 'conv1d': width is a number of channels of 1 or more, not {width}")
    places = size[1]
    for _ in range(3):
        places = (places - 3) // 2 + 1
    published = Published(lambda classes: nn.Sequential(nn.Flatten(), nn.Linear(places * width, classes)), size, size)
    traits = Traits(smallest=(1, 15), multiple=1, dense=False, published=published)
    stages = tuple(f"layers.{i}" for i in range(3))
    return Backbone(SignalBody(in_channels, width), (width, width, width, 0, 0), "conv1d", stages, traits)


class DenseBody(nn.Module):
    """Fully connected layers with ReLU: (B, C, H, W) to one map (B, units, 1, 1)."""

    def __init__(self, inputs: int, hidden: list[int]) -> None:
        super().__init__()
        sizes = [inputs, *hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        he_initialised(self)

    def forward(self, images: Tensor) -> Features:
        """The last layer's units."""
        units = images.flatten(1)
        for layer in self.layers:
            units = layer(units).relu()
        return Features([units[:, :, None, None]])


@register_backbone("mlp", Natural((1, 40), channels=1, classes=10))
def mlp(in_channels: int, size: tuple[int, int], hidden: list[int] | None = None) -> Backbone:
    """A fully connected network, for comparison: on 40 samples and 10 classes it has 150,185 parameters.

    With `hidden: [285, 135, 60]`, the units that `conv1d` has layer by layer, it has 59,065.

    Args:
        in_channels: channels of the image.
        size: (height, width) of the input; no other is taken.
        hidden: units of the hidden layers.
    """
    units = [395, 330] if hidden is None else list(hidden)
    if not units or min(units) < 1:
        raise ConfigError(f"backbone 'mlp': hidden is a list of one or more widths above 0, not {units}")
    body = DenseBody(in_channels * prod(size), units)
    stages = tuple(f"layers.{i}" for i in range(len(units)))
    published = Published(lambda classes: nn.Sequential(nn.Flatten(), nn.Linear(units[-1], classes)), size, size)
    traits = Traits(smallest=size, multiple=1, dense=False, published=published)
    return Backbone(body, (0, 0, 0, 0, units[-1]), "mlp", stages, traits)
