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


def likeliest_runs(probabilities: NDArray[np.float32], frame: Letterbox) -> MaskRuns:
    """Class probabilities (C, H, W) in input pixels, enlarged bilinearly: the likeliest class in the full image's pixels.

    Between two rows of the network's frame every class is a straight line down a full-size column. So the likeliest class is
    looked for in those rows only, and where it differs between two of them, the lines tell where it changes. Of equals the
    lower class wins. The probabilities sum to 1 in each pixel, so the largest is at least 1 / C, and a class that nowhere
    comes near that is left out.
    """
    inner = _inner(probabilities, frame)
    near = np.flatnonzero(inner.reshape(len(inner), -1).max(1) >= 0.9 / len(inner)).tolist() or [0]
    full_height, full_width = frame.source
    height = frame.inner[0]
    if len(near) == 1:
        return MaskRuns(frame.source, np.asarray(near, np.uint8), np.asarray([full_height * full_width]))
    # Column after column, as COCO's runs go; OpenCV is also faster at making more rows than at making them longer.
    planes = np.stack([_transposed(inner[index]) for index in near])
    winners = _winners(planes, full_width)
    at = _turns(winners)
    column, row = at // height, at % height
    starts, kinds = np.zeros(len(at), np.int64), winners.ravel()[at]
    within = np.flatnonzero(row)
    changes, place, before, after = _changes(planes, winners, column[within], row[within], full_width)
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
    return _from_starts(frame.source, column, starts, np.asarray(near, np.uint8)[kinds])


def _changes(
    planes: NDArray[np.float32], winners: Bytes, column: Ints, row: Ints, full_width: int
) -> tuple[Ints, Floats, Ints, Ints]:
    """Every change of the likeliest class between rows where it differs.

    Args:
        planes: the classes, column after column (C, w, h).
        winners: the likeliest of them in full-size columns, (W, h).
        column: of N places whose class differs from that of the row above.
        row: likewise.
        full_width: W.

    Returns:
        For each change, in order: which of the N, its place in rows of the planes, and the planes before and after it.
    """
    found = []
    step = max(1, _VALUES // len(planes))
    for first in range(0, len(row), step):
        x, y = column[first : first + step], row[first : first + step]
        held, last = winners[x, y - 1].astype(np.int64), winners[x, y].astype(np.int64)
        low, high = _widened(planes, x, y - 1, full_width), _widened(planes, x, y, full_width)
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


def _widened(planes: NDArray[np.float32], column: Ints, row: Ints, full_width: int) -> Floats:
    """Planes (C, w, h) at N full-size columns and rows of the planes: float64 (C, N)."""
    count, width, height = planes.shape
    at = ((column + 0.5) * (width / full_width) - 0.5).clip(0, width - 1)
    left = at.astype(np.int64)
    share = at - left
    flat = planes.reshape(count, -1)
    values: Floats = flat.take(left * height + row, 1) * (1 - share)
    values += flat.take(np.minimum(left + 1, width - 1) * height + row, 1) * share
    return values


def _winners(planes: NDArray[np.float32], full_width: int) -> Bytes:
    """Number of the largest of planes (C, w, h), each enlarged to (W, h), as uint8 (W, h); the lower of equals."""
    size = planes.shape[2], full_width
    best = cv2.resize(planes[0], size, interpolation=cv2.INTER_LINEAR)
    winners, plane = np.zeros(best.shape, np.uint8), np.empty_like(best)
    for number in range(1, len(planes)):
        cv2.resize(planes[number], size, dst=plane, interpolation=cv2.INTER_LINEAR)
        # Numbers rise, so the higher one is the later winner: several times faster than assigning.
        cv2.max(winners, cv2.min(cv2.compare(plane, best, cv2.CMP_GT), number), dst=winners)
        cv2.max(best, plane, dst=best)
    return winners


def _turns(columns: Bytes) -> Ints:
    """Where in the flattened (W, h) another value begins; the first is 0."""
    flat = columns.ravel()
    return np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])


def _inner(planes: NDArray[Any], frame: Letterbox) -> NDArray[Any]:
    """What of planes (..., H, W) shows the image, without the letterbox's border."""
    inner: NDArray[Any] = planes[..., frame.top : frame.top + frame.inner[0], frame.left : frame.left + frame.inner[1]]
    return inner


def _transposed(plane: NDArray[Any]) -> NDArray[np.float32]:
    """A plane (h, w) as float32 (w, h)."""
    turned: NDArray[np.float32] = cv2.transpose(np.ascontiguousarray(plane, np.float32))
    return turned.reshape(plane.shape[1], plane.shape[0])


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
