"""The stem of the stacked hourglass network, and its residual module: maps at strides 2 and 4 for the decoder."""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.backbones.build import Backbone, register_backbone
from pipeline.backbones.layers import scaled
from pipeline.backbones.traits import Features, Natural, Traits


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with the norms first (He et al. 2016, https://arxiv.org/abs/1603.05027): (B, in, H, W) to (B, out, H, W)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        half = max(channels_out // 2, 1)
        self.layers = nn.Sequential(
            nn.BatchNorm2d(channels_in), nn.ReLU(), nn.Conv2d(channels_in, half, 1),
            nn.BatchNorm2d(half), nn.ReLU(), nn.Conv2d(half, half, 3, padding=1),
            nn.BatchNorm2d(half), nn.ReLU(), nn.Conv2d(half, channels_out, 1),
        )  # fmt: skip
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps of the output's channels."""
        out: Tensor = self.layers(x) + self.shortcut(x)
        return out


class StemBody(nn.Module):
    """7x7 of stride 2, a module, 2x2 pooling, two modules."""

    def __init__(self, in_channels: int, width: float) -> None:
        super().__init__()
        w1, w2, w3 = scaled(64, width), scaled(128, width), scaled(256, width)
        self.first = nn.Sequential(
            nn.Conv2d(in_channels, w1, 7, 2, 3), nn.BatchNorm2d(w1), nn.ReLU(inplace=True), Bottleneck(w1, w2)
        )
        self.second = nn.Sequential(nn.MaxPool2d(2), Bottleneck(w2, w2), Bottleneck(w2, w3))
        self.channels = (w2, w3, 0, 0, 0)

    def forward(self, images: Tensor) -> Features:
        """Maps at strides 2 and 4."""
        fine = self.first(images)
        return Features([fine, self.second(fine)])


@register_backbone("hourglass", Natural((256, 256)))
def hourglass(in_channels: int, width: float = 1.0) -> Backbone:
    """What stands before the hourglasses (Newell et al. 2016, https://arxiv.org/abs/1603.06937, section 3).

    The hourglasses are the segmentation head's `decoder: hourglass`, which also takes any other backbone's map at
    stride 4.

    Args:
        in_channels: channels of the image.
        width: factor on all widths.
    """
    body = StemBody(in_channels, width)
    return Backbone(body, body.channels, "hourglass", ("first", "second"), Traits(multiple=4))
