"""What layers answer to an image: their channels as maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.imaging.draw import sheet, write_text
from pipeline.inspect.colours import enlarged, heat, stretched
from pipeline.inspect.fields import channels_first
from pipeline.inspect.layers import captured
from pipeline.inspect.look import Look, NotHereError
from pipeline.inspect.page import Picture, Section, Table

Pixels = NDArray[np.uint8]


def look_at_activations(look: Look) -> Section:
    """The liveliest channels of each layer for the first image; how many channels never answer over all images."""
    subject, names, count = look.subject, look.layers, look.wish.count
    images = [pixels for _, pixels in look.images]
    mapped: dict[str, Any] = {}
    peaks: dict[str, torch.Tensor] = {}
    modules = {name: subject.layer(name) for name in names}
    for at in range(0, len(images), 8):
        with captured(modules) as held, torch.inference_mode():
            subject.module(subject.given(images[at : at + 8]))
        for name, found in held.items():
            maps = channels_first(found, subject.size)
            if maps.ndim != 4:
                continue
            mapped.setdefault(name, maps[0].float())
            top = maps.float().abs().amax((0, 2, 3))
            peaks[name] = torch.maximum(peaks[name], top) if name in peaks else top
    if not mapped:
        raise NotHereError("needs layers with rows and columns: --layers")
    pictures, rows, figures = [], [], {}
    for name, maps in mapped.items():
        order = liveliest(maps, count)
        dead = int((peaks[name] == 0).sum())
        rows.append(
            (name, len(maps), f"{maps.shape[1]} x {maps.shape[2]}", dead, float(maps.mean()), float(maps.std()))
        )
        figures[name] = {"channels": len(maps), "dead": dead, "shown": order}
        tiles = [_tile(maps[channel].cpu().numpy(), channel) for channel in order]
        first = enlarged(images[0], 128)
        tiles.insert(0, cv2.resize(first, (128, 128), interpolation=cv2.INTER_AREA))
        file = f"activations_{name.replace('.', '_')}"
        pictures.append(
            Picture(file, sheet(tiles, min(9, len(tiles))), f"{name}: channels {', '.join(map(str, order))}")
        )
    lead = (
        f"What each layer answers to {look.images[0][0]}: the {count} channels that vary most over the image, each"
        " stretched to its own range, bright where it is high. Early layers keep the picture's edges; late ones keep where"
        f" something is. A channel is dead when it is 0 in all of the {len(images)} images."
    )
    header = ("layer", "channels", "map", "dead", "mean", "deviation")
    return Section("Activations", lead, pictures, [Table(header, rows)], figures)


def liveliest(maps: torch.Tensor, count: int) -> list[int]:
    """Indices of the channels (C, H, W) of the largest variance, largest first."""
    spread = maps.flatten(1).var(1, correction=0)
    order: Sequence[int] = spread.argsort(descending=True)[:count].tolist()
    return list(order)


def _tile(values: NDArray[np.float32], channel: int) -> Pixels:
    shown = cv2.resize(heat(stretched(values)), (128, 128), interpolation=cv2.INTER_NEAREST)
    return write_text(shown, str(channel), (4, 14))
