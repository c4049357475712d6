"""A small network of equal blocks, to try one idea at a time: how it shrinks, its kernels, dense or separable layers."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from pipeline.backbones.build import STRIDES, Backbone, register_backbone
from pipeline.backbones.layers import he_initialised
from pipeline.backbones.traits import Features, Natural, Traits
from pipeline.errors import ConfigError

DOWN = ("pooled", "strided", "convolution")


def layer(channels_in: int, channels_out: int, kernel: int, stride: int, separable: bool, norm: bool) -> nn.Sequential:
    """A convolution, batch norm and ReLU; separable: one kernel per channel, then 1x1 over the channels."""
    parts: list[nn.Module] = []
    if separable:
        parts.append(nn.Conv2d(channels_in, channels_in, kernel, stride, kernel // 2, groups=channels_in, bias=False))
        parts.append(nn.Conv2d(channels_in, channels_out, 1, bias=not norm))
    else:
        parts.append(nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=not norm))
    parts += [nn.BatchNorm2d(channels_out)] if norm else []
    return nn.Sequential(*parts, nn.ReLU(inplace=True))


class ConvNetBody(nn.Module):
    """Blocks of convolutions, each of which halves the picture at its end."""

    def __init__(
        self,
        in_channels: int,
        widths: list[int],
        convolutions: int,
        kernel: int,
        down: str,
        separable: bool,
        norm: bool,
    ) -> None:
        super().__init__()
        self.blocks, self.downs = nn.ModuleList(), nn.ModuleList()
        channels = in_channels
        for width in widths:
            layers = []
            for number in range(convolutions):
                stride = 2 if down == "strided" and number == convolutions - 1 else 1
                # A kernel for each of three colours alone would see little.
                apart = separable and channels > in_channels
                layers.append(layer(channels, width, kernel, stride, apart, norm))
                channels = width
            self.blocks.append(nn.Sequential(*layers))
            shrink: nn.Module = nn.MaxPool2d(2) if down == "pooled" else nn.Identity()
            self.downs.append(layer(width, width, 3, 2, separable, norm) if down == "convolution" else shrink)
        self.pooled = down == "pooled"
        he_initialised(self)

    def forward(self, images: Tensor) -> Features:
        """A map per block, at strides 2, 4, ...; with poolings, also the maps before them."""
        maps, before = [images], []
        for block, down in zip(self.blocks, self.downs, strict=True):
            before.append(block(maps[-1]))
            maps.append(down(before[-1]))
        return Features(maps[1:], before if self.pooled else ())


@register_backbone("convnet", Natural((64, 64)))
def convnet(
    in_channels: int,
    blocks: int = 5,
    width: int = 16,
    convolutions: int = 2,
    kernel: int = 3,
    down: Literal["pooled", "strided", "convolution"] = "pooled",
    separable: bool = False,
    norm: bool = True,
) -> Backbone:
    """A block-wise network, averaged over all places by the head for image labels.

    Args:
        in_channels: channels of the image.
        blocks: 1 to 5; each halves the picture and doubles the channels.
        width: channels of the first block.
        convolutions: layers a block.
        kernel: their side, odd.
        down: `pooled` (2x2 maximum), `strided` (the block's last layer has stride 2), or `convolution` (a further layer
            of stride 2 in the pooling's stead: Springenberg et al. 2015, https://arxiv.org/abs/1412.6806).
        separable: depthwise separable layers (Sifre 2014; Chollet 2017, https://arxiv.org/abs/1610.02357).
        norm: batch norm after each layer.
    """
    if not 1 <= blocks <= 5 or width < 1 or convolutions < 1 or kernel < 1 or kernel % 2 == 0 or down not in DOWN:
        raise ConfigError(
            "backbone 'convnet' takes 1 to 5 blocks, width and convolutions of 1 or more, an odd kernel, and down: pooled,"
            f" strided or convolution; not {blocks}, {width}, {convolutions}, {kernel}, {down!r}"
        )
    widths = [width * 2**i for i in range(blocks)]
    body = ConvNetBody(in_channels, widths, convolutions, kernel, down, separable, norm)
    channels = (*widths, *[0] * (len(STRIDES) - blocks))
    traits = Traits(multiple=2**blocks, pooled=tuple(widths) if down == "pooled" else ())
    parts = ("blocks", "downs") if down == "convolution" else ("blocks",)
    return Backbone(body, channels, "convnet", tuple(f"{part}.{i}" for i in range(blocks) for part in parts), traits)
