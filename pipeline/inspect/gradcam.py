"""Grad-CAM per head (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391), by the library pytorch-grad-cam.

Boxes and masks are answers of a place: averaging their gradient over all places would paint whatever looks alike, so
theirs is not averaged (HiResCAM, Draelos and Carin 2020, https://arxiv.org/abs/2011.08891).

What is explained: of image labels the logit of the likeliest class; of boxes the logit of the surest box's score; of a
mask the summed logits, over its own pixels, of the class that covers most besides the background.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.imaging.draw import sheet, write_text
from pipeline.inspect.colours import enlarged, overlay
from pipeline.inspect.fields import channels_first
from pipeline.inspect.layers import captured
from pipeline.inspect.look import Look, NotHereError
from pipeline.inspect.page import Picture, Section
from pipeline.labels import LabelSpace
from tasks.network import VisionNetwork

Pixels = NDArray[np.uint8]
PLACE_STRIDE = 8
"""Boxes and masks are explained by the coarsest stage of at most this stride: a coarser one tells no place."""


class Explained(nn.Module):
    """A network as the library wants it: images to one score per image (B,), which is what the maps explain.

    Args:
        network: in evaluation mode.
        head: the head whose answer is explained.
    """

    def __init__(self, network: VisionNetwork, head: str) -> None:
        super().__init__()
        self.network, self.head = network, head
        self.told: list[str] = []

    def forward(self, images: Tensor) -> Tensor:
        """Pixels (B, C, H, W) to scores; `told` names what each stands for."""
        raw = self.network(images)[self.head]
        head = self.network.named_heads()[self.head]
        scores, self.told = explain(raw, head.decode(raw), head.space)
        return scores


def explain(raw: Any, prediction: Any, space: LabelSpace) -> tuple[Tensor, list[str]]:
    """One score per image that carries a gradient, and what it stands for.

    `raw` is the head's own output: its logits are taken where they have the answer's shape, since probabilities near 1
    have no gradient left; else the logit of the probability.
    """
    if "scores" in prediction._fields:
        names = [space.names[int(kind)] for kind in prediction.classes[:, 0]]
        sure = prediction.scores[:, 0]
        return _logit(sure), [f"{name} {p:.2f}" for name, p in zip(names, sure.tolist(), strict=True)]
    if "probabilities" not in prediction._fields:
        raise NotHereError("has no answer that Grad-CAM could explain")
    p = prediction.probabilities
    own = getattr(raw, "logits", raw)
    logits = own if isinstance(own, Tensor) and own.shape == p.shape else _logit(p)
    if p.ndim == 2:
        best = p.argmax(1)
        names = [f"{space.names[int(i)]} {p:.2f}" for i, p in zip(best, p.amax(1).tolist(), strict=True)]
        return logits.gather(1, best[:, None])[:, 0], names
    chosen = p.argmax(1)
    scores, names = [], []
    for n, mask in enumerate(chosen):
        counts = torch.bincount(mask.flatten(), minlength=p.shape[1])
        foreground = counts[1:] if int(counts[1:].sum()) else counts
        kind = int(foreground.argmax()) + (1 if int(counts[1:].sum()) else 0)
        scores.append((logits[n, kind] * (mask == kind)).sum())
        names.append(f"{space.names[kind]} {int(counts[kind]) / mask.numel():.0%}")
    return torch.stack(scores), names


def _logit(p: Tensor) -> Tensor:
    return torch.logit(p.float(), eps=1e-6)


def cam_maps(
    network: VisionNetwork, head: str, layer: nn.Module, images: Tensor
) -> tuple[NDArray[np.float32], list[str]]:
    """Maps float32 (B, H, W) of 0 to 1 at the images' size, and what each explains.

    `layer` gives the maps that are weighted; `images` are pixels (B, C, H, W) of any dtype.
    """
    from pytorch_grad_cam import GradCAM, HiResCAM

    model = Explained(network, head)
    kind = GradCAM if network.named_heads()[head].space.kind in {"classes", "multilabel"} else HiResCAM
    given = images.float().requires_grad_()  # the weights are frozen: gradients start at the pixels
    size = (images.shape[2], images.shape[3])

    def arranged(maps: Tensor) -> Tensor:
        return channels_first(maps, size)

    with torch.enable_grad(), kind(model=model, target_layers=[layer], reshape_transform=arranged) as cam:
        found = cam(input_tensor=given, targets=[_itself] * len(images))
    network.zero_grad(set_to_none=True)
    return np.nan_to_num(np.asarray(found, np.float32)), model.told


def _itself(score: Tensor) -> Tensor:
    return score


def look_at_answers(look: Look) -> Section:
    """A row per image: the image, then each head's map over it."""
    subject, count = look.subject, min(look.wish.count, 8)
    heads = [name for name, head in subject.network.named_heads().items() if _explained(head)]
    if not heads:
        raise NotHereError("needs heads: --ckpt")
    names = [name for name, _ in look.images[:count]]
    images = [pixels for _, pixels in look.images[:count]]
    batch = subject.batch(images)
    layers = {head: found for head in heads if (found := _target_layer(look, head, batch)) is not None}
    if not layers:
        raise NotHereError(f"needs a stage that reaches {', '.join(heads)} by a gradient: name one by --layers")
    columns, figures = [], {}
    for head, (path, layer) in layers.items():
        maps, told = cam_maps(subject.network, head, layer, batch)
        columns.append(
            [_tile(image, values, f"{head}: {what}") for image, values, what in zip(images, maps, told, strict=True)]
        )
        figures[head] = {"layer": path, "explained": dict(zip(names, told, strict=True))}
    rows = [
        tile for i, image in enumerate(images) for tile in (enlarged(image, 224), *(column[i] for column in columns))
    ]
    lead = (
        "Where each head's answer comes from: channels of a layer weighted by the gradient of what the head is surest of"
        " (image label: the likeliest class; boxes: the surest box; mask: the class that covers most), red where they"
        " speak for it; for boxes and masks the gradient is taken place by place (HiResCAM). Layers: "
        + ", ".join(f"{head} {path}" for head, (path, _) in layers.items())
        + ("." if len(layers) == len(heads) else f". {', '.join(h for h in heads if h not in layers)}: none of these.")
    )
    return Section(
        "Grad-CAM",
        lead,
        [Picture("gradcam", sheet(rows, len(layers) + 1), "Images, and each head's map")],
        figures=figures,
    )


def _explained(head: Any) -> bool:
    return head.space.kind in {"classes", "multilabel", "boxes", "mask"}


def _target_layer(look: Look, head: str, batch: Tensor) -> tuple[str, nn.Module] | None:
    """The last of the layers asked for, or of the stages, that gives maps and that the head's answer depends on.

    Of the stages, boxes and masks take the coarsest of at most PLACE_STRIDE. None where no layer is so.
    """
    subject = look.subject
    modules = {name: subject.layer(name) for name in look.layers}
    one = batch[:1].float().requires_grad_()
    with torch.enable_grad(), captured(modules, copies=False) as held:
        score = Explained(subject.network, head)(one).sum()
        usable = [name for name, maps in held.items() if maps.ndim == 4 and maps.requires_grad]
        if not usable or not score.requires_grad:
            return None
        used = torch.autograd.grad(score, [held[name] for name in usable], allow_unused=True)
    found = [name for name, gradient in zip(usable, used, strict=True) if gradient is not None and bool(gradient.any())]
    if subject.spaces[head].kind in {"boxes", "mask"} and not look.wish.layers:
        wide = {name: channels_first(held[name], subject.size).shape[-1] for name in found}
        found = [name for name in found if wide[name] * PLACE_STRIDE >= subject.size[1]] or found
    if not found:
        return None
    return found[-1], modules[found[-1]]


def _tile(image: Pixels, values: NDArray[np.float32], text: str) -> Pixels:
    zoom = enlarged(image, 224)
    return write_text(overlay(zoom, enlarged(values, 224)), text, (4, 14))
