"""SegNet and DeconvNet: maxima go back to where they stood before each pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.backbones.build import Backbone
from pipeline.backbones.traits import Demand, SizeError, fitting_size
from pipeline.errors import ConfigError
from tasks.decoders.registry import Decoder, pooled_maps, register_decoder, require_pooled


def maximum_positions(before: Tensor) -> Tensor:
    """Which of each 2x2 cell's four pixels is the largest, row by row: int64 (B, C, H / 2, W / 2) of maps (B, C, H, W)."""
    batch, channels, height, width = before.shape
    cells = before.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 1, 2, 4, 3, 5)
    return cells.reshape(batch, channels, height // 2, width // 2, 4).argmax(-1)


def unpool(maps: Tensor, positions: Tensor) -> Tensor:
    """Maps (B, C, H, W) to (B, C, 2 H, 2 W): each value at its remembered position, zeros elsewhere."""
    batch, channels, height, width = maps.shape
    chosen = positions[..., None] == torch.arange(4, device=maps.device)
    cells = (maps[..., None] * chosen.to(maps.dtype)).reshape(batch, channels, height, width, 2, 2)
    return cells.permute(0, 1, 2, 4, 3, 5).reshape(batch, channels, 2 * height, 2 * width)


def layer(channels_in: int, channels_out: int, kernel: int = 3, transposed: bool = False) -> nn.Sequential:
    """A (transposed) convolution that keeps the size, batch norm, ReLU."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    return nn.Sequential(
        kind(channels_in, channels_out, kernel, padding=kernel // 2),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


class UnpoolingDecoder(Decoder):
    """The encoder's mirror image: at each level an unpooling, then as many layers as the encoder had there."""

    def __init__(self, backbone: Backbone, classes: int, layers: list[int] | None, transposed: bool, who: str) -> None:
        super().__init__()
        widths = require_pooled(backbone, who)
        if backbone.channels[backbone.coarsest] != widths[-1]:
            raise ConfigError(
                f"{who} undoes each pooling; backbone {backbone.name!r} goes on after its last one: take a 'vgg'"
            )
        counts = layers or [2, 2, *[3] * (len(widths) - 2)][: len(widths)]
        if len(counts) != len(widths) or min(counts) < 1:
            raise ConfigError(f"{who}: layers takes {len(widths)} counts of 1 or more, fine to coarse, not {counts}")
        self.last = backbone.coarsest
        self.levels = nn.ModuleList()
        for number in reversed(range(len(widths))):
            here, finer = widths[number], widths[number - 1] if number else widths[0]
            outs = [here] * (counts[number] - 1) + [finer]
            ins = [here, *outs[:-1]]
            self.levels.append(nn.Sequential(*(layer(a, b, 3, transposed) for a, b in zip(ins, outs, strict=True))))
        self.score = nn.Conv2d(widths[0], classes, 1 if transposed else 3, padding=0 if transposed else 1)

    def coarse(self, maps: Tensor) -> Tensor:
        """What happens between the encoder's last map and the first unpooling."""
        return maps

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> list[Tensor]:  # noqa: ARG002
        """Logits at the input's resolution."""
        x = self.coarse(features[self.last])
        for level, before in zip(self.levels, reversed(pooled_maps(features)), strict=True):
            x = level(unpool(x, maximum_positions(before)))
        return [self.score(x)]


@register_decoder("segnet")
class SegNetDecoder(UnpoolingDecoder):
    """SegNet (Badrinarayanan et al. 2017, https://arxiv.org/abs/1511.00561): no fully connected layers.

    Args:
        backbone: one with remembered poolings; as published `vgg-d` with batch norm.
        classes: channels of the logits.
        size: unused.
        layers: layers per level, fine to coarse; none = VGG-D's 2, 2, 3, 3, 3.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        size: tuple[int, int] | None,  # noqa: ARG002
        layers: list[int] | None = None,
    ) -> None:
        super().__init__(backbone, classes, layers, transposed=False, who="decoder 'segnet'")
        # The last of the finest level's layers gives the scores.
        finest = self.levels[-1]
        assert isinstance(finest, nn.Sequential)
        if len(finest) > 1:
            self.levels[-1] = finest[:-1]


@register_decoder("deconvnet")
class DeconvNetDecoder(UnpoolingDecoder):
    """DeconvNet (Noh et al. 2015, https://arxiv.org/abs/1505.04366): down to one place, and up by transposed layers.

    Args:
        backbone: one with remembered poolings; as published `vgg-d` with batch norm.
        classes: channels of the logits.
        size: (height, width) of the input: the coarsest map must be `kernel` pixels or more.
        layers: layers per level, fine to coarse; none = VGG-D's.
        hidden: units of the two layers that were fully connected: 4096 as published.
        kernel: side of the map they see at once: 7 as published, at an input of 224.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        size: tuple[int, int] | None,
        layers: list[int] | None = None,
        hidden: int = 4096,
        kernel: int = 7,
    ) -> None:
        super().__init__(backbone, classes, layers, transposed=True, who="decoder 'deconvnet'")
        stride, channels = backbone.traits.strides[self.last], backbone.channels[self.last]
        self.demand = Demand(f"decoder 'deconvnet' with kernel {kernel}", (stride * kernel,) * 2, stride)
        if size is not None and min(size) < stride * kernel:
            raise SizeError(
                f"data.size {list(size)} does not fit decoder 'deconvnet': with kernel {kernel} it needs at least"
                f" {[stride * kernel] * 2}; a kernel of {max(min(size) // stride, 1)} would fit",
                fitting_size(size, (stride * kernel,) * 2, stride),
            )
        self.narrow = nn.Sequential(
            nn.Conv2d(channels, hidden, kernel), nn.BatchNorm2d(hidden), nn.ReLU(inplace=True),
            layer(hidden, hidden, 1),
            nn.ConvTranspose2d(hidden, channels, kernel), nn.BatchNorm2d(channels), nn.ReLU(inplace=True),
        )  # fmt: skip

    def coarse(self, maps: Tensor) -> Tensor:
        """Through the layers that see the whole map, and back to its size."""
        out: Tensor = self.narrow(maps)
        return out
