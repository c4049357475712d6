"""Two views as one: mixup and cutmix, for image labels, boxes and masks alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.labels import IGNORE_INDEX
from pipeline.records import Boxes, SampleLabel

Labels = dict[str, SampleLabel]
View = tuple[NDArray[np.uint8], Labels]


@dataclass(frozen=True, slots=True)
class Mixing:
    """How often several images make one sample.

    Attributes:
        mosaic: probability of four images about a middle.
        mixup: probability that a view is blended with another.
        cutmix: probability that a rectangle of another view is set in.
        until: first epoch without any of them.
    """

    mosaic: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    until: int = 1 << 30


def mixup(first: View, second: View, rng: np.random.Generator) -> View:
    """A weighted mean of two views of one size (Zhang et al. 2017, https://arxiv.org/abs/1710.09412).

    The weight w of the first is drawn from Beta(0.2, 0.2) for image labels, which are blended likewise, and from
    Beta(8, 8) where there are boxes or masks, so that the objects of both can be seen (Zhang et al. 2019,
    https://arxiv.org/abs/1902.04103): boxes of both stand; a mask keeps what both say, and where they differ what the
    view of at least twice the other's weight says, else it is ignored. Fields that only one view is labelled for are
    left out.
    """
    placed = any(isinstance(label, Boxes) or label.ndim == 2 for label in first[1].values())
    alpha = 8.0 if placed else 0.2
    weight = float(rng.beta(alpha, alpha))
    image = np.rint(first[0] * np.float32(weight) + second[0] * np.float32(1 - weight)).astype(np.uint8)
    labels: Labels = {}
    for name in first[1].keys() & second[1].keys():
        one, other = first[1][name], second[1][name]
        if isinstance(one, Boxes) and isinstance(other, Boxes):
            labels[name] = _both(one, other)
        elif not isinstance(one, Boxes) and not isinstance(other, Boxes):
            labels[name] = _agreed(one, other, weight) if one.ndim == 2 else _blended(one, other, weight)
    return image, labels


def cutmix(first: View, second: View, rng: np.random.Generator) -> View:
    """A rectangle of the second view set into the first (Yun et al. 2019, https://arxiv.org/abs/1905.04899).

    Its share of the area is drawn from Beta(1, 1); image labels are blended by area, masks are set in like the pixels;
    boxes of the first that the rectangle mostly covers and boxes of the second mostly outside it are left out. Fields
    that only one view is labelled for are left out.
    """
    height, width = first[0].shape[:2]
    side = float(rng.beta(1.0, 1.0)) ** 0.5
    h, w = round(height * side), round(width * side)
    # The middle lies anywhere, so that the rectangle may be cut at the border.
    middle = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = max(0, middle[0] - h // 2), min(height, middle[0] - h // 2 + h)
    left, right = max(0, middle[1] - w // 2), min(width, middle[1] - w // 2 + w)
    rows, columns = slice(top, bottom), slice(left, right)
    weight = 1 - (bottom - top) * (right - left) / (height * width)
    image = first[0].copy()
    image[rows, columns] = second[0][rows, columns]
    labels: Labels = {}
    for name in first[1].keys() & second[1].keys():
        one, other = first[1][name], second[1][name]
        if isinstance(one, Boxes) and isinstance(other, Boxes):
            labels[name] = _set_in(one, other, np.asarray([left, top, right, bottom], np.float32))
        elif not isinstance(one, Boxes) and not isinstance(other, Boxes):
            if one.ndim == 2:
                plane = one.copy()
                plane[rows, columns] = other[rows, columns]
                labels[name] = plane
            else:
                labels[name] = _blended(one, other, weight)
    return image, labels


def _both(one: Boxes, other: Boxes) -> Boxes:
    return Boxes(
        np.concatenate([one.xyxy, other.xyxy]),
        np.concatenate([one.classes, other.classes]),
        np.concatenate([one.crowd, other.crowd]),
    )


def _blended(one: NDArray[Any], other: NDArray[Any], weight: float) -> NDArray[np.float32]:
    """Soft image labels float32 (C,)."""
    return (weight * one + (1 - weight) * other).astype(np.float32)


def _agreed(one: NDArray[Any], other: NDArray[Any], weight: float) -> NDArray[np.uint8]:
    """The mask uint8 (H, W) of both views."""
    heavier: NDArray[np.uint8] = one if weight >= 0.5 else other
    if max(weight, 1 - weight) >= 2 / 3:
        return heavier.copy()
    return np.where(one == other, one, np.uint8(IGNORE_INDEX))


def _set_in(one: Boxes, other: Boxes, window: NDArray[np.float32]) -> Boxes:
    """The boxes of the first still half to be seen, and those of the second half inside the window, cut to it."""
    hidden, inner = _overlap(one.xyxy, window), _overlap(other.xyxy, window)
    seen = one.select(hidden < 0.5)
    new = other.select(inner >= 0.5)
    low, high = np.tile(window[:2], 2), np.tile(window[2:], 2)
    return _both(seen, new.moved(np.clip(new.xyxy, low, high)))


def _overlap(xyxy: NDArray[np.float32], window: NDArray[np.float32]) -> NDArray[np.float32]:
    """Share of each box (N, 4) that lies in the window: float32 (N,)."""
    sides = np.minimum(xyxy[:, 2:], window[2:]) - np.maximum(xyxy[:, :2], window[:2])
    area = (xyxy[:, 2:] - xyxy[:, :2]).prod(axis=1)
    share: NDArray[np.float32] = sides.clip(0).prod(axis=1) / np.maximum(area, 1e-6)
    return share
