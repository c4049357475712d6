"""COCO run lengths of every class of a mask in one pass, in column bands, so that a huge mask need not fit in memory."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_BAND = 1 << 22
"""Pixels looked at together."""

Ints = NDArray[np.int64]


def encode_mask(mask: NDArray[np.uint8]) -> dict[int, tuple[int, str]]:
    """Class indices uint8 (h, w) to, by class present, its area in pixels and its compressed run lengths."""
    from pycocotools import mask as coco

    height, width = mask.shape
    if not mask.size:
        return {}
    values, lengths = _runs(mask)
    found: dict[int, tuple[int, str]] = {}
    for kind in np.unique(values):
        counts = _counts(values == kind, lengths)
        encoded = coco.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
        found[int(kind)] = (int(counts[1::2].sum()), encoded["counts"].decode("ascii"))
    return found


def decode_mask(found: dict[int, str], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Inverse of `encode_mask`: uint8 (h, w)."""
    from pycocotools import mask as coco

    mask = np.zeros(size, np.uint8)
    for kind, counts in found.items():
        mask[coco.decode({"size": list(size), "counts": counts.encode("ascii")}).astype(bool)] = kind
    return mask


def _runs(mask: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Ints]:
    """Values and lengths of the runs down the columns, column after column."""
    height, width = mask.shape
    step = max(1, _BAND // height)
    values, starts, offset = [], [], 0
    for at in range(0, width, step):
        flat = cv2.transpose(np.ascontiguousarray(mask[:, at : at + step])).ravel()
        turns = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
        values.append(flat[turns])
        starts.append(turns + offset)
        offset += flat.size
    # Two bands may meet within one run; `_counts` joins neighbours of one value anyway.
    ends = np.concatenate([*starts, [offset]])
    return np.concatenate(values), np.diff(ends)


def _counts(chosen: NDArray[np.bool_], lengths: Ints) -> Ints:
    """Lengths of the runs outside and inside in turn, beginning outside (with 0 where the first pixel is inside)."""
    turns = np.concatenate([[0], np.flatnonzero(chosen[1:] != chosen[:-1]) + 1])
    joined: Ints = np.add.reduceat(lengths, turns)
    return np.concatenate([[0], joined]) if chosen[0] else joined
