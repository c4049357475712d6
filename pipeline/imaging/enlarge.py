"""A network's small mask as runs of the full image, found without an array of that size.

A 12-megapixel mask has a few thousand runs: finding them costs a tenth of enlarging every class and comparing.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.imaging.geometry import Letterbox
from pipeline.imaging.runs import Bytes, Ints, MaskRuns

_VALUES = 1 << 18
"""Probabilities at changes of class that are looked at together: they stay in a core's cache."""

Floats = NDArray[np.float64]


def nearest_runs(mask: Bytes, frame: Letterbox) -> MaskRuns:
    """Class indices (H, W) in input pixels as the nearest ones in the full image's pixels."""
    (height, width), (full_height, full_width) = frame.inner, frame.source
    rows = np.searchsorted(_nearest(height, full_height), np.arange(height))
    columns = np.ascontiguousarray(_inner(mask, frame).T)[_nearest(width, full_width)]
    at = _turns(columns)
    return _from_starts(frame.source, at // height, rows[at % height], columns.ravel()[at])


def likeliest_runs(probabilities: NDArray[np.float32], mask: Bytes, frame: Letterbox) -> MaskRuns:
    """Class probabilities (C, H, W) in input pixels, enlarged bilinearly: the likeliest class in the full image's pixels.

    Between two neighbours of the network's frame every class is a straight line: a class that is likeliest at both is so
    between them. Where they differ, enlarged columns are compared class by class, and down a column the lines tell where the
    class changes. Of equals the lower class wins.

    Args:
        probabilities: as said.
        mask: the likeliest classes in input pixels, uint8 (H, W).
        frame: where the full image lies in them.
    """
    full_height, full_width = frame.source
    height = frame.inner[0]
    few = np.ascontiguousarray(_inner(mask, frame))
    low, high = int(few.min()), int(few.max())
    if low == high:
        return MaskRuns(frame.source, np.asarray([low], np.uint8), np.asarray([full_height * full_width]))
    planes = _Planes(probabilities, frame)
    winners = _winners(few, planes)
    at = _turns(winners)
    column, row = at // height, at % height
    starts, kinds = np.zeros(len(at), np.int64), winners.ravel()[at]
    within = np.flatnonzero(row)
    changes, place, before, after = _changes(planes, winners, column[within], row[within])
    down = (place + 0.5) * (full_height / height) - 0.5
    # On a pixel's very centre both are equal, and the lower class has it.
    first = np.where(after < before, np.ceil(down), np.floor(down) + 1).clip(0, full_height).astype(np.int64)
    last = np.append(changes[1:] != changes[:-1], True)[: len(changes)]
    starts[within], kinds[within] = first[last], after[last]
    if not last.all():  # some class is likeliest only between two rows
        more = np.flatnonzero(~last)
        order = np.argsort(np.concatenate([within[changes[more]] - 0.5, np.arange(len(at))]), kind="stable")
        column = np.concatenate([column[within][changes[more]], column])[order]
        starts, kinds = np.concatenate([first[more], starts])[order], np.concatenate([after[more], kinds])[order]
    return _from_starts(frame.source, column, starts, kinds.astype(np.uint8))


class _Planes:
    """The classes' probabilities, and where between their columns those of the full image lie.

    Args:
        probabilities: (C, H, W) in input pixels.
        frame: where the full image lies in them.
    """

    def __init__(self, probabilities: NDArray[np.float32], frame: Letterbox) -> None:
        whole = np.ascontiguousarray(probabilities, np.float32)
        self._flat = whole.reshape(len(whole), -1)
        self._stride, self._first = whole.shape[2], frame.top * whole.shape[2] + frame.left
        width, full_width = frame.inner[1], frame.source[1]
        at = ((np.arange(full_width) + 0.5) * (width / full_width) - 0.5).clip(0, width - 1)
        self.left = at.astype(np.int64)
        self.right = np.minimum(self.left + 1, width - 1)
        self.share = at - self.left

    def __len__(self) -> int:
        return len(self._flat)

    def at(self, column: Ints, row: Ints) -> Floats:
        """Every class at N full-size columns and rows of the frame: float64 (C, N)."""
        begin = self._first + row * self._stride
        left, right, share = begin + self.left[column], begin + self.right[column], self.share[column]
        values: Floats = self._flat.take(left, 1) * (1 - share)
        values += self._flat.take(right, 1) * share
        return values


def _changes(planes: _Planes, winners: Bytes, column: Ints, row: Ints) -> tuple[Ints, Floats, Ints, Ints]:
    """Every change of the likeliest class between rows where it differs.

    Args:
        planes: the classes.
        winners: the likeliest of them in full-size columns, (W, h).
        column: of N places whose class differs from that of the row above.
        row: likewise.

    Returns:
        For each change, in order: which of the N, its place in rows of the planes, and the planes before and after it.
    """
    found = []
    step = max(1, _VALUES // len(planes))
    for first in range(0, len(row), step):
        x, y = column[first : first + step], row[first : first + step]
        held, last = winners[x, y - 1].astype(np.int64), winners[x, y].astype(np.int64)
        low, high = planes.at(x, y - 1), planes.at(x, y)
        numbers, reached, rounds = np.arange(first, first + len(x)), np.zeros(len(x)), []
        # Each round finds who overtakes the class that is likeliest so far; its line is steeper, so rounds end.
        while len(numbers):
            every, rise = np.arange(len(numbers)), high - low
            steeper = rise - rise[held, every]
            with np.errstate(divide="ignore", invalid="ignore"):
                meets = np.where(steeper > 0, (low[held, every] - low) / steeper, np.inf)
            after = meets.argmin(0)
            when = meets[after, every]
            lost = ~np.isfinite(when)
            after[lost], when[lost] = last[lost], 1
            reached = np.maximum(reached, np.minimum(when, 1))
            rounds.append((numbers, y - 1 + reached, held, after))
            going = after != last
            numbers, y, last, held, reached = (each[going] for each in (numbers, y, last, after, reached))
            low, high = low[:, going], high[:, going]
        merged = [np.concatenate(parts) for parts in zip(*rounds, strict=True)]
        if len(rounds) > 1:
            order = np.argsort(merged[0], kind="stable")
            merged = [each[order] for each in merged]
        found.append(merged)
    if not found:
        nothing = np.zeros(0, np.int64)
        return nothing, np.zeros(0), nothing, nothing
    which, place, before, after = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return which, place, before, after


def _winners(few: Bytes, planes: _Planes) -> Bytes:
    """Number of the largest plane in each full-size column and row of the frame, uint8 (W, h); `few` has it in (h, w)."""
    # Column after column, as COCO's runs go.
    few = cv2.transpose(few).reshape(few.shape[::-1])
    winners: Bytes = few.take(planes.left, 0)
    differs = np.zeros(few.shape, np.bool_)
    np.not_equal(few[:-1], few[1:], out=differs[:-1])
    places = np.flatnonzero(differs.take(planes.left, 0))
    flat, height, step = winners.reshape(-1), few.shape[1], max(1, _VALUES // len(planes))
    for first in range(0, len(places), step):
        some = places[first : first + step]
        flat[some] = planes.at(some // height, some % height).argmax(0)
    return winners


def _turns(columns: Bytes) -> Ints:
    """Where in the flattened (W, h) another value begins; the first is 0."""
    flat = columns.ravel()
    return np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])


def _inner(planes: NDArray[Any], frame: Letterbox) -> NDArray[Any]:
    """What of planes (..., H, W) shows the image, without the letterbox's border."""
    inner: NDArray[Any] = planes[..., frame.top : frame.top + frame.inner[0], frame.left : frame.left + frame.inner[1]]
    return inner


def _nearest(length: int, full: int) -> Ints:
    """For each of `full` pixels the nearest of `length`, rising."""
    numbers = np.arange(length, dtype=np.float32)[:, None]
    nearest: Ints = cv2.resize(numbers, (1, full), interpolation=cv2.INTER_NEAREST_EXACT).ravel().astype(np.int64)
    return nearest


def _from_starts(size: tuple[int, int], column: Ints, starts: Ints, kinds: Bytes) -> MaskRuns:
    """Runs from the column and row in which they start, in order, the first at 0; those without a pixel are dropped."""
    # Two changes on one pixel's centre may come in the wrong order by rounding.
    begins = np.maximum.accumulate(column * size[0] + starts)
    lengths = np.diff(np.append(begins, size[0] * size[1]))
    some = lengths > 0
    return MaskRuns(size, kinds[some], lengths[some])
