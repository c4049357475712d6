"""Reach of one axis, and how operations that move positions (convolutions, pools, enlargements) move it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Reach:
    """First and last input pixel that each position of one axis depends on; empty where low > high."""

    low: Ints
    high: Ints

    @classmethod
    def of_pixels(cls, size: int) -> Reach:
        """Each pixel depends on itself."""
        return cls(np.arange(size), np.arange(size))

    def __len__(self) -> int:
        """Positions."""
        return len(self.low)

    def gather(self, taps: Iterable[Ints]) -> Reach:
        """New positions that each read several old ones: one array of old positions per tap, those outside are padding."""
        low, high = None, None
        for index in taps:
            inside = (index >= 0) & (index < len(self))
            at = np.clip(index, 0, len(self) - 1)
            first, last = np.where(inside, self.low[at], _FAR), np.where(inside, self.high[at], -_FAR)
            low = first if low is None else np.minimum(low, first)
            high = last if high is None else np.maximum(high, last)
        assert low is not None
        assert high is not None
        return Reach(low, high)

    def joined(self, other: Reach) -> Reach:
        """What either depends on; an axis of one position is spread over the other's."""
        return Reach(np.minimum(self.low, other.low), np.maximum(self.high, other.high))

    def whole(self, size: int) -> Reach:
        """`size` positions that depend on all that any of these does."""
        return Reach(np.full(size, self.low.min()), np.full(size, self.high.max()))


_FAR = 1 << 40
Axes = tuple[Reach, Reach]


def _window(reach: Reach, size: int, kernel: int, stride: int, padding: int, dilation: int) -> Reach:
    """A kernel slid over an axis (Dumoulin and Visin 2016, https://arxiv.org/abs/1603.07285)."""
    start = np.arange(size) * stride - padding
    return reach.gather(start + k * dilation for k in range(kernel))


def _transposed_window(reach: Reach, size: int, kernel: int, stride: int, padding: int, dilation: int) -> Reach:
    """The same turned round: an output reads input i where i * stride - padding + k * dilation is its own place."""
    taps = []
    for k in range(kernel):
        place = np.arange(size) + padding - k * dilation
        taps.append(np.where(place % stride == 0, place // stride, -1))
    return reach.gather(taps)


def _convolution(args: Any, axes: Axes, result: Tensor) -> Axes:
    weight, stride, padding, dilation, transposed = args[1], args[3], args[4], args[5], args[6]
    slide = _transposed_window if transposed else _window
    pairs = zip(axes, result.shape[-2:], weight.shape[-2:], (0, 1), strict=True)
    rows, columns = (
        slide(reach, size, kernel, _at(stride, i), _at(padding, i), _at(dilation, i))
        for reach, size, kernel, i in pairs
    )
    return rows, columns


def _pool(args: Any, axes: Axes, result: Tensor) -> Axes:
    kernel, stride, padding = args[1], (args[2] if len(args) > 2 and args[2] else args[1]), 0
    padding = args[3] if len(args) > 3 else 0
    dilation = args[4] if len(args) > 4 and not isinstance(args[4], bool) else 1
    rows, columns = (
        _window(reach, size, _at(kernel, i), _at(stride, i), _at(padding, i), _at(dilation, i))
        for i, (reach, size) in enumerate(zip(axes, result.shape[-2:], strict=True))
    )
    return rows, columns


def _adaptive(args: Any, axes: Axes, result: Tensor) -> Axes:  # noqa: ARG001  # every rule's signature
    def pooled(reach: Reach, size: int) -> Reach:
        old = len(reach)
        spans = [(i * old // size, -(-(i + 1) * old // size)) for i in range(size)]
        low = np.asarray([reach.low[a:b].min() for a, b in spans])
        return Reach(low, np.asarray([reach.high[a:b].max() for a, b in spans]))

    return pooled(axes[0], result.shape[-2]), pooled(axes[1], result.shape[-1])


def _nearest(args: Any, axes: Axes, result: Tensor) -> Axes:  # noqa: ARG001  # every rule's signature
    def enlarged(reach: Reach, size: int) -> Reach:
        return reach.gather([np.arange(size) * len(reach) // size])

    return enlarged(axes[0], result.shape[-2]), enlarged(axes[1], result.shape[-1])


def _bilinear(args: Any, axes: Axes, result: Tensor) -> Axes:
    aligned = len(args) > 2 and args[2] is True

    def enlarged(reach: Reach, size: int) -> Reach:
        old, at = len(reach), np.arange(size)
        place = at * (old - 1) / max(1, size - 1) if aligned else np.maximum((at + 0.5) * old / size - 0.5, 0)
        first = np.floor(place).astype(np.int64)
        return reach.gather([first, np.minimum(first + 1, old - 1)])

    return enlarged(axes[0], result.shape[-2]), enlarged(axes[1], result.shape[-1])


def _padded(args: Any, axes: Axes, result: Tensor) -> Axes:
    left, top = args[1][0], (args[1][2] if len(args[1]) > 2 else 0)
    return (
        axes[0].gather([np.arange(result.shape[-2]) - top]),
        axes[1].gather([np.arange(result.shape[-1]) - left]),
    )


def _mirrored(args: Any, axes: Axes, result: Tensor) -> Axes:
    left, top = args[1][0], args[1][2]

    def continued(reach: Reach, size: int, before: int) -> Reach:
        last = len(reach) - 1
        return reach.gather([last - np.abs(last - np.abs(np.arange(size) - before))])

    return continued(axes[0], result.shape[-2], top), continued(axes[1], result.shape[-1], left)


def _at(value: Any, index: int) -> int:
    """One axis' value of an argument that may be given once for both."""
    if isinstance(value, int):
        return value
    return int(value[index] if len(value) > 1 else value[0])


MOVES = {
    "convolution": _convolution,
    "max_pool2d_with_indices": _pool,
    "max_pool2d": _pool,
    "max_unpool2d": _nearest,
    "avg_pool2d": _pool,
    "_adaptive_avg_pool2d": _adaptive,
    "adaptive_max_pool2d": _adaptive,
    "upsample_nearest2d": _nearest,
    "_upsample_nearest_exact2d": _nearest,
    "upsample_bilinear2d": _bilinear,
    "pixel_shuffle": _nearest,
    "constant_pad_nd": _padded,
    "reflection_pad2d": _mirrored,
}
"""Rules of the operations that move positions, by aten's name."""
