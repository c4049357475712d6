"""A light U-Net decoder: skips narrowed before they are joined, and all pixels of a cell told apart by channels."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbones.build import Backbone
from pipeline.backbones.layers import he_initialised
from pipeline.errors import ConfigError
from tasks.decoders.registry import Decoder, register_decoder


class Join(nn.Module):
    """One step up: the coarse map enlarged, the narrowed skips beside it, one 3x3 convolution over all of them."""

    def __init__(self, skips: list[nn.Conv2d], width: int, factor: int) -> None:
        super().__init__()
        self.factor = float(factor)
        self.narrow = nn.ModuleList(skips)
        self.join = nn.Sequential(
            nn.Conv2d(width * (len(skips) + 1), width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """Maps (B, width, H, W) and skips, each narrowed to (B, width, factor H, factor W), to that shape."""
        x = F.interpolate(x, scale_factor=self.factor, mode="nearest")
        narrowed = [narrow(skip) for narrow, skip in zip(self.narrow, skips, strict=True)]
        out: Tensor = self.join(torch.cat([x, *narrowed], 1))
        return out


@register_decoder("light-unet")
class LightUnetDecoder(Decoder):
    """U-Net's expansive path (Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597) of few channels, down to `stride`.

    A 1x1 convolution narrows each skip before it is joined, as in feature pyramid networks (Lin et al. 2017,
    https://arxiv.org/abs/1612.03144); the map at half of `stride`, where there is one, joins the last step by a 2x2
    convolution with stride 2. The last layer has a channel for each class and pixel of a cell, which are then set side by
    side: sub-pixel convolution (Shi et al. 2016, https://arxiv.org/abs/1609.05158). So no convolution answers at a
    resolution finer than `stride`, where a U-Net's decoder spends most of its time.

    Args:
        backbone: whose maps it takes.
        classes: channels of the logits.
        size: unused.
        width: channels of every step; multiples of 32 run fastest.
        stride: of the map at which the last step ends, in pixels of the input: 2, 4 or 8.
        fine: pixels of the input between two logits, a divisor of `stride`; coarser logits are enlarged bilinearly.

    Raises:
        ConfigError: options that do not fit, or a backbone without a map at `stride`.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        size: tuple[int, int] | None,  # noqa: ARG002
        width: int = 32,
        stride: int = 4,
        fine: int = 2,
    ) -> None:
        super().__init__()
        if stride not in {2, 4, 8} or fine < 1 or stride % fine or width < 1:
            raise ConfigError(
                "decoder 'light-unet' takes stride 2, 4 or 8, a fine that divides it, and a width of 1 or more;"
                f" not stride {stride}, fine {fine} and width {width}"
            )
        if stride not in backbone.present:
            raise ConfigError(
                f"decoder 'light-unet' with stride {stride} needs a map there; backbone {backbone.name!r} has maps at"
                f" {', '.join(str(s) for s in backbone.present)}: take another stride, decoder: fcn, or another backbone"
            )
        strides, channels = backbone.traits.strides, backbone.channels
        finest = {s: level for level, s in enumerate(strides) if channels[level]}
        steps = sorted((s for s in finest if s >= stride), reverse=True)
        groups = [[finest[s]] for s in steps[1:]]
        if groups and stride // 2 in finest:
            groups[-1].append(finest[stride // 2])
        self.coarsest, self.groups = finest[steps[0]], groups
        self.first = nn.Conv2d(channels[self.coarsest], width, 1)
        self.steps = nn.ModuleList()
        for levels, (coarse, finer) in zip(groups, pairwise(steps), strict=True):
            folds = [finer // strides[level] for level in levels]
            skips = [nn.Conv2d(channels[level], width, fold, fold) for level, fold in zip(levels, folds, strict=True)]
            self.steps.append(Join(skips, width, coarse // finer))
        self.score = nn.Conv2d(width, classes * (stride // fine) ** 2, 1)
        self.apart = nn.PixelShuffle(stride // fine)
        he_initialised(self)

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> list[Tensor]:  # noqa: ARG002
        """Logits (B, classes, H / fine, W / fine) of an input of H x W pixels."""
        x: Tensor = self.first(features[self.coarsest])
        for step, levels in zip(self.steps, self.groups, strict=True):
            x = step(x, [features[level] for level in levels])
        out: Tensor = self.apart(self.score(x))
        return [out]
