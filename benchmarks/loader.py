"""Loader speed: decode, augment and collate 640 x 480 JPEGs to 320 x 320, ours against albumentations composed naively.

    python benchmarks/loader.py [--images 256] [--rounds 5]

One process, one thread; each round times the ways in turn; medians and ratios are printed. Where Ultralytics is
installed beside (never by this project), its own dataset with mosaic off is timed too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", NO_ALBUMENTATIONS_UPDATE="1")

import cv2
import numpy as np
import torch
from PIL import Image

from pipeline.data.module import VisionData
from pipeline.data.shapes import draw_scene

NAIVE: list[dict[str, Any]] = [
    {"class_name": "LongestMaxSize", "max_size": 320, "p": 1.0},
    {"class_name": "HorizontalFlip", "p": 0.5},
    {
        "class_name": "Affine", "rotate": [-8, 8], "scale": [0.6, 1.4], "translate_percent": [-0.1, 0.1],
        "fill": 114, "p": 1.0,
    },
    {"class_name": "RandomBrightnessContrast", "brightness_limit": 0.25, "contrast_limit": 0.25, "p": 1.0},
    {"class_name": "HueSaturationValue", "p": 1.0},
]  # fmt: skip
"""What the standard preset does, transform by transform."""


def write_data(root: Path, images: int) -> None:
    """JPEGs of 640 x 480 with COCO boxes."""
    (root / "images").mkdir()
    entries, boxes = [], []
    for number in range(images):
        scene = draw_scene(0, number, 640)
        name = f"{number:05d}.jpg"
        Image.fromarray(scene.image[:480]).save(root / "images" / name, quality=90)
        entries.append({"id": number, "file_name": name, "width": 640, "height": 480})
        for xyxy, kind in zip(scene.boxes.xyxy, scene.boxes.classes, strict=True):
            left, top, right, bottom = (float(v) for v in np.minimum(xyxy, [640, 480, 640, 480]))
            if bottom - top > 4:
                boxes.append({
                    "id": len(boxes), "image_id": number, "category_id": int(kind),
                    "bbox": [left, top, right - left, bottom - top], "area": 1.0, "iscrowd": 0,
                })  # fmt: skip
    kinds = [{"id": i, "name": name} for i, name in enumerate(("disc", "square", "triangle", "star", "ring"))]
    (root / "annotations.json").write_text(json.dumps({"images": entries, "annotations": boxes, "categories": kinds}))


def epoch_of(root: Path, **options: Any) -> Callable[[], int]:
    """One pass over the training batches, in this process."""
    data = VisionData(str(root), size=320, workers=0, split=(0.98, 0.02, 0.0), **options)
    loader = data.train_dataloader()

    def run() -> int:
        return sum(len(batch) for batch in loader)

    return run


def ultralytics_epoch(root: Path) -> Callable[[], int] | None:
    """Ultralytics' dataset over the same files without labels, mosaic off; None where it is not installed."""
    try:
        from ultralytics.cfg import get_cfg  # type: ignore[import-not-found]
        from ultralytics.data.dataset import YOLODataset  # type: ignore[import-not-found]
    except ImportError:
        return None
    settings = get_cfg(overrides={"mosaic": 0.0, "imgsz": 320})
    names = dict(enumerate(("disc", "square", "triangle", "star", "ring")))
    dataset = YOLODataset(
        img_path=str(root / "images"), imgsz=320, augment=True, hyp=settings, data={"names": names, "channels": 3},
        task="detect", batch_size=16,
    )  # fmt: skip

    def run() -> int:
        for at in range(0, len(dataset), 16):
            YOLODataset.collate_fn([dataset[i] for i in range(at, min(at + 16, len(dataset)))])
        return len(dataset)

    return run


def main() -> None:
    """Times the ways in turn and prints their medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_data(root, given.images)
        ways: dict[str, Callable[[], int]] = {
            "standard preset": epoch_of(root, cache_gb=0.0),
            "standard preset, RAM cache": epoch_of(root, cache_gb=2.0),
            "standard preset, disk cache": epoch_of(root, cache_gb=0.0, cache_dir=f"{folder}/cache"),
            "albumentations, naively": epoch_of(root, cache_gb=0.0, augment=NAIVE),
        }
        if (peer := ultralytics_epoch(root)) is not None:
            ways["Ultralytics"] = peer
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(given.rounds + 1):
            for name, run in ways.items():
                start = time.perf_counter()
                count = run()
                if turn:  # the first one warms up and fills the caches
                    speeds[name].append(count / (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    for name, value in medians.items():
        ratio = value / medians["albumentations, naively"]
        sys.stdout.write(f"{name:30} {value:7.0f} images/s per core  {ratio:5.2f} x naive\n")


if __name__ == "__main__":
    main()
