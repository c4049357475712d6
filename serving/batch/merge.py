"""Boxes of one object seen twice become one: of overlapping tiles, and of a picture and its mirror image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serving.answers import BoxAnswer

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

SAME = 0.5
"""Intersection over union from which two boxes of one class are one object."""

CUT = 2.0
"""Pixels from a tile's border within which a box's side may be where the tile ends, not the object."""


def overlaps(a: Floats, b: Floats) -> Floats:
    """Intersection over union, (N, M), of xyxy boxes (N, 4) and (M, 4); 0 for boxes without area."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = np.clip(high - low, 0, None).prod(2)
    areas = [np.clip(x[:, 2:] - x[:, :2], 0, None).prod(1) for x in (a, b)]
    union = areas[0][:, None] + areas[1][None] - inter
    shares: Floats = np.where(inter > 0, inter / np.maximum(union, 1e-9), 0).astype(np.float32)
    return shares


def matches(iou: Floats, same_class: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Pairs that are each other's best partner of the same class, from SAME on."""
    shares = np.where(same_class, iou, 0)
    if not shares.size:
        return []
    best, back = shares.argmax(1), shares.argmax(0)
    rows = np.flatnonzero((back[best] == np.arange(len(best))) & (shares.max(1) >= SAME))
    return [(int(row), int(best[row])) for row in rows]


def merge_tiles(
    tiles: Sequence[tuple[int, int, int, int]], found: Sequence[BoxAnswer], size: tuple[int, int]
) -> BoxAnswer:
    """Boxes of all tiles as boxes of the picture.

    Two boxes of neighbouring tiles are one object where they agree on what both tiles see of it. Its sides are those that
    no tile cuts off, the most certain first; its score is the highest.

    Args:
        tiles: left, top, right, bottom in pixels of the picture.
        found: each tile's boxes, in pixels of the picture.
        size: (height, width) of the picture.
    """
    offsets = np.cumsum([0, *(len(answer.scores) for answer in found)])
    total = int(offsets[-1])
    if not total:
        return BoxAnswer(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    boxes = np.concatenate([answer.boxes for answer in found])
    scores = np.concatenate([answer.scores for answer in found])
    classes = np.concatenate([answer.classes for answer in found])
    owner = np.repeat(np.arange(len(tiles)), np.diff(offsets))
    group = _groups(tiles, found, offsets, total)
    free = _free_sides(boxes, np.asarray(tiles, np.float32)[owner], size)
    merged = [_fused(boxes[rows], scores[rows], free[rows]) for rows in group]
    first = [rows[np.argmax(scores[rows])] for rows in group]
    order = np.argsort(-scores[first], kind="stable")
    kept = np.asarray(first)[order]
    return BoxAnswer(np.stack(merged)[order].astype(np.float32), scores[kept], classes[kept])


def _groups(
    tiles: Sequence[tuple[int, int, int, int]], found: Sequence[BoxAnswer], offsets: Ints, total: int
) -> list[Ints]:
    """Rows of each object."""
    leader = np.arange(total)

    def root(row: int) -> int:
        while leader[row] != row:
            row = int(leader[row])
        return row

    corners = np.asarray(tiles, np.float32)
    for one in range(len(tiles)):
        if not len(found[one].scores):
            continue
        low = np.maximum(corners[one, :2], corners[one + 1 :, :2])
        high = np.minimum(corners[one, 2:], corners[one + 1 :, 2:])
        for other in (one + 1 + np.flatnonzero((high > low).all(1))).tolist():
            if not len(found[other].scores):
                continue
            both = np.concatenate([low[other - one - 1], high[other - one - 1]])
            iou = overlaps(_within(found[one].boxes, both), _within(found[other].boxes, both))
            for a, b in matches(iou, found[one].classes[:, None] == found[other].classes[None]):
                leader[root(int(offsets[other]) + b)] = root(int(offsets[one]) + a)
    roots = np.asarray([root(row) for row in range(total)])
    order = np.argsort(roots, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(roots[order])) + 1)


def _within(boxes: Floats, window: Floats) -> Floats:
    """What of each box lies in a window (xyxy)."""
    clipped: Floats = np.clip(boxes, np.tile(window[:2], 2), np.tile(window[2:], 2))
    return clipped


def _free_sides(boxes: Floats, tiles: Floats, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Whether each side (N, 4) is the object's own: not where the tile ends, unless the picture ends there too."""
    picture = np.asarray([0, 0, size[1], size[0]], np.float32)
    free: NDArray[np.bool_] = (np.abs(boxes - tiles) > CUT) | (tiles == picture)
    return free


def _fused(boxes: Floats, scores: Floats, free: NDArray[np.bool_]) -> Floats:
    """One box (4,) of several (N, 4) of one object."""
    out = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])
    for side in range(4):
        rows = np.flatnonzero(free[:, side])
        if len(rows):
            out[side] = boxes[rows[np.argmax(scores[rows])], side]
    return out


def average_boxes(
    first: tuple[Floats, Floats, Ints], second: tuple[Floats, Floats, Ints]
) -> tuple[Floats, Floats, Ints]:
    """Boxes (K, 4), scores (K,) and classes (K,) of two views as the K best of both.

    Of an object in both views the sides are averaged by score, and its score is the mean; one that a single view shows
    keeps half of its score (Solovyev et al. 2021, weighted boxes fusion).
    """
    (boxes, scores, classes), (others, their_scores, their_classes) = first, second
    pairs = matches(overlaps(boxes, others), classes[:, None] == their_classes[None])
    mine, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    weight, other = scores[mine][:, None], their_scores[theirs][:, None]
    fused = (boxes[mine] * weight + others[theirs] * other) / np.maximum(weight + other, 1e-9)
    single, lonely = np.delete(np.arange(len(boxes)), mine), np.delete(np.arange(len(others)), theirs)
    all_boxes = np.concatenate([fused, boxes[single], others[lonely]])
    all_scores = np.concatenate([(scores[mine] + their_scores[theirs]), scores[single], their_scores[lonely]]) / 2
    all_classes = np.concatenate([classes[mine], classes[single], their_classes[lonely]])
    order = np.argsort(-all_scores, kind="stable")[: len(boxes)]
    return all_boxes[order].astype(np.float32), all_scores[order].astype(np.float32), all_classes[order]
