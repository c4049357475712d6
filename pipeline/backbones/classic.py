"""LeNet-5 and AlexNet as published: valid first convolutions, so that their maps serve image labels only."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from pipeline.backbones.build import Backbone, register_backbone
from pipeline.backbones.layers import ConvolutionalClassifier, he_initialised, response_norm, scaled
from pipeline.backbones.traits import Features, Natural, Published, Traits
from pipeline.errors import ConfigError

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}
POOLINGS: dict[str, type[nn.Module]] = {"average": nn.AvgPool2d, "max": nn.MaxPool2d}


class LeNetBody(nn.Module):
    """C1, S2, C3 and S4 of LeNet-5: (B, C, 32, 32) to maps of 6 x 14 x 14 and 16 x 5 x 5."""

    def __init__(self, in_channels: int, activation: type[nn.Module], pooling: type[nn.Module]) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(in_channels, 6, 5), activation(), pooling(2))
        self.second = nn.Sequential(nn.Conv2d(6, 16, 5), activation(), pooling(2))

    def forward(self, images: Tensor) -> Features:
        """Both maps, fine to coarse."""
        first = self.first(images)
        return Features([first, self.second(first)])


@register_backbone("lenet5", Natural((32, 32), channels=1, classes=10))
def lenet5(
    in_channels: int,
    activation: Literal["tanh", "relu"] = "tanh",
    pooling: Literal["average", "max"] = "average",
) -> Backbone:
    """LeNet-5 (LeCun et al. 1998, Gradient-based learning applied to document recognition): 61,706 parameters.

    The paper counts 60,000: its C3 leaves out 60 % of the connections, its S2 and S4 have a gain and a shift per
    map, and its last layer has fixed weights. Here C3 sees every map, and the last layer learns.

    Args:
        in_channels: 1 as published.
        activation: `tanh` as published, or `relu`.
        pooling: `average` as published, or `max`.
    """
    if activation not in ACTIVATIONS or pooling not in POOLINGS:
        raise ConfigError(f"lenet5: activation is tanh or relu, pooling average or max; not {activation}, {pooling}")
    act = ACTIVATIONS[activation]
    body = LeNetBody(in_channels, act, POOLINGS[pooling])
    published = Published(lambda classes: ConvolutionalClassifier(16, 5, (120, 84), classes, act), (32, 32))
    traits = Traits(smallest=(16, 16), multiple=1, dense=False, published=published)
    return Backbone(body, (6, 16, 0, 0, 0), "lenet5", ("first", "second"), traits)


class AlexNetBody(nn.Module):
    """The five convolutions of AlexNet in its two groups: (B, C, 227, 227) to maps of 55, 27, 13 and 6 pixels."""

    def __init__(self, in_channels: int, width: float) -> None:
        super().__init__()
        w1, w2, w3, w5 = (scaled(channels, width, 8) for channels in (96, 256, 384, 256))
        self.first = nn.Sequential(nn.Conv2d(in_channels, w1, 11, 4), nn.ReLU(inplace=True), response_norm())
        self.pool = nn.MaxPool2d(3, 2)
        self.second = nn.Sequential(
            nn.Conv2d(w1, w2, 5, padding=2, groups=2), nn.ReLU(inplace=True), response_norm(), nn.MaxPool2d(3, 2)
        )
        self.third = nn.Sequential(
            nn.Conv2d(w2, w3, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(w3, w3, 3, padding=1, groups=2), nn.ReLU(inplace=True),
            nn.Conv2d(w3, w5, 3, padding=1, groups=2), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.channels = (0, w1, w1, w5, w5)
        he_initialised(self)

    def forward(self, images: Tensor) -> Features:
        """Maps at strides 4, 8, 16 and 32, fine to coarse."""
        first = self.first(images)
        pooled = self.pool(first)
        third = self.third(self.second(pooled))
        return Features([first, pooled, third, self.pool(third)])


@register_backbone("alexnet", Natural((227, 227)))
def alexnet(in_channels: int, width: float = 1.0) -> Backbone:
    """AlexNet (Krizhevsky, Sutskever and Hinton 2012): 60,965,224 parameters with its classifier of 1,000 classes.

    torchvision's `alexnet` is the one-column network of 2014 (https://arxiv.org/abs/1404.5997), without response norms.

    Args:
        in_channels: channels of the image.
        width: factor on all widths.
    """
    body = AlexNetBody(in_channels, width)
    units, last = scaled(4096, width, 8), body.channels[-1]
    published = Published(
        lambda classes: ConvolutionalClassifier(last, 6, (units, units), classes, dropout=0.5), (227, 227)
    )
    traits = Traits(smallest=(67, 67), multiple=1, dense=False, published=published)
    return Backbone(body, body.channels, "alexnet", ("first", "second", "third"), traits)
