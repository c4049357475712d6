"""A network's small mask as runs of the full image, found without an array of that size.

A 12-megapixel mask has a few thousand runs: finding them costs a tenth of enlarging every class and comparing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.imaging.geometry import Letterbox
from pipeline.imaging.runs import Bytes, Ints, MaskRuns

_FLOATS = 1 << 19
"""Probabilities of enlarged rows that are held together: they stay in a core's cache."""


def nearest_runs(mask: Bytes, frame: Letterbox) -> MaskRuns:
    """Class indices (H, W) in input pixels as the nearest ones in the full image's pixels."""
    (height, width), (full_height, full_width) = frame.inner, frame.source
    rows, columns = _nearest(height, full_height), _nearest(width, full_width)
    stretched = _inner(mask, frame).T[columns]
    turns = np.ones(stretched.shape, bool)
    np.not_equal(stretched[:, 1:], stretched[:, :-1], out=turns[:, 1:])
    column, row = np.nonzero(turns)
    return _from_starts(frame.source, column, np.searchsorted(rows, row), stretched[turns])


def likeliest_runs(probabilities: NDArray[np.float32], frame: Letterbox) -> MaskRuns:
    """Class probabilities (C, H, W) in input pixels, enlarged bilinearly: the likeliest class in the full image's pixels.

    Between two rows of the network's frame every class is a straight line down a full-size column. So the likeliest class is
    looked for in those rows only, and where it differs between two of them, the lines tell where it changes. Of equals the
    lower class wins. The probabilities sum to 1 in each pixel, so the largest is at least 1 / C, and a class that nowhere
    comes near that is left out.
    """
    inner = _inner(probabilities, frame)
    near = np.flatnonzero(inner.reshape(len(inner), -1).max(1) >= 0.9 / len(inner))
    full_height, full_width = frame.source
    if len(near) < 2:
        only = near.astype(np.uint8) if len(near) else np.zeros(1, np.uint8)
        return MaskRuns(frame.source, only, np.full(1, full_height * full_width, np.int64))
    height = frame.inner[0]
    step = max(1, _FLOATS // (len(near) * full_width))
    first, changes = np.zeros(0, np.uint8), [_Changes.none()]
    for top in range(0, height, step):
        rows = slice(max(0, top - 1), min(height, top + step))
        # Every class below the other: one call, in which only the width changes.
        stack = np.ascontiguousarray(inner[near, rows], np.float32).reshape(-1, frame.inner[1])
        wide = cv2.resize(stack, (full_width, len(stack)), interpolation=cv2.INTER_LINEAR)
        planes = wide.reshape(len(near), -1, full_width)
        winners = _winners(planes)
        if not top:
            first = winners[0]
        changes.append(_Changes.between(planes, winners, rows.start))
    found = _Changes(*(np.concatenate(parts) for parts in zip(*changes, strict=True)))
    scale = full_height / height
    place = (found.at + 0.5) * scale - 0.5
    # On a pixel's very centre both are equal, and the lower class has it.
    starts = np.where(found.after < found.before, np.ceil(place), np.floor(place) + 1).clip(0, full_height)
    columns = np.arange(full_width)
    order = np.argsort(np.concatenate([columns * height, found.column * height + found.row + 1]), kind="stable")
    return _from_starts(
        frame.source,
        np.concatenate([columns, found.column])[order],
        np.concatenate([np.zeros(full_width, np.int64), starts.astype(np.int64)])[order],
        near.astype(np.uint8)[np.concatenate([first, found.after])[order]],
    )


class _Changes(NamedTuple):
    """Where the likeliest class changes down a column: N changes, those between the same two rows in order.

    Attributes:
        column: full-size column.
        row: the row of the frame above the change.
        at: the change's place in rows of the frame, between `row` and `row` + 1; float64.
        before, after: numbers of the planes.
    """

    column: Ints
    row: Ints
    at: NDArray[np.float64]
    before: Ints
    after: Ints

    @classmethod
    def none(cls) -> _Changes:
        """No change."""
        nothing = np.zeros(0, np.int64)
        return cls(nothing, nothing, np.zeros(0), nothing, nothing)

    @classmethod
    def between(cls, planes: NDArray[np.float32], winners: Bytes, top: int) -> _Changes:
        """The changes between neighbouring rows of planes (C, h, W) whose first row is number `top`."""
        row, column = np.nonzero(winners[1:] != winners[:-1])
        low, high = planes[:, row, column].astype(np.float64), planes[:, row + 1, column].astype(np.float64)
        held, last = winners[row, column].astype(np.int64), winners[row + 1, column].astype(np.int64)
        reached = np.zeros(len(row))
        found: list[_Changes] = []
        # Each round finds who overtakes the class that is likeliest so far; its line is steeper, so rounds end.
        while len(row):
            every = np.arange(len(row))
            steeper = (high - low) - (high - low)[held, every]
            behind = low[held, every] - low
            with np.errstate(divide="ignore", invalid="ignore"):
                meets = np.where(steeper > 0, behind / steeper, np.inf)
            after = meets.argmin(0)
            lost = ~np.isfinite(meets[after, every])
            after[lost] = last[lost]
            reached = np.maximum(reached, np.minimum(meets[after, every], 1))
            found.append(cls(column, row + top, row + top + reached, held, after))
            open_ = after != last
            row, column, last, held, reached = row[open_], column[open_], last[open_], after[open_], reached[open_]
            low, high = low[:, open_], high[:, open_]
        return cls(*(np.concatenate(parts) for parts in zip(*found, strict=True))) if found else cls.none()


def _inner(planes: NDArray[Any], frame: Letterbox) -> NDArray[Any]:
    """What of planes (..., H, W) shows the image, without the letterbox's border."""
    inner: NDArray[Any] = planes[..., frame.top : frame.top + frame.inner[0], frame.left : frame.left + frame.inner[1]]
    return inner


def _nearest(length: int, full: int) -> Ints:
    """For each of `full` pixels the nearest of `length`, rising."""
    numbers = np.arange(length, dtype=np.float32)[:, None]
    nearest: Ints = cv2.resize(numbers, (1, full), interpolation=cv2.INTER_NEAREST_EXACT).ravel().astype(np.int64)
    return nearest


def _winners(planes: NDArray[np.float32]) -> Bytes:
    """Number of the largest plane, uint8 (h, W), of planes (C, h, W); the lower of equals."""
    best, winners = planes[0].copy(), np.zeros(planes.shape[1:], np.uint8)
    for number, plane in enumerate(planes[1:], 1):
        # Numbers rise, so the higher one is the later winner: several times faster than assigning.
        cv2.max(winners, cv2.min(cv2.compare(plane, best, cv2.CMP_GT), number), dst=winners)
        cv2.max(best, plane, dst=best)
    return winners


def _from_starts(size: tuple[int, int], column: Ints, starts: Ints, kinds: Bytes) -> MaskRuns:
    """Runs from where they start, in order; every column starts with one. Those without a pixel are dropped."""
    # Two changes on one pixel's centre may come in the wrong order by rounding.
    starts = np.maximum.accumulate(column * size[0] + starts)
    lengths = np.diff(np.append(starts, size[0] * size[1]))
    some = lengths > 0
    return MaskRuns(size, kinds[some], lengths[some])
