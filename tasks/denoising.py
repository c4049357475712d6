"""Images out of spoilt images: a second task beside others, and a start for a backbone from images without labels."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbones.build import STRIDES, Backbone, require_strides
from pipeline.errors import ConfigError
from pipeline.imaging.geometry import Letterbox
from pipeline.labels import LabelSpace
from pipeline.records import ImageTarget
from tasks.head import Head, Losses, register
from tasks.noise import Noise, fixed_draws, random_draws, spoil


class ImagePrediction(NamedTuple):
    """The mended image float32 (B, 3, H, W), 0 to 255."""

    image: Tensor


@register("denoising")
class DenoisingHead(Head):
    """A U-Net decoder to stride 2 and a sub-pixel convolution (Shi et al. 2016, https://arxiv.org/abs/1609.05158).

    It needs no labels: it is taught by the images themselves, spoilt. While training, all heads see the spoilt images;
    when measured, the others see the clean ones.

    Args:
        space: red, green and blue.
        channels: the backbone's channels at strides 2 to 32.
        backbone: checked to have maps at strides 4 to 32.
        decoder_channels: four widths from coarse to fine.
        noise: `gaussian`, `masked` (squares to be filled in) or `blind` (pixels to be told from their neighbours).
        strength: standard deviation of the noise as a share of 255, or share of squares or pixels that are spoilt.
        share: share of the images of a training batch that are spoilt, 0 to 1; the others train the other heads as they are.
        weight: of the loss.
    """

    kind = "image"
    main_metric = "removed"

    def __init__(
        self,
        space: LabelSpace,
        channels: tuple[int, ...],
        backbone: Backbone | None = None,
        decoder_channels: list[int] | None = None,
        noise: Noise = "gaussian",
        strength: float = 0.15,
        share: float = 1.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__(space)
        from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

        for name, value in (("strength", strength), ("share", share)):
            if not 0 < value <= 1:
                raise ConfigError(f"denoising: {name} is above 0 and at most 1, not {value}")
        if backbone is not None:
            require_strides(backbone, STRIDES[1:], "denoising", "'light-deep'")
        widths = decoder_channels or [96, 64, 48, 32]
        if len(widths) != 4:
            raise ConfigError(f"denoising: decoder_channels needs four widths, not {len(widths)}")
        self.decoder = UnetDecoder(
            encoder_channels=(0, *channels), decoder_channels=tuple(widths), n_blocks=4, add_center_block=False
        )
        self.paint = nn.Sequential(nn.Conv2d(widths[-1], 4 * len(space.names), 3, padding=1), nn.PixelShuffle(2))
        self.noise, self.strength, self.share, self.weight = noise, strength, share, weight

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """The image (B, 3, H, W) in units of 255 about its middle, -0.5 to 0.5."""
        painted: Tensor = self.paint(self.decoder([features[0], *features]))
        if tuple(painted.shape[-2:]) == tuple(size):
            return painted
        return F.interpolate(painted, size=size, mode="bilinear", align_corners=False)

    def spoil(self, images: Tensor, names: list[str], training: bool) -> tuple[Tensor, ImageTarget]:
        """Spoilt pixels float32 (B, C, H, W) and what was there; in training a share of the images, else all of them.

        Raises:
            ConfigError: images of other than three channels.
        """
        if images.shape[1] != len(self.space.names):
            raise ConfigError(f"denoising paints {len(self.space.names)} channels, the images have {images.shape[1]}")
        draws = random_draws() if training else fixed_draws(names)
        found = spoil(images, self.noise, self.strength, draws)
        chosen = torch.ones(len(images), dtype=torch.bool)
        if training and self.share < 1:
            chosen = torch.rand(len(images), generator=draws) < self.share
        chosen = chosen.to(images.device)
        spoilt = torch.where(chosen[:, None, None, None], found.images, images.float())
        return spoilt, ImageTarget(images, spoilt, found.asked, chosen)

    def loss(self, raw: Tensor, target: ImageTarget) -> Losses:
        """`pixel`: mean squared error where asked, as a share of the spoilt images' own, so that 1 is doing nothing."""
        keep = target.present
        mended, asked = raw[keep].float(), target.asked[keep]
        clean, spoilt = _centred(target.clean[keep]), _centred(target.spoilt[keep])
        error, own = (((x - clean) ** 2 * asked).sum() for x in (mended, spoilt))
        return {"pixel": self.weight * error / own.clamp(min=1e-6)}

    def decode(self, raw: Tensor) -> ImagePrediction:
        """Pixels."""
        return ImagePrediction(((raw.float() + 0.5) * 255).clamp(0, 255))

    def metrics(self) -> ImageMetrics:
        """How much of the error is gone."""
        return ImageMetrics()


def _centred(pixels: Tensor) -> Tensor:
    return pixels.float() / 255 - 0.5


class ImageMetrics:
    """Mean squared errors where asked, summed over images, before and after mending."""

    def __init__(self) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64)

    def reset(self) -> None:
        """Forgets everything."""
        self.sums.zero_()

    def update(self, prediction: ImagePrediction, target: ImageTarget, frames: list[Letterbox | None]) -> None:  # noqa: ARG002
        """Adds the spoilt images of a batch."""
        keep = target.present
        clean, asked = target.clean[keep].float(), target.asked[keep]
        after = ((prediction.image[keep].float() - clean) ** 2 * asked).sum()
        before = ((target.spoilt[keep] - clean) ** 2 * asked).sum()
        self.sums += torch.stack([after, before, asked.sum() * clean.shape[1]]).double().cpu()

    def compute(self) -> dict[str, float]:
        """`removed`: 1 - error after / before (1 = all mended, below 0 = made worse); `PSNR` and `PSNR_spoilt` in dB."""
        from tasks.sync import sum_over_processes

        after, before, count = sum_over_processes(self.sums).tolist()
        if count == 0 or before == 0:
            return dict.fromkeys(("removed", "PSNR"), float("nan"))
        return {
            "removed": 1 - after / before,
            "PSNR": _decibels(after / count),
            "PSNR_spoilt": _decibels(before / count),
        }

    def curves(self) -> dict[str, Any]:
        """None."""
        return {}


def _decibels(error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error of pixels 0 to 255."""
    return float(10 * torch.log10(torch.tensor(255.0**2 / max(error, 1e-10))))
