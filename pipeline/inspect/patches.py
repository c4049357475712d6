"""The image patches that excite a channel most (Girshick et al. 2014, https://arxiv.org/abs/1311.2524, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.imaging.draw import sheet, write_text
from pipeline.imaging.geometry import FILL
from pipeline.inspect.fields import Field, channels_first
from pipeline.inspect.layers import captured, fields_of
from pipeline.inspect.look import Look, NotHereError
from pipeline.inspect.page import Picture, Section

Pixels = NDArray[np.uint8]
SIDE = 72
"""Pixels of a drawn patch."""


@dataclass(frozen=True, slots=True)
class Patch:
    """Where a channel answered: image number, map position (row, column), the answer, and the pixels' box xyxy."""

    image: int
    at: tuple[int, int]
    value: float
    box: tuple[int, int, int, int]


def look_at_patches(look: Look) -> Section:
    """A row of patches for each of a layer's strongest channels."""
    subject, count = look.subject, look.wish.count
    modules = {name: subject.layer(name) for name in look.layers}
    fields = fields_of(subject.module, modules, subject.channels, subject.size)
    images = [pixels for _, pixels in look.images]
    tops = {name: Strongest(field, count) for name, field in fields.items() if field is not None}
    if not tops:
        raise NotHereError("needs layers with rows and columns: --layers")
    for start in range(0, len(images), 8):
        with captured({name: modules[name] for name in tops}) as held, torch.inference_mode():
            subject.module(subject.given(images[start : start + 8]))
        for name, maps in held.items():
            tops[name].add(channels_first(maps, subject.size).float(), start)
    pictures, figures = [], {}
    for name, top in tops.items():
        channels = top.channels(count)
        rows = [tile for channel in channels for tile in _row(channel, top.patches(channel), images, count)]
        figures[name] = {
            str(channel): [
                {"image": look.images[p.image][0], "box": list(p.box), "value": round(p.value, 5)}
                for p in top.patches(channel)
            ]
            for channel in channels
        }
        file = f"patches_{name.replace('.', '_')}"
        pictures.append(Picture(file, sheet(rows, count + 1), f"{name}: a row per channel, strongest patch first"))
    lead = (
        f"What excites a channel: of {len(images)} images the receptive fields in which it answers highest, one of each"
        " image at most, for the channels whose answer stands out furthest. A channel that has learnt something shows one"
        " thing in a row. Fields larger than the image show the image."
    )
    return Section("Exciting patches", lead, pictures, figures=figures)


class Strongest:
    """A layer's highest answer in each image, per channel.

    Args:
        field: what the layer's positions depend on.
        count: patches kept of a channel.
    """

    def __init__(self, field: Field, count: int) -> None:
        self.field, self.count = field, count
        self._values: list[Tensor] = []
        self._places: list[Tensor] = []
        self._images: list[int] = []

    def add(self, maps: Tensor, start: int) -> None:
        """Maps (B, C, H, W) of images `start` and on."""
        values, places = maps.flatten(2).max(2)
        self._values.append(values)
        self._places.append(places)
        self._images += range(start, start + len(maps))

    def channels(self, count: int) -> list[int]:
        """The channels whose highest answer is most standard deviations above their mean over the images' highest.

        Where the answers are all alike (one image), the highest ones.
        """
        values = torch.cat(self._values)
        spread = values.std(0, correction=0)
        ahead = (values.amax(0) - values.mean(0)) / spread.clamp(min=1e-6)
        order = torch.where(spread > 1e-6, ahead, -1.0) if bool((spread > 1e-6).any()) else values.amax(0)
        return [int(channel) for channel in order.argsort(descending=True)[:count]]

    def patches(self, channel: int) -> list[Patch]:
        """The channel's patches, strongest first."""
        values, places = torch.cat(self._values)[:, channel], torch.cat(self._places)[:, channel]
        width = len(self.field.columns)
        found = []
        for index in values.argsort(descending=True)[: self.count].tolist():
            row, column = divmod(int(places[index]), width)
            found.append(Patch(self._images[index], (row, column), float(values[index]), self._box(row, column)))
        return found

    def _box(self, row: int, column: int) -> tuple[int, int, int, int]:
        """The pixels the position depends on, xyxy with the far edges outside."""
        rows, columns = self.field.rows, self.field.columns
        low, high = (columns.low[column], rows.low[row]), (columns.high[column] + 1, rows.high[row] + 1)
        return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _row(channel: int, patches: list[Patch], images: list[Pixels], count: int) -> list[Pixels]:
    """The channel's number, then its patches, then nothing."""
    blank = np.full((SIDE, SIDE, 3), FILL, np.uint8)
    tiles = [write_text(blank.copy(), f"channel {channel}", (2, SIDE // 2))]
    for patch in patches:
        x1, y1, x2, y2 = patch.box
        cut = images[patch.image][y1:y2, x1:x2]
        cut = np.repeat(cut, -(-cut.shape[1] // 4), 0) if cut.shape[0] == 1 else cut  # a signal as a strip
        side = max(cut.shape[:2])
        square = np.full((side, side, 3), FILL, np.uint8)
        square[: cut.shape[0], : cut.shape[1]] = cut
        how = cv2.INTER_AREA if side > SIDE else cv2.INTER_NEAREST
        shown = cv2.resize(square, (SIDE, SIDE), interpolation=how)
        tiles.append(write_text(shown, f"{patch.value:.2g}", (2, SIDE - 4)))
    return tiles + [blank] * (count - len(patches))
