"""YOLO v1's first twenty convolutions, those trained on image labels before detection."""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.backbones.build import Backbone, register_backbone
from pipeline.backbones.layers import scaled
from pipeline.backbones.traits import Features, Natural, Traits

STAGES: tuple[tuple[tuple[int, int], ...], ...] = (
    ((64, 7),),
    ((192, 3),),
    ((128, 1), (256, 3), (256, 1), (512, 3)),
    (*((256, 1), (512, 3)) * 4, (512, 1), (1024, 3)),
    ((512, 1), (1024, 3)) * 2,
)
"""Figure 3 of the paper: (channels, kernel) of the convolutions between the poolings; the first has stride 2."""


def leaky_convolution(channels_in: int, channels_out: int, kernel: int, stride: int, norm: bool) -> nn.Sequential:
    """A padded convolution, batch norm where asked for, and the paper's leaky ReLU of slope 0.1."""
    layers: list[nn.Module] = [nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=not norm)]
    layers += [nn.BatchNorm2d(channels_out)] if norm else []
    return nn.Sequential(*layers, nn.LeakyReLU(0.1, inplace=True))


class YoloBody(nn.Module):
    """Five stages with 2x2 poolings between them."""

    def __init__(self, in_channels: int, norm: bool, width: float) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        channels, widths = in_channels, []
        for plan in STAGES:
            layers = []
            for wanted, kernel in plan:
                layers.append(leaky_convolution(channels, scaled(wanted, width), kernel, 2 if kernel == 7 else 1, norm))
                channels = scaled(wanted, width)
            self.stages.append(nn.Sequential(*layers))
            widths.append(channels)
        self.channels = tuple(widths)
        self.pool = nn.MaxPool2d(2)

    def forward(self, images: Tensor) -> Features:
        """Maps at strides 2 to 32."""
        maps: list[Tensor] = []
        for stage in self.stages:
            maps.append(stage(self.pool(maps[-1]) if maps else images))
        return Features(maps)


@register_backbone("yolo-v1", Natural((448, 448)))
def yolo_v1(in_channels: int, batch_norm: bool = False, width: float = 1.0) -> Backbone:
    """YOLO's network (Redmon et al. 2016, https://arxiv.org/abs/1506.02640) without its last four convolutions.

    Those and the two fully connected layers are the head's, `kind: yolo-v1`.

    Args:
        in_channels: channels of the image.
        batch_norm: batch norm after each convolution, which the paper did not have.
        width: factor on all widths.
    """
    body = YoloBody(in_channels, batch_norm, width)
    return Backbone(body, body.channels, "yolo-v1", tuple(f"stages.{i}" for i in range(len(STAGES))), Traits())
