"""Task-aligned assignment: which anchor points answer for which boxes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Assignment(NamedTuple):
    """Per anchor point: target scores float32 (B, A, C), target boxes float32 (B, A, 4) in pixels, taken bool (B, A)."""

    scores: Tensor
    boxes: Tensor
    taken: Tensor


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU (B, M, A) of xyxy boxes (B, M, 4) with xyxy boxes (B, A, 4)."""
    low = torch.maximum(boxes[:, :, None, :2], others[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], others[:, None, :, 2:])
    inter = (high - low).clamp(min=0).prod(-1)
    area = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
    other_area = (others[..., 2:] - others[..., :2]).clamp(min=0).prod(-1)
    return inter / (area[:, :, None] + other_area[:, None] - inter).clamp(min=1e-9)


@torch.no_grad()
def assign(
    scores: Tensor,
    boxes: Tensor,
    points: Tensor,
    strides: Tensor,
    wanted: Tensor,
    classes: Tensor,
    topk: int,
    alpha: float = 0.5,
    beta: float = 6.0,
) -> Assignment:
    """Task-aligned assignment (Feng et al. 2021, TOOD, https://arxiv.org/abs/2108.07755).

    A box is answered for by the `topk` anchor points inside it with the highest score^alpha * IoU^beta; a point
    claimed twice goes to the box it overlaps most. Target scores are that alignment, scaled so that each box's best
    point aims at its best IoU. With `topk` 1 each box has one point: the one-to-one branch of YOLOv10.

    Args:
        scores: class probabilities (B, A, C).
        boxes: predicted xyxy (B, A, 4), pixels.
        points: anchor points (A, 2), pixels.
        strides: of each point (A,), pixels. Boxes smaller than a stride still claim points within one stride.
        wanted: labelled boxes (B, M, 4), pixels.
        classes: their classes int64 (B, M); -1 pads.
        topk: points per box.
        alpha: weight of the score.
        beta: weight of the IoU.
    """
    batch, anchors, count = scores.shape
    valid = classes >= 0
    if wanted.shape[1] == 0:
        empty = torch.zeros(batch, anchors, 4, device=boxes.device)
        return Assignment(
            torch.zeros_like(scores), empty, torch.zeros(batch, anchors, dtype=torch.bool, device=boxes.device)
        )
    inside = _points_inside(points, strides, wanted) & valid[:, :, None]
    iou = pairwise_iou(wanted, boxes)
    own = scores.transpose(1, 2).gather(1, classes.clamp(min=0)[:, :, None].expand(-1, -1, anchors))
    align = own.pow(alpha) * iou.pow(beta) * inside
    # Nearest points first where nothing aligns yet, so that every box always has a candidate.
    best = (align + 1e-9 * inside * (1 + own)).topk(min(topk, anchors), dim=2)
    chosen = torch.zeros_like(inside).scatter_(2, best.indices, best.values > 0) & inside
    # A point claimed by several boxes goes to the one it overlaps most.
    rivals = (iou + 1e-6).where(chosen, iou.new_full((), -1.0))
    owner = rivals.argmax(1)
    chosen &= torch.arange(wanted.shape[1], device=boxes.device)[None, :, None] == owner[:, None, :]
    taken = chosen.any(1)
    align, best_iou = align * chosen, iou * chosen
    scale = best_iou.amax(2, keepdim=True) / align.amax(2, keepdim=True).clamp(min=1e-9)
    strength = (align * scale).amax(1) * taken
    target_boxes = wanted.gather(1, owner[..., None].expand(-1, -1, 4))
    target_classes = classes.gather(1, owner).clamp(min=0)
    target_scores = torch.zeros(batch, anchors, count, device=scores.device)
    target_scores.scatter_(2, target_classes[..., None], strength[..., None].to(target_scores.dtype))
    return Assignment(target_scores, target_boxes, taken)


def _points_inside(points: Tensor, strides: Tensor, wanted: Tensor) -> Tensor:
    """Bool (B, M, A): the point lies in the box, or in the square of one stride about the centre of a small box."""
    low = points - wanted[:, :, None, :2]
    high = wanted[:, :, None, 2:] - points
    inside = torch.cat([low, high], -1).amin(-1) > 0
    centre = (wanted[..., :2] + wanted[..., 2:]) / 2
    close = (points - centre[:, :, None]).abs().amax(-1) < strides
    small = (wanted[..., 2:] - wanted[..., :2]).amin(-1)[..., None] < 2 * strides
    return inside | (close & small)
