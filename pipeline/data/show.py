"""`lightning show-data`: a sheet of augmented samples with their labels drawn: what the network sees."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from pipeline.data.module import VisionData
from pipeline.imaging.draw import draw_answer, sheet, write_png
from pipeline.records import Boxes, Sample


def main(argv: list[str]) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="lightning show-data", description=__doc__)
    parser.add_argument("--data.root", dest="root", help="the data set's folder; without it the built-in shapes")
    parser.add_argument("--data.format", dest="format", default="auto")
    parser.add_argument("--data.size", dest="size", type=int, default=320)
    parser.add_argument("--data.augment", dest="augment", default="standard")
    parser.add_argument("--data.mosaic", dest="mosaic", type=float, default=0.0)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("outputs/samples.png"))
    given = parser.parse_args(argv)
    data = VisionData(given.root, given.format, size=given.size, augment=given.augment, mosaic=given.mosaic, workers=0)
    dataset: Any = data.train_dataloader().dataset
    samples = [dataset[0, index % len(dataset)] for index in range(given.images)]
    write_png(given.out, sheet([draw_sample(sample, dataset.spaces) for sample in samples], 4))
    sys.stdout.write(f"{len(samples)} samples in {given.out}\n")
    return 0


def draw_sample(sample: Sample, spaces: Any) -> Any:
    """A sample with its labels drawn over it, RGB uint8."""
    answer: dict[str, dict[str, Any]] = {}
    for name, label in sample.labels.items():
        if isinstance(label, Boxes):
            answer[name] = {"boxes": label.xyxy, "classes": label.classes, "scores": label.classes * 0 + 1.0}
        else:
            answer[name] = {"mask": label} if label.ndim == 2 else {"probabilities": label}
    return draw_answer(sample.image, answer, spaces)
