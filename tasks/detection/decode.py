"""From raw detection outputs to final boxes: anchor points, distances to boxes, top-k, and NMS where asked for."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class BoxPrediction(NamedTuple):
    """Boxes float32 (B, K, 4) xyxy in input pixels, scores float32 (B, K) descending, classes int64 (B, K).

    K is fixed; rows that hold nothing have score 0.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor


def anchor_points(shapes: list[tuple[int, int]], strides: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Cell centres (A, 2) in pixels, x before y, and each one's stride (A,), level by level, rows first."""
    points, sizes = [], []
    for (height, width), stride in zip(shapes, strides, strict=True):
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) * stride
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) * stride
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        points.append(torch.stack([grid_x, grid_y], -1).reshape(-1, 2))
        sizes.append(torch.full((height * width,), float(stride), device=device))
    return torch.cat(points), torch.cat(sizes)


def expected_distances(logits: Tensor) -> Tensor:
    """Mean of the distribution over bins: logits (..., 4, R) to distances (..., 4) in strides."""
    bins = torch.arange(logits.shape[-1], device=logits.device, dtype=torch.float32)
    # Not `@ bins`: a product with a vector takes ONNX Runtime five times as long.
    return (logits.float().softmax(-1) * bins).sum(-1)


def distances_to_boxes(distances: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """Left, top, right, bottom distances (..., A, 4) in strides to xyxy (..., A, 4) in pixels.

    Points (A, 2) and strides (A,), or each image's own (..., A, 2) and (..., A).
    """
    pixels = distances * strides[..., None]
    return torch.cat([points - pixels[..., :2], points + pixels[..., 2:]], -1)


def boxes_to_distances(boxes: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """Inverse of `distances_to_boxes` for xyxy (N, 4), points (N, 2) and strides (N,)."""
    return torch.cat([points - boxes[:, :2], boxes[:, 2:] - points], 1) / strides[:, None]


def rows_of(values: Tensor, rows: Tensor) -> Tensor:
    """Rows (B, K) of values (B, N, ...): (B, K, ...)."""
    batch, count = values.shape[:2]
    # One index over all images: engines copy whole rows, where `gather` looks up number by number.
    first = torch.arange(batch, device=rows.device)[:, None] * count
    picked = values.flatten(0, 1).index_select(0, (rows + first).flatten())
    return picked.reshape(batch, rows.shape[1], *values.shape[2:])


def best_points(logits: Tensor, count: int) -> Tensor:
    """Indices int64 (B, min(count, A)) of the points whose best class has the largest logits (B, A, C), best first."""
    return logits.amax(2).topk(min(count, logits.shape[1]), dim=1).indices


def best_pairs(boxes: Tensor, scores: Tensor, count: int) -> BoxPrediction:
    """The `count` best (point, class) pairs per image, without suppression.

    Boxes (B, A, 4) and probabilities (B, A, C); K = min(count, A * C).
    """
    classes = scores.shape[2]
    values, pairs = scores.flatten(1).topk(min(count, scores.shape[1] * classes), dim=1)
    rows = torch.div(pairs, classes, rounding_mode="floor")
    return BoxPrediction(rows_of(boxes, rows), values, pairs % classes)


def top_boxes(boxes: Tensor, scores: Tensor, count: int) -> BoxPrediction:
    """As `best_pairs`, of few points: the same answer, far fewer numbers to sort."""
    best = best_points(scores, count)
    return best_pairs(rows_of(boxes, best), rows_of(scores, best), count)


LEVELS, PLACES = 2048, 1 << 16
"""How many levels a unit of logit has, and how many values of one level are told apart by their place."""


def steady_order(logits: Tensor, count: int) -> Tensor:
    """Indices int64 (B, min(count, N)) of the largest logits (B, N), the first of those that are alike.

    Alike are logits of one level, 1/2048 wide (from -16 to 16): which of them is larger hangs on the last digits, in which
    two engines differ, and flat parts of a picture have many. As whole numbers they are ordered alike by all engines.
    """
    level = (logits.float().clamp(-15.9, 15.9) * LEVELS).round().to(torch.int32)
    place = torch.arange(logits.shape[1], device=logits.device, dtype=torch.int32).clamp(max=PLACES - 1)
    return (level * PLACES + (PLACES - 1 - place)).topk(min(count, logits.shape[1]), dim=1).indices


def logit(probabilities: Tensor) -> Tensor:
    """Log-odds of probabilities, at most 16 either way."""
    p = probabilities.float().clamp(1e-7, 1 - 1e-7)
    return p.log() - (1 - p).log()


def surviving(boxes: Tensor, classes: Tensor, threshold: float, scores: Tensor | None = None) -> Tensor:
    """Which boxes xyxy (B, K, 4) non-maximum suppression per class leaves: float (B, K), 1 or 0.

    Boxes of unlike images or classes are moved far apart, so one pass over all of them serves (and exports with a
    dynamic batch). Without scores (B, K) the first are the best.
    """
    from torchvision.ops import nms

    batch, count = classes.shape
    if scores is None:
        scores = torch.arange(count, 0, -1, device=boxes.device, dtype=torch.float32).expand(batch, -1)
    low, high = boxes.detach().min(), boxes.detach().max()
    group = torch.arange(batch, device=boxes.device)[:, None] * (classes.max() + 1) + classes
    moved = (boxes - low + (group * (high - low + 1))[..., None]).reshape(-1, 4)
    keep = nms(moved.float(), scores.reshape(-1).float(), threshold)
    alive = torch.zeros(batch * count, device=boxes.device, dtype=boxes.dtype).index_fill(0, keep, 1.0)
    return alive.reshape(batch, count)


def suppress(prediction: BoxPrediction, threshold: float) -> BoxPrediction:
    """Per-class non-maximum suppression of a batch in one call; suppressed rows get score 0 and go last."""
    boxes, scores, classes = prediction
    values, order = (scores * surviving(boxes, classes, threshold, scores)).sort(dim=1, descending=True)
    return BoxPrediction(rows_of(boxes, order), values, rows_of(classes, order))
