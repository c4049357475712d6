"""`lightning show-data`: a sheet of augmented samples with their labels drawn: what the network sees."""

from __future__ import annotations

import inspect
import sys
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from pipeline.data.module import VisionData
from pipeline.data.sampling import TrainBatches
from pipeline.errors import ConfigError, nearest
from pipeline.imaging.draw import draw_answer, sheet, write_png
from pipeline.records import Boxes, Sample


def main(argv: list[str]) -> int:
    """The command; returns the exit code."""
    parser = jsonargparse.ArgumentParser(prog="lightning show-data", description=__doc__, exit_on_error=False)
    parser.add_argument("--config", type=list[str], help="configs of `lightning fit`; their `data` part is taken")
    parser.add_argument("--images", type=int, default=12, help="samples on the sheet")
    parser.add_argument("--epoch", type=int, default=0, help="whose draws are shown")
    parser.add_argument("--out", type=Path, default=Path("outputs/samples.png"), help="the PNG to write")
    parser.add_class_arguments(VisionData, "data", sub_configs=True)
    configs, rest = _take_configs(argv)
    try:
        parser.set_defaults({f"data.{key}": value for path in configs for key, value in _data_part(path).items()})
        given = parser.parse_args(rest)
    except jsonargparse.ArgumentError as error:
        message = " ".join(str(error).split())
        word = next((word.split("=")[0] for word in message.split() if word.startswith("--")), "")
        known = [f"--data.{name}" for name in inspect.signature(VisionData).parameters]
        raise ConfigError(message + (nearest(word, known) if "unrecognized" in message else "")) from error
    except KeyError as error:
        raise ConfigError(f"{', '.join(configs)}: {error.args[0]}") from error
    data: VisionData = parser.instantiate_classes(given).data
    write_png(given.out, augmented_sheet(data, given.images, given.epoch))
    sys.stdout.write(f"{given.images} samples in {given.out}\n")
    return 0


def augmented_sheet(data: VisionData, images: int, epoch: int = 0) -> Any:
    """Training samples of an epoch as the network sees them, four in a row, with their labels: RGB uint8."""
    loader = data.train_dataloader()
    dataset: Any = loader.dataset
    # As training draws them: mixed over the sources, in the epoch's order.
    assert isinstance(loader.batch_sampler, TrainBatches)
    loader.batch_sampler.set_epoch(epoch)
    samples = [dataset[epoch, index] for index in islice(cycle(loader.batch_sampler.order()), images)]
    return sheet([draw_sample(sample, dataset.spaces) for sample in samples], 4)


def _take_configs(argv: list[str]) -> tuple[list[str], list[str]]:
    """The files after each --config, and the other arguments."""
    configs, rest = [], []
    words = iter(argv)
    for word in words:
        if word == "--config":
            configs.append(next(words, ""))
        elif word.startswith("--config="):
            configs.append(word.removeprefix("--config="))
        else:
            rest.append(word)
    return configs, rest


def _data_part(path: str) -> dict[str, Any]:
    """The `data` section of a config; raises ConfigError."""
    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {path}: {' '.join(str(error).split())}") from error
    part = loaded.get("data", {}) if isinstance(loaded, dict) else None
    if not isinstance(part, dict):
        raise ConfigError(f"--config {path}: `data` is not a mapping")
    return part


def draw_sample(sample: Sample, spaces: Any) -> Any:
    """A sample with its labels drawn over it, RGB uint8."""
    answer: dict[str, dict[str, Any]] = {}
    for name, label in sample.labels.items():
        if isinstance(label, Boxes):
            answer[name] = {"boxes": label.xyxy, "classes": label.classes, "scores": label.classes * 0 + 1.0}
        else:
            answer[name] = {"mask": label} if label.ndim == 2 else {"probabilities": label}
    return draw_answer(sample.image, answer, spaces)
