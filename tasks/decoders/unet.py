"""U-Net's expansive path as published: up-convolution, the cropped skip beside it, two convolutions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbones.build import Backbone
from pipeline.backbones.layers import he_initialised
from pipeline.backbones.unet import double_convolution
from pipeline.errors import ConfigError
from tasks.decoders.registry import Decoder, pooled_maps, register_decoder, require_pooled
from tasks.decoders.unpooling import maximum_positions, unpool

UPSAMPLING = ("transposed", "nearest", "bilinear", "unpooling")


def cropped(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle (height, width) of maps (B, C, H, W)."""
    top, left = (int(maps.shape[2]) - size[0]) // 2, (int(maps.shape[3]) - size[1]) // 2
    return maps[:, :, top : top + size[0], left : left + size[1]]


class Up(nn.Module):
    """One step up: twice the size, the skip's channels, joined with the skip, two convolutions."""

    def __init__(self, channels_in: int, skip: int, how: str, skips: bool, valid: bool, norm: bool) -> None:
        super().__init__()
        self.how, self.skips = how, skips
        self.narrow: nn.Module = (
            nn.ConvTranspose2d(channels_in, skip, 2, 2) if how == "transposed" else nn.Conv2d(channels_in, skip, 1)
        )
        self.layers = double_convolution(2 * skip if skips else skip, skip, 0 if valid else 1, norm)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """Maps (B, channels_in, H, W) and the skip's (B, skip, at least 2 H, 2 W) to (B, skip, 2 H, 2 W), less 4 if valid."""
        size = (2 * int(x.shape[2]), 2 * int(x.shape[3]))
        x = self.narrow(x)
        before = cropped(before, size)
        if self.how == "unpooling":
            x = unpool(x, maximum_positions(before))
        elif self.how != "transposed":
            x = F.interpolate(
                x, scale_factor=2.0, mode=self.how, align_corners=False if self.how == "bilinear" else None
            )
        out: Tensor = self.layers(torch.cat([before, x], 1) if self.skips else x)
        return out


@register_decoder("unet")
class UnetDecoder(Decoder):
    """U-Net's expansive path (Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597), down to the input's pixels.

    Args:
        backbone: one with remembered poolings: `unet`, whose valid convolutions it continues; or `vgg-d`, `convnet`.
        classes: channels of the logits.
        size: unused.
        upsampling: `transposed` as published; `nearest` (each value four times), `bilinear`, or `unpooling`.
        skips: whether the contracting path's maps are joined; without them only the coarsest map answers.
        batch_norm: batch norm after each convolution.
    """

    valid = True

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        size: tuple[int, int] | None,  # noqa: ARG002
        upsampling: Literal["transposed", "nearest", "bilinear", "unpooling"] = "transposed",
        skips: bool = True,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        widths = require_pooled(backbone, "decoder 'unet'")
        if upsampling not in UPSAMPLING:
            raise ConfigError(f"decoder 'unet': upsampling is one of {', '.join(UPSAMPLING)}, not {upsampling!r}")
        self.last = backbone.coarsest
        channels = (*widths[1:], backbone.channels[self.last])
        valid = not backbone.traits.dense
        self.steps = nn.ModuleList(
            Up(wide, narrow, upsampling, skips, valid, batch_norm)
            for wide, narrow in zip(reversed(channels), reversed(widths), strict=True)
        )
        self.score = nn.Conv2d(widths[0], classes, 1)
        he_initialised(self)

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """Logits at the input's resolution; of a valid network's tile, its middle."""
        return [cropped(self.tile(features), size)]

    def tile(self, features: list[Tensor]) -> Tensor:
        """Logits of all pixels the network answers for: 388 of 572 as published."""
        x = features[self.last]
        for step, before in zip(self.steps, reversed(pooled_maps(features)), strict=True):
            x = step(x, before)
        out: Tensor = self.score(x)
        return out
