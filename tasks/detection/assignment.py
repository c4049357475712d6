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


def pair_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU (P,) of xyxy boxes (P, 4), pair by pair."""
    low, high = torch.maximum(boxes[:, :2], others[:, :2]), torch.minimum(boxes[:, 2:], others[:, 2:])
    inter = (high - low).clamp(min=0).prod(1)
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
    other_area = (others[:, 2:] - others[:, :2]).clamp(min=0).prod(1)
    return inter / (area + other_area - inter).clamp(min=1e-9)


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

    Only the pairs of a box and a point inside it are looked at: with hundreds of small boxes they are one in hundreds.

    Args:
        scores: class probabilities (B, A, C).
        boxes: predicted xyxy (B, A, 4), pixels.
        points: anchor points (A, 2), pixels, level by level, rows first.
        strides: of each point (A,), pixels. Boxes smaller than two strides also claim points within one stride.
        wanted: labelled boxes (B, M, 4), pixels.
        classes: their classes int64 (B, M); -1 pads.
        topk: points per box.
        alpha: weight of the score.
        beta: weight of the IoU.
    """
    batch, anchors, _ = scores.shape
    most = wanted.shape[1]
    image, box, point = candidates(points, strides, wanted, classes)
    aim, kind = wanted[image, box], classes[image, box]
    iou = pair_iou(aim, boxes[image, point])
    own = scores[image, point, kind]
    align = own.pow(alpha) * iou.pow(beta)
    # Where nothing aligns yet the score decides, so that every box always has a candidate.
    first = best_of_groups(align + 1e-9 * (1 + own), image * most + box, topk)
    # A point claimed by several boxes goes to the one it overlaps most.
    kept = first[best_of_groups(iou[first], (image * anchors + point)[first], 1)]
    image, box, point, aim, kind, iou, align = (v[kept] for v in (image, box, point, aim, kind, iou, align))
    group = image * most + box
    peak_align, peak_iou = (
        torch.zeros(batch * most, device=iou.device, dtype=v.dtype).scatter_reduce(0, group, v, "amax")
        for v in (align, iou)
    )
    strength = align * (peak_iou / peak_align.clamp(min=1e-9))[group]
    target_scores = torch.zeros_like(scores)
    target_scores[image, point, kind] = strength.to(scores.dtype)
    target_boxes = torch.zeros(batch, anchors, 4, device=boxes.device, dtype=wanted.dtype)
    target_boxes[image, point] = aim
    taken = torch.zeros(batch, anchors, dtype=torch.bool, device=boxes.device)
    taken[image, point] = True
    return Assignment(target_scores, target_boxes, taken)


def best_of_groups(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest values (P,) of each group (P,), group by group."""
    by_value = values.argsort(descending=True, stable=True)
    order = by_value[groups[by_value].argsort(stable=True)]
    ordered = groups[order]
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    place = torch.arange(len(ordered), device=values.device)
    rank = place - place.where(starts, torch.zeros_like(place)).cummax(0).values if len(ordered) else place
    return order[rank < count]


def candidates(points: Tensor, strides: Tensor, wanted: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Image, box and point indices (P,) of all pairs in which the point lies in the box.

    A box narrower than two strides of a level also gets that level's points within one stride of its centre.
    """
    image, box = (classes >= 0).nonzero(as_tuple=True)
    xyxy = wanted[image, box]
    centre, half = (xyxy[:, :2] + xyxy[:, 2:]) / 2, (xyxy[:, 2:] - xyxy[:, :2]) / 2
    found: list[tuple[Tensor, Tensor]] = []
    start = 0
    levels, counts = torch.unique_consecutive(strides, return_counts=True)
    for stride, count in zip(levels.tolist(), counts.tolist(), strict=True):
        rows = points[start : start + count]
        width = int((rows[:, 1] == rows[0, 1]).sum())
        small = half.amin(1, keepdim=True) < stride
        reach = half.where(~small, half.clamp(min=stride))
        low = ((centre - reach) / stride - 0.5).floor().long()
        high = ((centre + reach) / stride - 0.5).ceil().long()
        limit = torch.tensor([width - 1, count // width - 1], device=points.device)
        low, high = low.clamp(min=0), torch.minimum(high, limit)
        side = (high - low + 1).clamp(min=0)
        owner, place = enumerate_cells(side.prod(1))
        x, y = low[owner, 0] + place % side[owner, 0], low[owner, 1] + place // side[owner, 0]
        offset = (rows[y * width + x] - centre[owner]).abs()
        close = (offset < stride).all(1) & small[owner, 0]
        keep = (offset < half[owner]).all(1) | close
        found.append((owner[keep], start + (y * width + x)[keep]))
        start += count
    owner = torch.cat([pair[0] for pair in found])
    return image[owner], box[owner], torch.cat([pair[1] for pair in found])


def enumerate_cells(sizes: Tensor) -> tuple[Tensor, Tensor]:
    """For sizes int64 (N,): which entry each cell belongs to, and its number within it; both (sum of sizes,)."""
    owner = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)
    ends = sizes.cumsum(0)
    return owner, torch.arange(len(owner), device=sizes.device) - (ends - sizes)[owner]
