"""A light decoder: a pyramid of few channels, joined at one stride, and all pixels of a cell told apart by channels."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbones.build import Backbone
from pipeline.backbones.layers import he_initialised
from pipeline.errors import ConfigError
from tasks.decoders.registry import Decoder, register_decoder


@register_decoder("fpn")
class FpnDecoder(Decoder):
    """Lateral 1x1 convolutions, summed from coarse to fine, one 3x3 convolution, and logits of every pixel of a cell.

    The sums are those of feature pyramid networks (Lin et al. 2017, https://arxiv.org/abs/1612.03144), as for masks in
    Kirillov et al. 2019 (https://arxiv.org/abs/1901.02446). The last layer has a channel for each class and pixel of a
    cell, which are then set side by side: sub-pixel convolution (Shi et al. 2016, https://arxiv.org/abs/1609.05158). So
    no convolution runs at a resolution finer than `stride`, where U-Net's decoder spends most of its time.

    Args:
        backbone: whose maps it takes.
        classes: channels of the logits.
        size: unused.
        width: channels of the pyramid; multiples of 32 run fastest.
        stride: of the finest map that is used, in pixels of the input: 2, 4 or 8.
        fine: pixels of the input between two logits, a divisor of `stride`; coarser logits are enlarged bilinearly.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        size: tuple[int, int] | None,  # noqa: ARG002
        width: int = 64,
        stride: int = 4,
        fine: int = 2,
    ) -> None:
        super().__init__()
        if stride not in {2, 4, 8} or fine < 1 or stride % fine or width < 1:
            raise ConfigError(
                "decoder 'fpn' takes stride 2, 4 or 8, a fine that divides it, and a width of 1 or more;"
                f" not stride {stride}, fine {fine} and width {width}"
            )
        if stride not in backbone.present:
            raise ConfigError(
                f"decoder 'fpn' with stride {stride} needs a map there; backbone {backbone.name!r} has maps at"
                f" {', '.join(str(s) for s in backbone.present)}"
            )
        strides, channels = backbone.traits.strides, backbone.channels
        finest = {s: level for level, s in enumerate(strides) if channels[level] and s >= stride}
        steps = sorted(finest, reverse=True)
        self.levels = [finest[s] for s in steps]
        self.factors = [float(coarse // finer) for coarse, finer in pairwise(steps)]
        self.lateral = nn.ModuleList(nn.Conv2d(channels[level], width, 1) for level in self.levels)
        self.smooth = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.score = nn.Conv2d(width, classes * (stride // fine) ** 2, 1)
        self.apart = nn.PixelShuffle(stride // fine)
        he_initialised(self)

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> list[Tensor]:  # noqa: ARG002
        """Logits (B, classes, H / fine, W / fine) of an input of H x W pixels."""
        x: Tensor = self.lateral[0](features[self.levels[0]])
        for level, lateral, factor in zip(self.levels[1:], self.lateral[1:], self.factors, strict=True):
            x = lateral(features[level]) + F.interpolate(x, scale_factor=factor, mode="nearest")
        out: Tensor = self.apart(self.score(self.smooth(x)))
        return [out]
