"""Twelve-megapixel photographs for `benchmarks/batch.py photos`, and the straightforward ways that the command is timed against."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from pipeline.imaging.decode import decode_bytes
from pipeline.imaging.geometry import Letterbox
from serving.engines.base import Outputs
from serving.engines.registry import usable_cores
from serving.predictor import Predictor

HEIGHT, WIDTH = 3000, 4000
DISTINCT = 8
"""Photographs that differ; the others are hard links, which reading cannot tell."""


def make_photos(folder: Path, count: int) -> list[Path]:
    """JPEGs of about 3.4 MB, as a telephone takes them: scenes with texture from fine grain to soft shades."""
    from pipeline.data.shapes import draw_scene

    folder.mkdir(parents=True)
    paths = [folder / f"{number:06d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        if number >= DISTINCT:
            os.link(paths[number % DISTINCT], path)
            continue
        scene = draw_scene(0, number, 640).image[:480]
        photo = cv2.resize(scene, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC).astype(np.float32)
        rng = np.random.default_rng(number)
        for across, strength in ((250, 14), (1000, 9), (4000, 4)):
            texture = rng.normal(0, strength, (across * 3 // 4, across)).astype(np.float32)
            photo += cv2.resize(texture, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)[..., None]
        Image.fromarray(np.clip(photo, 0, 255).astype(np.uint8)).save(path, quality=90)
    return paths


def decoders(predictor: Predictor) -> dict[str, Callable[[bytes], Any]]:
    """Ways from a file's bytes to the network's input; all but ours decode every pixel first."""

    def pillow(data: bytes) -> Any:
        return predictor.letterbox(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))

    def opencv(data: bytes) -> Any:
        return predictor.letterbox(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB))

    return {
        "ours": predictor.decode,
        "turbojpeg": lambda data: predictor.letterbox(simplejpeg.decode_jpeg(data, "RGB", strict=True)),
        "opencv": opencv,
        "pillow": pillow,
    }


def straightforward(paths: list[Path], predictor: Predictor, batch: int, answered: bool) -> None:
    """Decodes every photograph whole, letterboxes, infers, on every core.

    Args:
        paths: the photographs.
        predictor: the network.
        batch: images inferred together.
        answered: whether masks are answered as the command does, the usual way: every class's probabilities enlarged to
            the photograph's size, the likeliest taken, its run lengths made by pycocotools. Otherwise nothing is kept.
    """

    def work(at: int) -> None:
        some = paths[at : at + batch]
        ready = [predictor.letterbox(decode_bytes(path.read_bytes(), path.name)[0]) for path in some]
        outputs = predictor.infer(np.stack([image.pixels for image in ready]))
        if answered:
            for index, image in enumerate(ready):
                list(usual_masks(outputs, index, image.frame, predictor))

    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(work, range(0, len(paths), batch)))


def usual_masks(outputs: Outputs, index: int, frame: Letterbox, predictor: Predictor) -> Iterator[bytes]:
    """COCO run lengths of every class present in each mask head's answer."""
    from pycocotools import mask as coco

    for name, head in predictor.heads.items():
        if head.kind != "mask":
            continue
        (top, left), (height, width) = (frame.top, frame.left), frame.inner
        planes = outputs[f"{name}.probabilities"][index][:, top : top + height, left : left + width]
        best, mask = np.zeros(frame.source, np.float32), np.zeros(frame.source, np.uint8)
        for number, plane in enumerate(planes):
            full = cv2.resize(np.ascontiguousarray(plane), frame.source[::-1], interpolation=cv2.INTER_LINEAR)
            # As fast as OpenCV can: assigning by a mask would take twice as long.
            cv2.max(mask, cv2.min(cv2.compare(full, best, cv2.CMP_GT), number), dst=mask)
            cv2.max(best, full, dst=best)
        for number in np.flatnonzero(np.bincount(mask.ravel())):
            yield coco.encode(np.asfortranarray(mask == number))["counts"]
