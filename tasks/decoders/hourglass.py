"""Stacked hourglasses: each goes down and up again, answers, and hands its answer to the next."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbones.build import Backbone
from pipeline.backbones.hourglass import Bottleneck
from pipeline.backbones.traits import Demand
from pipeline.errors import ConfigError
from tasks.decoders.registry import Decoder, register_decoder

STRIDE = 4


class Hourglass(nn.Module):
    """Pooling and modules down `depth` levels, nearest enlargement and sums up again; (B, width, H, W) keeps its shape."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.skip = Bottleneck(width, width)
        self.down = Bottleneck(width, width)
        self.inner: nn.Module = Hourglass(depth - 1, width) if depth > 1 else Bottleneck(width, width)
        self.up = Bottleneck(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps of the same shape."""
        low = self.up(self.inner(self.down(F.max_pool2d(x, 2))))
        out: Tensor = self.skip(x) + F.interpolate(low, scale_factor=2.0, mode="nearest")
        return out


@register_decoder("hourglass")
class HourglassDecoder(Decoder):
    """Stacked hourglasses on the map at stride 4 (Newell et al. 2016, https://arxiv.org/abs/1603.06937).

    Every hourglass gives logits, and each is trained (intermediate supervision); the last one's are the answer.

    Args:
        backbone: one with a map at stride 4; as published `hourglass`.
        classes: channels of the logits.
        size: (height, width) of the input, which the poolings must divide.
        stacks: hourglasses, 8 as published.
        depth: poolings in each, 4 as published.
        width: channels, 256 as published.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        size: tuple[int, int] | None,
        stacks: int = 2,
        depth: int = 4,
        width: int = 256,
    ) -> None:
        super().__init__()
        if stacks < 1 or depth < 1 or width < 2:
            raise ConfigError(
                "decoder 'hourglass' takes stacks and depth of 1 or more and a width of 2 or more,"
                f" not {stacks}, {depth} and {width}"
            )
        if STRIDE not in backbone.present:
            raise ConfigError(
                f"decoder 'hourglass' needs a map at stride {STRIDE}; backbone {backbone.name!r} has them at"
                f" {backbone.present}"
            )
        unit = STRIDE * 2**depth
        self.demand = Demand(f"decoder 'hourglass' of depth {depth}", (unit, unit), unit)
        if size is not None:
            self.demand.check(size)
        self.level = max(i for i, s in enumerate(backbone.traits.strides) if s == STRIDE and backbone.channels[i])
        channels = backbone.channels[self.level]
        self.enter = nn.Identity() if channels == width else nn.Conv2d(channels, width, 1)
        self.hourglasses = nn.ModuleList(Hourglass(depth, width) for _ in range(stacks))
        self.after = nn.ModuleList(
            nn.Sequential(
                Bottleneck(width, width), nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
            )
            for _ in range(stacks)
        )
        self.scores = nn.ModuleList(nn.Conv2d(width, classes, 1) for _ in range(stacks))
        self.back = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(stacks - 1))
        self.scores_back = nn.ModuleList(nn.Conv2d(classes, width, 1) for _ in range(stacks - 1))

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> list[Tensor]:  # noqa: ARG002
        """Logits at stride 4 of every hourglass."""
        x = self.enter(features[self.level])
        out: list[Tensor] = []
        for number, (hourglass, after, score) in enumerate(zip(self.hourglasses, self.after, self.scores, strict=True)):
            seen = after(hourglass(x))
            out.append(score(seen))
            if number < len(self.back):
                x = x + self.back[number](seen) + self.scores_back[number](out[-1])
        return out
