"""U-Net's contracting path: double convolutions, valid as published or padded, each followed by a 2x2 pooling."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbones.build import STRIDES, Backbone, register_backbone
from pipeline.backbones.layers import he_initialised, scaled
from pipeline.backbones.traits import Features, Natural, Traits
from pipeline.errors import ConfigError


def tile_side(side: int, depth: int) -> int:
    """The input side, in pixels, whose valid U-Net of `depth` poolings answers for at least `side` pixels.

    Every pooling meets an even side: with t pixels at the bottom the input has 2^d t + 4 (2^d - 1), the answer
    2^d (t - 4) - 4 (2^d - 1). With depth 4, 572 for 388.
    """
    cell = 1 << depth
    edge = 4 * (cell - 1)
    return cell * (-(-(side + edge) // cell) + 4) + edge


def double_convolution(channels_in: int, channels_out: int, padding: int, norm: bool) -> nn.Sequential:
    """Two 3x3 convolutions with ReLU, with batch norms where asked for."""
    layers: list[nn.Module] = []
    for channels in (channels_in, channels_out):
        layers.append(nn.Conv2d(channels, channels_out, 3, padding=padding, bias=not norm))
        layers += [nn.BatchNorm2d(channels_out)] if norm else []
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class UnetBody(nn.Module):
    """The contracting path; in its valid form the picture is first continued by its mirror image (figure 2)."""

    def __init__(self, in_channels: int, widths: list[int], valid: bool, norm: bool, dropout: float) -> None:
        super().__init__()
        self.valid, self.depth = valid, len(widths) - 1
        self.stages = nn.ModuleList(
            double_convolution(narrow, wide, 0 if valid else 1, norm)
            for narrow, wide in zip([in_channels, *widths[:-1]], widths, strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(dropout)
        he_initialised(self)

    def forward(self, images: Tensor) -> Features:
        """The maps after each pooling and its convolutions, and the ones before each pooling."""
        maps: list[Tensor] = []
        x = self.mirrored(images) if self.valid else images
        for stage in self.stages:
            maps.append(stage(self.pool(maps[-1]) if maps else x))
        return Features([*maps[1:-1], self.dropout(maps[-1])], maps[:-1])

    def mirrored(self, images: Tensor) -> Tensor:
        """The picture in the middle of a tile, (B, C, tile, tile), continued by its mirror image."""
        height, width = int(images.shape[2]), int(images.shape[3])
        more = [tile_side(side, self.depth) - side for side in (width, height)]
        return F.pad(images, [part for extra in more for part in (extra // 2, extra - extra // 2)], mode="reflect")


@register_backbone("unet", Natural((388, 388), channels=1))
def unet(
    in_channels: int,
    padding: Literal["valid", "same"] = "valid",
    depth: int = 4,
    width: float = 1.0,
    batch_norm: bool = False,
    dropout: float = 0.5,
) -> Backbone:
    """U-Net (Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597); the expansive path is `decoder: unet`.

    A valid one answers for 388 pixels of an input of 572. Here the input has the answer's size, and is continued to 572
    by its mirror image, as the paper does at a picture's border.

    Args:
        in_channels: channels of the image.
        padding: `valid` as published, or `same`: padded convolutions, whose maps serve other heads as well.
        depth: poolings, 1 to 5; 4 as published.
        width: factor on the widths, 64 to 1024 as published.
        batch_norm: batch norm after each convolution.
        dropout: share of the deepest map's units dropped while training.
    """
    if padding not in {"valid", "same"} or not 1 <= depth <= 5:
        raise ConfigError(f"backbone 'unet' takes padding valid or same and depth 1 to 5, not {padding!r} and {depth}")
    widths = [scaled(64 * 2**i, width) for i in range(depth + 1)]
    valid = padding == "valid"
    body = UnetBody(in_channels, widths, valid, batch_norm, dropout)
    channels = (*widths[1:], *[0] * (len(STRIDES) - depth))
    # A mirror image is at most as long as what it mirrors.
    least = next(side for side in range(2, 999) if tile_side(side, depth) - side <= 2 * (side - 1))
    traits = Traits(
        smallest=(least, least) if valid else (1, 1),
        multiple=1 if valid else 2**depth,
        dense=not valid,
        pooled=tuple(widths[:-1]),
    )
    return Backbone(body, channels, "unet", tuple(f"stages.{i}" for i in range(depth + 1)), traits)
