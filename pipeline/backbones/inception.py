"""GoogLeNet and its Inception modules: the naive one, and the one that reduces channels before its large kernels.

torchvision's `googlenet` has 3x3 kernels where the paper has 5x5, so it is written here.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbones.build import Backbone, register_backbone
from pipeline.backbones.layers import he_initialised, response_norm, scaled
from pipeline.backbones.traits import Features, Traits


class Plan(NamedTuple):
    """Channels of a module's branches: 1x1, 3x3 after its reduction, 5x5 after its reduction, and after the pooling."""

    one: int
    three_reduced: int
    three: int
    five_reduced: int
    five: int
    pool: int


TABLE = (
    (Plan(64, 96, 128, 16, 32, 32), Plan(128, 128, 192, 32, 96, 64)),
    (
        Plan(192, 96, 208, 16, 48, 64),
        Plan(160, 112, 224, 24, 64, 64),
        Plan(128, 128, 256, 24, 64, 64),
        Plan(112, 144, 288, 32, 64, 64),
        Plan(256, 160, 320, 32, 128, 128),
    ),
    (Plan(256, 160, 320, 32, 128, 128), Plan(384, 192, 384, 48, 128, 128)),
)
"""Table 1 of the paper: modules 3a and 3b, 4a to 4e, 5a and 5b."""

ALONG = (0, 3)
"""Which of 4a to 4e a classifier along the way stands behind."""


def convolution(channels_in: int, channels_out: int, kernel: int, norm: bool, stride: int = 1) -> nn.Sequential:
    """A padded convolution, batch norm where asked for, and ReLU."""
    layers: list[nn.Module] = [nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=not norm)]
    layers += [nn.BatchNorm2d(channels_out)] if norm else []
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


def branch(channels: int, reduced: int | None, wanted: int, kernel: int, norm: bool = False) -> nn.Sequential:
    """A large kernel on all channels (reduced None), or on the few that a 1x1 convolution leaves."""
    if reduced is None:
        return convolution(channels, wanted, kernel, norm)
    return nn.Sequential(convolution(channels, reduced, 1, norm), convolution(reduced, wanted, kernel, norm))


class Inception(nn.Module):
    """Four branches side by side: (B, channels, H, W) to (B, self.channels, H, W).

    Args:
        channels: of the input.
        plan: of the branches.
        naive: without reductions (figure 2a): kernels see all channels, and the pooling keeps them all.
        norm: batch norm after each convolution.
    """

    def __init__(self, channels: int, plan: Plan, naive: bool, norm: bool) -> None:
        super().__init__()
        self.one = convolution(channels, plan.one, 1, norm)
        self.three = branch(channels, None if naive else plan.three_reduced, plan.three, 3, norm)
        self.five = branch(channels, None if naive else plan.five_reduced, plan.five, 5, norm)
        pool = nn.MaxPool2d(3, 1, 1)
        self.pool = pool if naive else nn.Sequential(pool, convolution(channels, plan.pool, 1, norm))
        self.channels = plan.one + plan.three + plan.five + (channels if naive else plan.pool)

    def forward(self, x: Tensor) -> Tensor:
        """The branches' maps, joined."""
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


class Along(nn.Module):
    """A classifier along the way (section 5 of the paper): the map (B, channels, H, W) after 4a or 4d to logits.

    5x5 averages at stride 3, 128 1x1 kernels, 1,024 units, dropout of 70 %. Those units see 4 x 4 places, as the map of
    14 x 14 leaves at 224 pixels; other maps are averaged to as many.

    Args:
        channels: of the map.
        classes: number of answers.
        width: factor on the widths.
    """

    def __init__(self, channels: int, classes: int, width: float) -> None:
        super().__init__()
        few, units = scaled(128, width), scaled(1024, width)
        self.reduce = nn.Sequential(nn.Conv2d(channels, few, 1), nn.ReLU(inplace=True))
        self.connected = nn.Sequential(
            nn.Linear(few * 16, units), nn.ReLU(inplace=True), nn.Dropout(0.7), nn.Linear(units, classes)
        )
        he_initialised(self)

    def forward(self, maps: Tensor) -> Tensor:
        """Logits (B, classes)."""
        if min(maps.shape[2:]) >= 5:
            maps = F.avg_pool2d(maps, 5, 3)
        logits: Tensor = self.connected(self.reduce(F.adaptive_avg_pool2d(maps, 4)).flatten(1))
        return logits


class GoogLeNetBody(nn.Module):
    """The stem and three groups of Inception modules.

    Attributes:
        channels: of the maps at strides 2 to 32.
        along: channels after modules 4a and 4d.
    """

    def __init__(self, in_channels: int, naive: bool, norm: bool, width: float) -> None:
        super().__init__()
        first, channels = scaled(64, width), scaled(192, width)
        between: list[nn.Module] = [] if norm else [response_norm()]
        self.stem = convolution(in_channels, first, 7, norm, stride=2)
        self.second = nn.Sequential(
            nn.MaxPool2d(3, 2, 1), *between, convolution(first, first, 1, norm), convolution(first, channels, 3, norm)
        )
        self.between = nn.Sequential(*between)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.groups = nn.ModuleList()
        widths = [first, channels]
        for plans in TABLE:
            modules: list[nn.Module] = []
            for plan in plans:
                module = Inception(channels, Plan(*(scaled(value, width) for value in plan)), naive, norm)
                modules.append(module)
                channels = module.channels
            self.groups.append(nn.Sequential(*modules))
            widths.append(channels)
        self.channels = tuple(widths)
        self.along = tuple(self._middle[at].channels for at in ALONG)
        he_initialised(self)

    @property
    def _middle(self) -> list[Inception]:
        """Modules 4a to 4e."""
        return [module for module in self.groups[1].children() if isinstance(module, Inception)]

    def forward(self, images: Tensor) -> Features:
        """Maps at strides 2 to 32, and those after modules 4a and 4d."""
        maps = [self.stem(images)]
        maps.append(self.second(maps[-1]))
        maps.append(self.groups[0](self.pool(self.between(maps[-1]))))
        x, middle = self.pool(maps[-1]), []
        for module in self._middle:
            x = module(x)
            middle.append(x)
        return Features([*maps, x, self.groups[2](self.pool(x))], along=[middle[at] for at in ALONG])


def googlenet(in_channels: int, batch_norm: bool = False, width: float = 1.0, *, naive: bool) -> Backbone:
    """GoogLeNet (Szegedy et al. 2015, https://arxiv.org/abs/1409.4842).

    Its two classifiers along the way are an option of the head for image labels, `auxiliary: 0.3`.

    Args:
        in_channels: channels of the image.
        batch_norm: batch norm after each convolution instead of the response norms; it then trains without the
            classifiers along the way.
        width: factor on all widths.
        naive: without reductions: fourteen times the weights.
    """
    body = GoogLeNetBody(in_channels, naive, batch_norm, width)
    name = "googlenet-naive" if naive else "googlenet"
    traits = Traits(along=tuple(partial(Along, channels, width=width) for channels in body.along))
    return Backbone(body, body.channels, name, ("stem", "second", "groups.0", "groups.1", "groups.2"), traits)


register_backbone("googlenet")(partial(googlenet, naive=False))
register_backbone("googlenet-naive")(partial(googlenet, naive=True))
