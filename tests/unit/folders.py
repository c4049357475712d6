"""Tiny data sets for the tests of readers: pictures of noise, COCO, YOLO and VOC labels, masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.formats.base import Problem
from pipeline.records import Boxes, Record


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (20, 30), **options: Any) -> Path:
    """Writes noise of (height, width) in the format of the file's ending; equal seeds give equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **options)
    return path


def turned(path: Path, seed: int = 0, size: tuple[int, int] = (20, 30), orientation: int = 6) -> Path:
    """A JPEG stored as (height, width) that EXIF says to turn."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return picture(path, seed, size, exif=exif)


def plane(path: Path, values: Any) -> Path:
    """Writes a mask: (H, W) as an index PNG, (H, W, 3) as a colour PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def coco(
    path: Path,
    images: list[str],
    annotations: list[dict[str, Any]],
    names: tuple[str, ...] = ("cat", "dog"),
    size: tuple[int, int] | None = (20, 30),
) -> Path:
    """COCO JSON; image ids count from 1, category ids are 10, 20, …"""
    sides = {} if size is None else {"height": size[0], "width": size[1]}
    content = {
        "images": [{"id": i, "file_name": name, **sides} for i, name in enumerate(images, 1)],
        "annotations": annotations,
        "categories": [{"id": 10 * i, "name": name} for i, name in enumerate(names, 1)],
    }
    return text(path, json.dumps(content))


def voc(path: Path, objects: list[tuple[str, tuple[Any, ...]]], size: tuple[int, int] | None = (20, 30)) -> Path:
    """A VOC XML of objects (name, (xmin, ymin, xmax, ymax)), an object a line from the second line on."""
    sides = "" if size is None else f"<size><width>{size[1]}</width><height>{size[0]}</height></size>"
    lines = [f"<annotation><filename>{path.stem}.png</filename>{sides}"]
    for name, row in objects:
        box = "".join(f"<{side}>{v}</{side}>" for side, v in zip(("xmin", "ymin", "xmax", "ymax"), row, strict=True))
        lines.append(f"<object><name>{name}</name><bndbox>{box}</bndbox></object>")
    return text(path, "\n".join([*lines, "</annotation>"]))


def of_kind(problems: list[Problem], kind: str) -> list[Problem]:
    return [problem for problem in problems if problem.kind == kind]


def only(problems: list[Problem], kind: str) -> Problem:
    """The one problem of a kind; fails with all of them where there is not exactly one."""
    found = of_kind(problems, kind)
    assert len(found) == 1, problems
    return found[0]


def boxes_of(record: Record) -> list[tuple[float, ...]]:
    """The boxes as (class, x1, y1, x2, y2)."""
    boxes = record.labels["boxes"]
    assert isinstance(boxes, Boxes)
    return [(int(c), *map(float, xyxy)) for c, xyxy in zip(boxes.classes, boxes.xyxy, strict=True)]
