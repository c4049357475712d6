"""`--tile`: a picture predicted piece by piece, and the pieces' boxes, masks and labels merged."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.answers import Answer, BoxAnswer, HeadAnswer, LabelAnswer, MaskAnswer
from serving.batch.failures import StoppedError
from serving.batch.merge import merge_tiles
from serving.batch.regions import Regions, open_regions
from serving.batch.settings import Settings
from serving.predictor import Predictor, Prepared

Tile = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of the picture."""

IN_MEMORY = 2**26
"""Pixels of a mask from which it is kept in a file."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """A picture and its tiles."""

    regions: Regions
    tiles: list[Tile]


def starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin along a side: as few as keep the overlap, spread evenly, the last ending with the side."""
    if length <= tile:
        return [0]
    count = -(-(length - tile) // max(1, int(tile * (1 - overlap)))) + 1
    return [round(at * (length - tile) / (count - 1)) for at in range(count)]


def cut(size: tuple[int, int], tile: int, overlap: float) -> list[Tile]:
    """Tiles that cover a picture of (height, width), row by row."""
    height, width = size
    return [
        (left, top, min(left + tile, width), min(top + tile, height))
        for top in starts(height, tile, overlap)
        for left in starts(width, tile, overlap)
    ]


class Tiles:
    """Each picture in overlapping tiles, every one as the network would see a picture of its own.

    Image labels are averaged over the tiles (the highest counts where several classes may hold), masks meet in the middle
    of each overlap, boxes that two tiles saw become one. A picture may have thousands: where `stopped` is set between two
    of their batches, StoppedError is raised.
    """

    opens_files = True

    def __init__(self, predictor: Predictor, settings: Settings, stopped: threading.Event) -> None:
        self.predictor, self.options, self.batch = predictor, settings.options, settings.batch
        self._tile, self._overlap = settings.tile, settings.overlap
        self._folder, self._stopped = settings.out / ".batch" / "tmp", stopped

    def prepare(self, content: bytes | None, name: str, path: Path | None) -> Pieces:
        """Opened and divided; raises ImageError."""
        regions = open_regions(content, name, path, self._folder)
        return Pieces(regions, cut(regions.size, self._tile, self._overlap))

    def answers(self, views: Sequence[Pieces]) -> list[Answer]:
        """The pictures one by one, their tiles in batches."""
        return [self._answer(view) for view in views]

    def _answer(self, view: Pieces) -> Answer:
        merging = _Merging(view, self._folder)
        for at in range(0, len(view.tiles), self.batch):
            if self._stopped.is_set():
                raise StoppedError
            tiles = view.tiles[at : at + self.batch]
            ready: list[Prepared] = [self.predictor.letterbox(view.regions.crop(*tile)) for tile in tiles]
            outputs = self.predictor.infer(np.stack([piece.pixels for piece in ready]))
            for tile, answer in zip(
                tiles, self.predictor.answers(outputs, [piece.frame for piece in ready], self.options), strict=True
            ):
                merging.add(tile, answer)
        return merging.result()


class _Merging:
    """What a picture's tiles answered so far."""

    def __init__(self, view: Pieces, folder: Path) -> None:
        self._view, self._folder = view, folder
        self._columns = sorted({t[0] for t in view.tiles}), sorted({t[2] for t in view.tiles})
        self._rows = sorted({t[1] for t in view.tiles}), sorted({t[3] for t in view.tiles})
        self._boxes: dict[str, list[BoxAnswer]] = {}
        self._labels: dict[str, list[LabelAnswer]] = {}
        self._masks: dict[str, NDArray[np.uint8]] = {}
        self._order: list[str] = []

    def add(self, tile: Tile, answer: Answer) -> None:
        """Takes the next tile."""
        self._order = list(answer.heads)
        for name, found in answer.heads.items():
            if isinstance(found, BoxAnswer):
                moved = found.boxes + np.asarray([tile[0], tile[1], tile[0], tile[1]], np.float32)
                self._boxes.setdefault(name, []).append(BoxAnswer(moved, found.scores, found.classes))
            elif isinstance(found, LabelAnswer):
                self._labels.setdefault(name, []).append(found)
            else:
                self._paint(name, tile, found.mask)

    def _paint(self, name: str, tile: Tile, mask: NDArray[np.uint8]) -> None:
        """Sets a tile's core into the picture's mask: up to the middle of each overlap."""
        if name not in self._masks:
            self._masks[name] = empty_mask(self._view.regions.size, self._folder)
        left, right = _core(tile[0], tile[2], *self._columns)
        top, bottom = _core(tile[1], tile[3], *self._rows)
        self._masks[name][top:bottom, left:right] = mask[
            top - tile[1] : bottom - tile[1], left - tile[0] : right - tile[0]
        ]

    def result(self) -> Answer:
        """The picture's Answer."""
        size, tiles = self._view.regions.size, self._view.tiles
        found: dict[str, HeadAnswer] = {}
        for name in self._order:
            if name in self._boxes:
                found[name] = merge_tiles(tiles, self._boxes[name], size)
            elif name in self._labels:
                found[name] = merge_labels(self._labels[name])
            else:
                found[name] = MaskAnswer(self._masks[name])
        return Answer(size, found)


def _core(start: int, end: int, all_starts: list[int], all_ends: list[int]) -> tuple[int, int]:
    """A tile's span along one side without the halves of its overlaps that its neighbours paint."""
    at = all_starts.index(start)
    before = all_ends[at - 1] if at else start
    after = all_starts[at + 1] if at + 1 < len(all_starts) else end
    return (start + before) // 2 if at else start, (after + end) // 2


def merge_labels(found: Sequence[LabelAnswer]) -> LabelAnswer:
    """Several views' labels as one: the mean, or the highest of each class where several may hold."""
    values = np.stack([answer.probabilities for answer in found])
    first = found[0]
    merged = values.max(0) if first.multilabel else values.mean(0)
    return LabelAnswer(merged.astype(np.float32), first.multilabel, first.threshold)


def empty_mask(size: tuple[int, int], folder: Path) -> NDArray[np.uint8]:
    """A mask (h, w) of zeros, in a nameless file where it is large, so that memory does not hold it."""
    if size[0] * size[1] <= IN_MEMORY:
        return np.zeros(size, np.uint8)
    with tempfile.TemporaryFile(dir=folder if folder.is_dir() else None) as file:  # an actor's machine may not have it
        file.truncate(size[0] * size[1])
        return np.memmap(file, np.uint8, "r+", shape=size)
