"""`lightning show-data`: a sheet of augmented samples with their labels drawn: what the network sees."""

from __future__ import annotations

import inspect
import re
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
        raise ConfigError(_told(" ".join(str(error).split()))) from error
    if given.images < 1 or given.epoch < 0:
        raise ConfigError(f"--images is 1 or more, --epoch 0 or more; not {given.images} and {given.epoch}")
    data: VisionData = parser.instantiate_classes(given).data
    shown = augmented_sheet(data, given.images, given.epoch)
    try:
        write_png(given.out, shown)
    except OSError as error:
        raise ConfigError(f"--out {given.out}: {error.strerror or error}") from error
    sys.stdout.write(f"{given.images} samples in {given.out}\n")
    return 0


_KEYS = tuple(inspect.signature(VisionData).parameters)


def _told(message: str) -> str:
    """The parser's words in short, with the nearest right spelling."""
    if "unrecognized" in message:
        word = next((word.split("=")[0] for word in message.split() if word.startswith("--")), "")
        return message + nearest(
            word, [*(f"--data.{key}" for key in _KEYS), "--config", "--images", "--epoch", "--out"]
        )
    wrong = re.match(r'Parser key "([^"]+)": .*(?:Given|Got) value: (.*)', message)
    if wrong is None:
        return message
    known = re.findall(r"'(\w+)'", next(iter(re.findall(r"Literal\[([^]]*)\]", message)), ""))
    return f"--{wrong[1]} cannot be {wrong[2]!r}{nearest(wrong[2], known)}"


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
        text = Path(path).read_text(encoding="utf-8")
        loaded = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {path}: {' '.join(str(error).split())}") from error
    part = loaded.get("data", {}) if isinstance(loaded, dict) else None
    if not isinstance(part, dict):
        raise ConfigError(f"--config {path}: `data` is not a mapping")
    for key in part:
        if key not in _KEYS:
            lines = [number for number, line in enumerate(text.splitlines(), 1) if re.search(rf"\b{key}\b", line)]
            raise ConfigError(f"unknown key {key!r} of data{nearest(str(key), _KEYS)} (in {path}, line {lines[0]})")
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
