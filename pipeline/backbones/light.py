"""`light` backbones: few, wide, dense residual 3x3 convolutions with ReLU, which CPUs run fastest and int8 hurts least.

Residual blocks after He et al. 2016 (https://arxiv.org/abs/1512.03385); a stem of one strided 3x3 convolution, since
stride 2 is where a 7x7 or a three-layer stem spends most per answer. Widths are multiples of 32.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from pipeline.backbones.build import Backbone, register_backbone
from pipeline.backbones.traits import STRIDES, Traits, require_output_stride


class Block(nn.Module):
    """Two 3x3 convolutions, each with its dilation, and a shortcut: (B, in, H, W) to (B, out, H / stride, W / stride)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, dilations: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.first = _conv_norm(channels_in, channels_out, 3, stride, dilations[0])
        self.second = _conv_norm(channels_out, channels_out, 3, 1, dilations[1])
        same = channels_in == channels_out and stride == 1
        self.shortcut = nn.Identity() if same else _conv_norm(channels_in, channels_out, 1, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Maps of the block's output channels."""
        out: Tensor = self.relu(self.second(self.relu(self.first(x))) + self.shortcut(x))
        return out


class LightBody(nn.Module):
    """A strided stem and four stages; gives the maps at strides 2, 4, 8, 16 and 32.

    Args:
        in_channels: channels of the image.
        widths: channels at each of those strides.
        blocks: residual blocks in each of the four stages.
        output_stride: of the coarsest map; where a stage would shrink it further, the layers behind that step are dilated
            instead, and answer at its places as they would have done (Chen et al. 2015, https://arxiv.org/abs/1412.7062).
    """

    def __init__(
        self, in_channels: int, widths: tuple[int, ...], blocks: tuple[int, ...], output_stride: int = STRIDES[-1]
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv_norm(in_channels, widths[0], 3, 2), nn.ReLU(inplace=True))
        self.stages = nn.ModuleList()
        for narrow, wide, count, stride in zip(widths[:-1], widths[1:], blocks, STRIDES[1:], strict=True):
            step, apart = 2 if stride <= output_stride else 1, max(1, stride // output_stride)
            before = max(1, stride // 2 // output_stride)
            more = [Block(wide, wide, 1, (apart, apart)) for _ in range(count - 1)]
            self.stages.append(nn.Sequential(Block(narrow, wide, step, (before, apart)), *more))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> list[Tensor]:
        """Float (B, C, H, W) to five maps, fine to coarse."""
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps


def _conv_norm(channels_in: int, channels_out: int, kernel: int, stride: int, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2 * dilation, dilation, bias=False),
        nn.BatchNorm2d(channels_out),
    )


@register_backbone("light")
def light(in_channels: int, output_stride: Literal[8, 16, 32] = 32) -> Backbone:
    """One block a stage: 3.5 million weights. `output_stride` 8 or 16: dilation instead of the last strides."""
    return _build("light", in_channels, (32, 64, 128, 256, 384), (1, 1, 1, 1), output_stride)


@register_backbone("light-deep")
def light_deep(in_channels: int, output_stride: Literal[8, 16, 32] = 32) -> Backbone:
    """Two blocks at strides 8 and 16. `output_stride` as of `light`."""
    return _build("light-deep", in_channels, (32, 64, 128, 256, 384), (1, 2, 2, 1), output_stride)


@register_backbone("light-nano")
def light_nano(in_channels: int, output_stride: Literal[8, 16, 32] = 32) -> Backbone:
    """Half the widths of `light` at strides 4 to 16: 1.2 million weights. `output_stride` as of `light`."""
    return _build("light-nano", in_channels, (32, 32, 64, 128, 256), (1, 1, 1, 1), output_stride)


def _build(
    name: str, in_channels: int, widths: tuple[int, ...], blocks: tuple[int, ...], output_stride: int
) -> Backbone:
    require_output_stride(name, output_stride)
    stages = ("stem", *(f"stages.{i}" for i in range(len(blocks))))
    traits = Traits(strides=tuple(min(stride, output_stride) for stride in STRIDES))
    return Backbone(LightBody(in_channels, widths, blocks, output_stride), widths, name, stages, traits)
