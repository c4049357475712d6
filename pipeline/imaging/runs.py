"""A mask as runs of one class down its columns, and as COCO's run lengths, which go down the columns too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError

_BAND = 1 << 22
"""Pixels of a mask that `MaskRuns.of` looks at together."""

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class MaskRuns:
    """Class indices of an image, run after run down the columns, column after column.

    Attributes:
        size: (height, width) in pixels.
        values: class of each run, uint8 (N,). Neighbours may be equal.
        lengths: pixels of each run, int64 (N,), at least 1; they sum to height x width.
    """

    size: tuple[int, int]
    values: Bytes
    lengths: Ints

    @classmethod
    def of(cls, mask: Bytes) -> MaskRuns:
        """The runs of class indices uint8 (h, w), read in bands of columns, so that a huge one need not fit in memory."""
        height, width = mask.shape
        step = max(1, _BAND // max(1, height))
        values, starts, offset = [np.zeros(0, np.uint8)], [np.zeros(0, np.int64)], 0
        for at in range(0, width if height else 0, step):
            flat = cv2.transpose(np.ascontiguousarray(mask[:, at : at + step])).ravel()
            turns = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
            values.append(flat[turns])
            starts.append(turns + offset)
            offset += flat.size
        return cls((height, width), np.concatenate(values), np.diff(np.concatenate([*starts, [offset]])))

    @classmethod
    def decoded(cls, found: Mapping[int, str], size: tuple[int, int]) -> MaskRuns:
        """Inverse of `encoded`, of run lengths by class that do not overlap; what none of them covers is class 0.

        Raises:
            DataError: run lengths of another size, or broken ones.
        """
        pixels = size[0] * size[1]
        kinds, starts = [], []
        for kind, text in found.items():
            counts = _unpacked(text)
            if counts.sum() != pixels or counts.min(initial=0) < 0:
                raise DataError(f"run lengths of {counts.sum()} pixels for a mask of {size[0]} x {size[1]}")
            inside = (np.cumsum(counts) - counts)[1::2]
            # Where a run of this class begins it is this class, and 0 behind it unless another begins there.
            starts += [inside, inside + counts[1::2]]
            kinds += [np.full(len(inside), kind, np.uint8), np.zeros(len(inside), np.uint8)]
        at, what = np.concatenate([[0], *starts]), np.concatenate([np.zeros(1, np.uint8), *kinds])
        order = np.lexsort((what > 0, at))
        at, what = at[order], what[order]
        lengths = np.diff(np.append(at, pixels))
        some = lengths > 0
        return cls(size, what[some], lengths[some])

    def mask(self) -> Bytes:
        """Class indices uint8 (h, w)."""
        height, width = self.size
        if not height * width:
            return np.zeros(self.size, np.uint8)
        columns = np.repeat(self.values, self.lengths).reshape(width, height)
        plane: Bytes = cv2.transpose(columns).reshape(height, width)  # many times faster than copying `columns.T`
        return plane

    def sampled(self, size: tuple[int, int]) -> Bytes:
        """Class indices uint8 of a picture shrunk to (height, width): those of the nearest pixels."""
        rows, columns = ((np.arange(n) * 2 + 1) * of // (2 * n) for n, of in zip(size, self.size, strict=True))
        at = columns[None] * self.size[0] + rows[:, None]
        return self.values[np.searchsorted(np.cumsum(self.lengths), at, side="right")]

    def encoded(self) -> dict[int, tuple[int, str]]:
        """By class present, in rising order, its area in pixels and its compressed run lengths as COCO has them."""
        from pycocotools import mask as coco

        height, width = self.size
        found: dict[int, tuple[int, str]] = {}
        for kind in np.flatnonzero(np.bincount(self.values)).tolist():
            counts = _counts(self.values == kind, self.lengths)
            packed = coco.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
            found[kind] = (int(counts[1::2].sum()), packed["counts"].decode("ascii"))
        return found


def _counts(chosen: NDArray[np.bool_], lengths: Ints) -> Ints:
    """Lengths of the runs outside and inside in turn, beginning outside (with 0 where the first pixel is inside)."""
    turns = np.concatenate([[0], np.flatnonzero(chosen[1:] != chosen[:-1]) + 1])
    joined: Ints = np.add.reduceat(lengths, turns)
    return np.concatenate([[0], joined]) if chosen[0] else joined


def _unpacked(text: str) -> Ints:
    """COCO's compressed run lengths as numbers, outside and inside in turn.

    Each number is written in groups of five bits from the lowest on, each a character from 48 on whose bit 32 says that
    more follow; the last group's bit 16 is the sign. From the fourth number on it is the difference to the last but one
    (`rleFrString` of cocoapi).
    """
    groups = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(groups < 32)
    first = np.concatenate([[0], last[:-1] + 1])
    if not len(last) or last[-1] != len(groups) - 1 or groups.min() < 0:
        raise DataError(f"run lengths {text[:20]!r} are not COCO's")
    place = 5 * (np.arange(len(groups)) - np.repeat(first, last - first + 1))
    numbers = np.add.reduceat((groups & 31) << place, first)
    numbers -= np.where(groups[last] & 16, np.int64(1) << (place[last] + 5), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
