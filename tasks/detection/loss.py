"""Detection losses: CIoU, distribution focal loss, and classification against task-aligned scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def complete_iou(boxes: Tensor, wanted: Tensor) -> Tensor:
    """Complete IoU (N,) of xyxy boxes (N, 4) pair by pair (Zheng et al. 2020, https://arxiv.org/abs/1911.08287).

    IoU less the centres' squared distance over the enclosing diagonal's, less a penalty for unlike aspect ratios.
    """
    low, high = torch.maximum(boxes[:, :2], wanted[:, :2]), torch.minimum(boxes[:, 2:], wanted[:, 2:])
    inter = (high - low).clamp(min=0).prod(1)
    size = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6)
    other = (wanted[:, 2:] - wanted[:, :2]).clamp(min=1e-6)
    iou = inter / (size.prod(1) + other.prod(1) - inter).clamp(min=1e-9)
    hull = torch.maximum(boxes[:, 2:], wanted[:, 2:]) - torch.minimum(boxes[:, :2], wanted[:, :2])
    diagonal = hull.square().sum(1).clamp(min=1e-9)
    distance = (boxes[:, :2] + boxes[:, 2:] - wanted[:, :2] - wanted[:, 2:]).square().sum(1) / 4
    aspect = (torch.atan(other[:, 0] / other[:, 1]) - torch.atan(size[:, 0] / size[:, 1])).square() * 4 / math.pi**2
    with torch.no_grad():
        weight = aspect / (1 - iou + aspect).clamp(min=1e-9)
    return iou - distance / diagonal - weight * aspect


def distribution_focal_loss(logits: Tensor, distances: Tensor) -> Tensor:
    """Mean over sides of the cross-entropy to the two bins around each distance (Li et al. 2020, arXiv 2006.04388).

    Args:
        logits: (N, 4, R) over R bins.
        distances: (N, 4) in strides, within 0 to R - 1; returns (N,).
    """
    bins = logits.shape[-1]
    clipped = distances.clamp(0, bins - 1 - 0.01)
    left = clipped.floor().long()
    right_weight = clipped - left
    flat = logits.flatten(0, 1).float()
    low = F.cross_entropy(flat, left.flatten(), reduction="none").view_as(distances)
    high = F.cross_entropy(flat, left.flatten() + 1, reduction="none").view_as(distances)
    return (low * (1 - right_weight) + high * right_weight).mean(1)
