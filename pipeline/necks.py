"""Feature pyramids: coarse maps tell fine ones what they see (top-down), fine ones tell coarse ones where (bottom-up)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNormAct(nn.Sequential):
    """Convolution, batch norm, ReLU: (B, in, H, W) to (B, out, H / stride, W / stride).

    ReLU rather than SiLU: wide dense ReLU layers run fastest on CPUs and lose least in int8.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
        )


class PathAggregation(nn.Module):
    """A path aggregation network over any consecutive strides (Liu et al. 2018, https://arxiv.org/abs/1803.01534).

    Maps of `channels_in` (fine to coarse, each half the size of the one before) become maps of `width` channels of
    the same sizes.
    """

    def __init__(self, channels_in: list[int], width: int) -> None:
        super().__init__()
        levels = len(channels_in)
        self.reduce = nn.ModuleList(ConvNormAct(channels, width, 1) for channels in channels_in)
        self.down_path = nn.ModuleList(ConvNormAct(2 * width, width) for _ in range(levels - 1))
        self.stride_two = nn.ModuleList(ConvNormAct(width, width, 3, 2) for _ in range(levels - 1))
        self.up_path = nn.ModuleList(ConvNormAct(2 * width, width) for _ in range(levels - 1))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps (B, channels_in[i], H_i, W_i), fine to coarse, to maps (B, width, H_i, W_i)."""
        reduced = [layer(feature) for layer, feature in zip(self.reduce, maps, strict=True)]
        merged = [reduced[-1]]
        for layer, lateral in zip(self.down_path, reduced[-2::-1], strict=True):
            above = F.interpolate(merged[0], scale_factor=2.0, mode="nearest")
            merged.insert(0, layer(torch.cat([lateral, above], 1)))
        out = [merged[0]]
        for shrink, layer, lateral in zip(self.stride_two, self.up_path, merged[1:], strict=True):
            out.append(layer(torch.cat([shrink(out[-1]), lateral], 1)))
        return out
