"""VGG A, A-LRN, B, C, D and E: stacks of 3x3 convolutions between poolings, whose maxima's places are remembered."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from pipeline.backbones.build import Backbone, register_backbone
from pipeline.backbones.layers import ConvolutionalClassifier, he_initialised, response_norm, scaled
from pipeline.backbones.traits import Features, Published, Traits

WIDTHS = (64, 128, 256, 512, 512)

KERNELS: dict[str, tuple[tuple[int, ...], ...]] = {
    "a": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "a-lrn": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "b": ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3)),
    "c": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "d": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "e": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
}
"""Table 1 of the paper: the kernels of each stage's convolutions, by configuration."""


class VggBody(nn.Module):
    """Five stages of convolutions with ReLU, each followed by a 2x2 max pooling.

    Args:
        in_channels: channels of the image.
        kernels: per stage, the kernels of its convolutions.
        widths: per stage, its channels.
        batch_norm: batch norm after each convolution, which the paper did not have.
        lrn: a response norm after the first convolution.
    """

    def __init__(
        self,
        in_channels: int,
        kernels: tuple[tuple[int, ...], ...],
        widths: tuple[int, ...],
        batch_norm: bool = False,
        lrn: bool = False,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        channels = in_channels
        for sides, width in zip(kernels, widths, strict=True):
            layers: list[nn.Module] = []
            for side in sides:
                layers += [nn.Conv2d(channels, width, side, padding=side // 2)]
                layers += [nn.BatchNorm2d(width)] if batch_norm else []
                layers += [nn.ReLU(inplace=True)]
                channels = width
            if lrn and not self.stages:
                layers.append(response_norm())
            self.stages.append(nn.Sequential(*layers))
        self.pool = nn.MaxPool2d(2)
        he_initialised(self)

    def forward(self, images: Tensor) -> Features:
        """The five pooled maps at strides 2 to 32, and the maps before each pooling."""
        maps, before = [images], []
        for stage in self.stages:
            before.append(stage(maps[-1]))
            maps.append(self.pool(before[-1]))
        return Features(maps[1:], before)


def build_vgg(in_channels: int, batch_norm: bool = False, width: float = 1.0, *, configuration: str) -> Backbone:
    """A configuration of VGG (Simonyan and Zisserman 2015, https://arxiv.org/abs/1409.1556).

    The maps are those after each pooling, as FCN, SegNet and DeconvNet take them; smp's `vgg16` gives the ones before.

    Args:
        in_channels: channels of the image.
        batch_norm: batch norm after each convolution, without which a deep one hardly trains from scratch.
        width: factor on all widths.
        configuration: `a` to `e`, or `a-lrn`.
    """
    widths = tuple(scaled(channels, width) for channels in WIDTHS)
    body = VggBody(in_channels, KERNELS[configuration], widths, batch_norm, lrn=configuration == "a-lrn")
    units = scaled(4096, width)
    published = Published(
        lambda classes: ConvolutionalClassifier(widths[-1], 7, (units, units), classes, dropout=0.5), (224, 224)
    )
    traits = Traits(pooled=widths, published=published)
    stages = tuple(f"stages.{i}" for i in range(len(widths)))
    return Backbone(body, widths, f"vgg-{configuration}", stages, traits)


for _letter in KERNELS:
    register_backbone(f"vgg-{_letter}")(partial(build_vgg, configuration=_letter))
