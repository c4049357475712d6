"""Fully convolutional networks: FCN-32s, 16s and 8s; on a dilated backbone, its coarse map enlarged."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbones.build import Backbone
from pipeline.errors import ConfigError
from tasks.decoders.registry import Decoder, register_decoder


def bilinear_kernel(factor: int) -> Tensor:
    """The kernel (2 factor, 2 factor) by which a transposed convolution of stride `factor` enlarges bilinearly."""
    place = torch.arange(2 * factor, dtype=torch.float32)
    weight = 1 - ((place + 0.5) / factor - 1).abs()
    return weight[:, None] * weight[None, :]


class Enlarge(nn.Module):
    """Scores (B, C, H, W) to (B, C, factor H, factor W): bilinear, or learned from bilinear on (section 3.3)."""

    def __init__(self, classes: int, factor: int, learned: bool) -> None:
        super().__init__()
        self.factor = factor
        self.layer: nn.ConvTranspose2d | None = None
        if learned and factor > 1:
            self.layer = nn.ConvTranspose2d(classes, classes, 2 * factor, factor, factor // 2, bias=False)
            with torch.no_grad():
                self.layer.weight.zero_()
                self.layer.weight[range(classes), range(classes)] = bilinear_kernel(factor)

    def forward(self, scores: Tensor) -> Tensor:
        """The enlarged scores."""
        if self.factor == 1:
            return scores
        if self.layer is not None:
            out: Tensor = self.layer(scores)
            return out
        return F.interpolate(scores, scale_factor=float(self.factor), mode="bilinear", align_corners=False)


@register_decoder("fcn")
class FcnDecoder(Decoder):
    """Scores of the coarsest map, enlarged and added to those of finer maps (Long et al. 2015, arXiv 1411.4038).

    Args:
        backbone: whose maps it takes.
        classes: channels of the logits.
        size: unused.
        stride: 32 (FCN-32s), 16 or 8: the finest map whose scores are added.
        upsampling: `learned`, transposed convolutions that begin as bilinear, or `bilinear`. The paper learns all but the
            last.
        hidden: units of the two layers that were fully connected in VGG: 4096 as published; 0 leaves them out.
        kernel: side of the first of them: 7 as published.
        dropout: share of those units dropped while training.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        size: tuple[int, int] | None,  # noqa: ARG002
        stride: Literal[8, 16, 32] = 8,
        upsampling: Literal["learned", "bilinear"] = "learned",
        hidden: int = 0,
        kernel: int = 7,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if stride not in {8, 16, 32} or upsampling not in {"learned", "bilinear"} or kernel % 2 == 0 or hidden < 0:
            raise ConfigError(
                "decoder 'fcn' takes stride 8, 16 or 32, upsampling learned or bilinear, an odd kernel and a hidden of 0"
                f" or more; not {stride}, {upsampling!r}, {kernel} and {hidden}"
            )
        last, learned = backbone.coarsest, upsampling == "learned"
        channels, at = backbone.channels, backbone.traits.strides[last]
        self.last = last
        wide = hidden or channels[last]
        self.hidden = nn.Sequential()
        if hidden:
            self.hidden = nn.Sequential(
                nn.Conv2d(channels[last], hidden, kernel, padding=kernel // 2), nn.ReLU(inplace=True), nn.Dropout2d(dropout),
                nn.Conv2d(hidden, hidden, 1), nn.ReLU(inplace=True), nn.Dropout2d(dropout),
            )  # fmt: skip
        self.score = nn.Conv2d(wide, classes, 1)
        self.skips: list[int] = []
        self.skip_scores, self.enlarge = nn.ModuleList(), nn.ModuleList()
        for finer in (16, 8):
            if not stride <= finer < at or finer not in backbone.present:
                continue
            level = max(i for i, s in enumerate(backbone.traits.strides) if s == finer and channels[i])
            self.skips.append(level)
            skip = nn.Conv2d(channels[level], classes, 1)
            # As published: the sum begins as the coarser network's answer.
            nn.init.zeros_(skip.weight)
            self.skip_scores.append(skip)
            self.enlarge.append(Enlarge(classes, at // finer, learned))
            at = finer
        self.enlarge.append(Enlarge(classes, at, learned))

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> list[Tensor]:  # noqa: ARG002
        """Logits at the input's resolution."""
        scores = self.score(self.hidden(features[self.last]))
        for level, skip, enlarge in zip(self.skips, self.skip_scores, self.enlarge, strict=False):
            scores = enlarge(scores) + skip(features[level])
        return [self.enlarge[-1](scores)]
