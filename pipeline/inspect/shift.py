"""How far an answer moves when the picture is shifted: masks and boxes should move along, image labels should stay.

Strided layers break this (Zhang 2019, https://arxiv.org/abs/1904.11486): a shift by a multiple of the coarsest stride moves
the maps by whole positions, any other changes what the strides pick out.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from pipeline.imaging.decode import decode_bytes
from pipeline.imaging.geometry import FILL
from pipeline.inspect.look import Look, NotHereError
from pipeline.inspect.page import Picture, Section, Table

SHIFTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Pixels to the right and down."""
SURE = 0.3
"""Boxes with lower scores are not followed."""

Answers = dict[str, Any]


def look_at_shifts(look: Look) -> Section:
    """A row per head and figure, a column per shift; the same as curves."""
    subject = look.subject
    if not subject.spaces:
        raise NotHereError("needs heads: --ckpt")
    images = subject.batch([pixels for _, pixels in look.images])
    shifts = [shift for shift in SHIFTS if shift < min((side for side in subject.size if side > 1), default=0) // 2]
    plain = answers(look, images)
    table: dict[str, dict[int, float]] = {}
    for shift in shifts:
        moved = answers(look, moved_images(images, shift))
        for head, prediction in plain.items():
            for figure, value in movement(prediction, moved[head], shift, subject.size).items():
                table.setdefault(f"{head}: {figure}", {})[shift] = value
    if not table:
        raise NotHereError("needs heads that answer with labels, boxes or masks")
    lead = (
        f"{len(images)} pictures moved right and down by as many pixels, the rest grey. Masks and boxes should move along:"
        " `agreement` is the share of pixels of the common part with the same class, `IoU` the mean overlap of each sure box"
        " that is not moved over the border with its nearest of the same class after moving it back (0 where none is left)."
        " Labels should stay: `same class`"
        " is the share of pictures with the same likeliest class, `change` the mean largest change of a probability."
    )
    rows = [(name, *(round(values[shift], 4) for shift in shifts)) for name, values in table.items()]
    header = ("shift in pixels", *(str(shift) for shift in shifts))
    picture = Picture(
        "shift", _chart(table, shifts), "The same as curves; 1 is a network that the shift does not touch"
    )
    return Section("Shifts", lead, [picture], [Table(header, rows)], table)


def answers(look: Look, images: Tensor) -> Answers:
    """Every head's final predictions of uint8 images (B, C, H, W), joined over batches of eight."""
    network = look.subject.network
    parts: dict[str, list[Any]] = {}
    with torch.inference_mode():
        for at in range(0, len(images), 8):
            for name, prediction in network.decode(network(images[at : at + 8])).items():
                parts.setdefault(name, []).append(prediction)
    return {
        name: type(found[0])(*(torch.cat(column) for column in zip(*found, strict=True)))
        for name, found in parts.items()
    }


def moved_images(images: Tensor, shift: int) -> Tensor:
    """The images (B, C, H, W) `shift` pixels to the right and down, what comes in grey; a signal of one row only right."""
    out = torch.full_like(images, FILL)
    down = shift if images.shape[2] > 1 else 0
    out[:, :, down:, shift:] = images[:, :, : images.shape[2] - down, :-shift]
    return out


def movement(plain: Any, moved: Any, shift: int, size: tuple[int, int]) -> dict[str, float]:
    """How a head's predictions for shifted images of (height, width) compare with the plain ones; NaN where it found nothing."""
    if "mask" in plain._fields:
        same = plain.mask[:, :-shift, :-shift] == moved.mask[:, shift:, shift:]
        return {"agreement": float(same.float().mean())}
    if "boxes" in plain._fields:
        return {"IoU": _follow(plain, moved, shift, size)}
    if "probabilities" not in plain._fields or plain.probabilities.ndim != 2:
        return {}
    p, q = plain.probabilities, moved.probabilities
    return {
        "same class": float((p.argmax(1) == q.argmax(1)).float().mean()),
        "change": float((p - q).abs().amax(1).mean()),
    }


def _follow(plain: Any, moved: Any, shift: int, size: tuple[int, int]) -> float:
    """Mean IoU of each sure box that stays inside with its nearest of the same class in the shifted image, moved back."""
    shares: list[float] = []
    far = torch.tensor([size[1], size[0]], dtype=torch.float32) - shift
    for boxes, scores, classes, others, their_scores, their_classes in zip(*plain, *moved, strict=True):
        # A box over the border is cut there: its remains say nothing of the network.
        sure = (scores >= SURE) & (boxes[:, 2:] <= far + 1).all(1)
        theirs = their_scores >= SURE / 2
        overlap = box_iou(boxes[sure].float(), others[theirs].float() - shift)
        overlap = overlap * (classes[sure][:, None] == their_classes[theirs][None])
        shares += [float(row.max()) if len(row) else 0.0 for row in overlap]
    return sum(shares) / len(shares) if shares else float("nan")


def _chart(table: dict[str, dict[int, float]], shifts: Sequence[int]) -> NDArray[np.uint8]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for name, values in table.items():
        axes.plot(shifts, [values[shift] for shift in shifts], marker="o", label=name)
    axes.set(xlabel="shift in pixels", ylim=(-0.02, 1.02), xticks=list(shifts))
    axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return decode_bytes(buffer.getvalue(), "chart")[0]
