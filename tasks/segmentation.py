"""Semantic masks: a decoder, a light U-Net's or another, on the shared features; cross-entropy, focal, Dice, Lovász; IoU at full size."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbones.build import STRIDES, Backbone, require_strides
from pipeline.errors import ConfigError
from pipeline.imaging.geometry import Letterbox
from pipeline.labels import IGNORE_INDEX, LabelSpace
from pipeline.records import MaskTarget
from tasks.classification import class_weight_tensor, confusion
from tasks.decoders.registry import DEFAULT, SMP, build_decoder
from tasks.head import Head, Losses, register


class MaskPrediction(NamedTuple):
    """Mask uint8 (B, H, W) of class indices and probabilities float32 (B, C, H, W), in input pixels."""

    mask: Tensor
    probabilities: Tensor


class RawMask(NamedTuple):
    """Logits (B, C, H, W) at the input's size, and those of earlier stages that are trained beside them."""

    logits: Tensor
    beside: list[Tensor]


@register("segmentation")
class SegmentationHead(Head):
    """A decoder and logits per pixel, enlarged to the input's size.

    The default is a light U-Net's decoder, for speed; `smp-unet` is smp's (after Ronneberger et al. 2015) and a 1x1
    convolution, for the finest outlines.

    Args:
        space: the mask's classes.
        channels: the backbone's channels at strides 2 to 32.
        backbone: what the decoders of `tasks/decoders` are built for.
        size: the input's (height, width), where it is known.
        decoder: `smp-unet`, or one of `tasks/decoders`: `light-unet`, `fcn`, `unet`, `segnet`, `deconvnet`, `hourglass`.
        decoder_options: that decoder's own arguments; `smp-unet` has none.
        decoder_channels: widths of `smp-unet` from coarse to fine; four give logits at stride 2, five at stride 1.
        loss: `cross_entropy` or `focal`, per pixel.
        dice: weight of the soft Dice loss added to it (Milletari et al. 2016), >= 0.
        lovasz: weight of the Lovász-softmax loss added to it (Berman et al. 2018), >= 0.
        class_weights: `balanced`, one weight a class, or None; for the loss per pixel.
        focal_gamma: how much focal loss looks away from easy pixels.
    """

    kind = "mask"
    main_metric = "mIoU"

    def __init__(
        self,
        space: LabelSpace,
        channels: tuple[int, ...],
        backbone: Backbone | None = None,
        size: tuple[int, int] | None = None,
        decoder: str = DEFAULT,
        decoder_options: dict[str, Any] | None = None,
        decoder_channels: list[int] | None = None,
        loss: Literal["cross_entropy", "focal"] = "cross_entropy",
        dice: float = 1.0,
        lovasz: float = 0.0,
        class_weights: Literal["balanced"] | list[float] | None = None,
        focal_gamma: float = 2.0,
    ) -> None:
        super().__init__(space)
        from segmentation_models_pytorch.losses import LovaszLoss

        self.decoder: nn.Module
        if decoder_channels and decoder != SMP:
            raise ConfigError(
                f"decoder_channels are the widths of decoder {SMP!r}, not of {decoder!r}: add decoder: {SMP}"
            )
        if decoder == SMP:
            if decoder_options:
                raise ConfigError(f"decoder {SMP!r} has no decoder_options; its widths are decoder_channels")
            self.decoder, width = smp_unet(channels, decoder_channels, backbone)
            self.classifier: nn.Module | None = nn.Conv2d(width, len(space.names), 1)
        else:
            built = build_decoder(decoder, backbone, len(space.names), size, decoder_options or {})
            self.decoder = built
            self.classifier, self.demand = None, built.demand
        self.focal_gamma = focal_gamma if loss == "focal" else 0.0
        self.dice, self.lovasz = dice, lovasz
        self.lovasz_loss = LovaszLoss(mode="multiclass", ignore_index=IGNORE_INDEX)
        self.register_buffer("weights", class_weight_tensor(space, class_weights), persistent=False)

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> RawMask:
        """Logits at the input's size: the answer, and while training those that are trained beside it."""
        if self.classifier is None:
            staged: list[Tensor] = self.decoder(features, size)
        else:
            # smp's decoder expects the image first, and reads only its size.
            staged = [self.classifier(self.decoder([features[0], *features]))]
        beside = [at_size(logits, size) for logits in staged[:-1]] if self.training else []
        return RawMask(at_size(staged[-1], size), beside)

    def loss(self, raw: RawMask, target: MaskTarget) -> Losses:
        """`pixel` (cross-entropy or focal), and `dice` and `lovasz` where asked for; summed over all that is trained."""
        out: Losses = {}
        for logits in (raw.logits, *raw.beside):
            for name, value in self._terms(logits, target).items():
                out[name] = out[name] + value if name in out else value
        return out

    def _terms(self, raw: Tensor, target: MaskTarget) -> Losses:
        logits, mask = raw[target.present].float(), target.mask[target.present].long()
        weights = self.weights if isinstance(self.weights, Tensor) else None
        out = {"pixel": pixel_loss(logits, mask, weights, self.focal_gamma)}
        if self.dice > 0:
            out["dice"] = self.dice * dice_loss(logits, mask)
        if self.lovasz > 0:
            out["lovasz"] = self.lovasz * self.lovasz_loss(logits, mask)
        return out

    def decode(self, raw: RawMask) -> MaskPrediction:
        """Class per pixel, and probabilities."""
        return MaskPrediction(raw.logits.argmax(1).to(torch.uint8), pixel_softmax(raw.logits.float()))

    def metrics(self) -> MaskMetrics:
        """Macro mIoU, per class IoU and Dice, pixel accuracy."""
        return MaskMetrics(self.space)


def at_size(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (B, C, h, w) enlarged bilinearly to (height, width)."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def pixel_softmax(logits: Tensor) -> Tensor:
    """Probabilities of logits (B, C, H, W) over the classes, as `softmax(1)` gives them.

    Spelled out since ONNX Runtime moves the channels last for its own softmax: a fifth of a light network's time.
    """
    raised = torch.exp(logits - logits.amax(1, keepdim=True))
    return raised / raised.sum(1, keepdim=True)


def smp_unet(
    channels: tuple[int, ...], decoder_channels: list[int] | None, backbone: Backbone | None
) -> tuple[nn.Module, int]:
    """The U-Net decoder of smp over maps at all five strides, and its last width.

    Raises:
        ConfigError: neither four nor five widths, or a backbone whose maps do not lie at 4, 8, 16 and 32.
    """
    from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

    widths = decoder_channels or [96, 64, 48, 32]
    if len(widths) not in {4, 5}:
        raise ConfigError(f"decoder_channels needs four or five widths, not {len(widths)}")
    if backbone is not None:
        require_strides(backbone, STRIDES[1:], f"decoder {SMP!r}", "decoder: light-unet, fcn, hourglass or unet")
    decoder = UnetDecoder(
        encoder_channels=(0, *channels), decoder_channels=tuple(widths), n_blocks=len(widths), add_center_block=False
    )
    return decoder, widths[-1]


def pixel_loss(logits: Tensor, mask: Tensor, weights: Tensor | None, gamma: float = 0.0) -> Tensor:
    """Cross-entropy per pixel (focal when gamma > 0): logits (B, C, H, W), mask int64 (B, H, W); 0 when all is ignored."""
    if gamma == 0:
        total = F.cross_entropy(logits, mask, weights, ignore_index=IGNORE_INDEX, reduction="sum")
    else:
        each = F.cross_entropy(logits, mask, weights, ignore_index=IGNORE_INDEX, reduction="none")
        p = torch.exp(-F.cross_entropy(logits, mask, ignore_index=IGNORE_INDEX, reduction="none"))
        total = ((1 - p) ** gamma * each).sum()
    counted = mask != IGNORE_INDEX
    norm = counted.sum() if weights is None else weights[mask[counted]].sum()
    return total / norm.clamp(min=1)


def dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """1 - soft Dice, averaged over the classes that occur in the batch; ignored pixels count nowhere.

    Sums run over the batch and all pixels of logits (B, C, H, W) and mask int64 (B, H, W).
    """
    counted = (mask != IGNORE_INDEX).unsqueeze(1)
    p = logits.softmax(1) * counted
    wanted = F.one_hot(mask.where(counted[:, 0], 0), logits.shape[1]).movedim(-1, 1) * counted
    inter = (p * wanted).sum((0, 2, 3))
    total = p.sum((0, 2, 3)) + wanted.sum((0, 2, 3))
    occurs = wanted.sum((0, 2, 3)) > 0
    dice = 2 * inter / total.clamp(min=1e-6)
    return ((1 - dice) * occurs).sum() / occurs.sum().clamp(min=1)


class MaskMetrics:
    """One confusion matrix over all pixels, at full size where the batch carries full-size masks."""

    def __init__(self, space: LabelSpace) -> None:
        self.space = space
        self.matrix = torch.zeros(len(space.names), len(space.names), dtype=torch.float64)

    def reset(self) -> None:
        """Forgets everything."""
        self.matrix.zero_()

    def update(self, prediction: MaskPrediction, target: MaskTarget, frames: list[Letterbox | None]) -> None:
        """Adds the labelled images; predictions are moved back to the full image where its mask is at hand."""
        for i in target.present.nonzero().flatten().tolist():
            full, frame = (target.full[i] if target.full else None), frames[i]
            if full is not None and frame is not None:
                guess, wanted = full_size_mask(prediction.probabilities[i], frame), full
            else:
                guess, wanted = prediction.mask[i], target.mask[i]
            guess, wanted = guess.cpu(), wanted.cpu()
            keep = wanted != IGNORE_INDEX
            self.matrix += confusion(guess[keep], wanted[keep], len(self.space.names)).double()

    def compute(self) -> dict[str, float]:
        """MIoU over the classes that occur or are predicted, accuracy of pixels, IoU/<class>, Dice/<class>."""
        from tasks.sync import sum_over_processes

        matrix = sum_over_processes(self.matrix)
        if matrix.sum() == 0:
            return dict.fromkeys(("mIoU", "accuracy"), float("nan"))
        inter = matrix.diagonal()
        total = matrix.sum(0) + matrix.sum(1)
        union, seen = total - inter, total > 0
        iou, dice = inter / union.clamp(min=1), 2 * inter / total.clamp(min=1)
        out = {"mIoU": float(iou[seen].mean()), "accuracy": float(inter.sum() / matrix.sum())}
        for i, name in enumerate(self.space.names):
            if seen[i]:
                out |= {f"IoU/{name}": float(iou[i]), f"Dice/{name}": float(dice[i])}
        return out

    def curves(self) -> dict[str, Any]:
        """`confusion` in pixels: rows are the truth."""
        from tasks.sync import sum_over_processes

        return {"confusion": sum_over_processes(self.matrix).long().tolist(), "classes": list(self.space.names)}


def full_size_mask(probabilities: Tensor, frame: Letterbox) -> Tensor:
    """Probabilities (C, H, W) in input pixels to class indices uint8 (h, w) in the full image's pixels."""
    height, width = frame.inner
    inner = probabilities[None, :, frame.top : frame.top + height, frame.left : frame.left + width]
    full = F.interpolate(inner, size=frame.source, mode="bilinear", align_corners=False)
    return full[0].argmax(0).to(torch.uint8)
