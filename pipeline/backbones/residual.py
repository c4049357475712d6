"""Plain networks beside residual ones of equal depth: the pairs of He et al., for pictures of 224 and of 32 pixels."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbones.build import Backbone, register_backbone
from pipeline.backbones.layers import he_initialised
from pipeline.backbones.traits import Features, Natural, Traits


class PairBlock(nn.Module):
    """Two 3x3 convolutions, with or without a shortcut: (B, in, H, W) to (B, out, H / stride, W / stride).

    The shortcut has no weights: every second place, and zeros for the new channels (option A of the paper), so that a
    residual network has exactly the weights of the plain one.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, shortcut: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels_out)
        self.second = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels_out)
        self.shortcut, self.stride, self.more = shortcut, stride, channels_out - channels_in

    def forward(self, x: Tensor) -> Tensor:
        """Maps of the block's output channels."""
        out: Tensor = self.second_norm(self.second(self.first_norm(self.first(x)).relu()))
        if self.shortcut:
            kept = x if self.stride == 1 else x[:, :, :: self.stride, :: self.stride]
            out = out + F.pad(kept, (0, 0, 0, 0, 0, self.more))
        return out.relu()


class PairBody(nn.Module):
    """A stem and stages of pair blocks.

    Args:
        stem: what comes before the first stage; gives `widths[0]` channels.
        widths: channels of each stage; every stage but the first halves the picture.
        blocks: blocks of each stage.
        shortcut: residual, or plain.
    """

    def __init__(self, stem: nn.Sequential, widths: tuple[int, ...], blocks: tuple[int, ...], shortcut: bool) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList()
        channels = widths[0]
        for number, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            layers = []
            for block in range(count):
                layers.append(PairBlock(channels, width, 2 if number and not block else 1, shortcut))
                channels = width
            self.stages.append(nn.Sequential(*layers))
        he_initialised(self)

    def forward(self, images: Tensor) -> Features:
        """The stem's map where it shrinks, and each stage's that lies at a stride of 2 or more."""
        maps = []
        x = images
        for layer in self.stem:
            x = layer(x)
            # What goes into the stem's pooling is the map at stride 2.
            if isinstance(layer, nn.ReLU) and x.shape[-1] < images.shape[-1]:
                maps.append(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return Features(maps[-5:] if len(maps) >= 5 else maps[1:])


def build_large(in_channels: int, *, depth: int, blocks: tuple[int, ...]) -> Backbone:
    """A plain network of the layers of ResNet-18 or -34 (He et al. 2016, https://arxiv.org/abs/1512.03385, figure 3)."""
    stem = nn.Sequential(
        nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    )
    body = PairBody(stem, (64, 128, 256, 512), blocks, shortcut=False)
    return Backbone(body, (64, 64, 128, 256, 512), f"plain{depth}", ("stem", *(f"stages.{i}" for i in range(4))))


def build_small(in_channels: int, *, depth: int, shortcut: bool) -> Backbone:
    """A network of 6n + 2 layers for pictures of 32 pixels (the same paper, section 4.2), with maps at strides 2 and 4."""
    stem = nn.Sequential(nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    body = PairBody(stem, (16, 32, 64), ((depth - 2) // 6,) * 3, shortcut)
    name = f"{'resnet' if shortcut else 'plain'}{depth}"
    stages = ("stem", *(f"stages.{i}" for i in range(3)))
    return Backbone(body, (32, 64, 0, 0, 0), name, stages, Traits(multiple=4))


for _depth, _blocks in ((18, (2, 2, 2, 2)), (34, (3, 4, 6, 3))):
    register_backbone(f"plain{_depth}")(partial(build_large, depth=_depth, blocks=_blocks))
for _depth in (20, 32, 44, 56, 110):
    register_backbone(f"resnet{_depth}", Natural((32, 32)))(partial(build_small, depth=_depth, shortcut=True))
    register_backbone(f"plain{_depth}", Natural((32, 32)))(partial(build_small, depth=_depth, shortcut=False))
