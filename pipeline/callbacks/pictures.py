"""Pictures: predictions beside labels on a fixed sample of the validation images, and the worst at the end."""

from __future__ import annotations

import heapq
import json
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Timer
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from pipeline.imaging.draw import draw_answer, sheet, write_png
from pipeline.labels import LabelSpace
from pipeline.records import Batch, BoxTarget, ClassTarget, Target

_SURE = 0.3
"""Boxes with lower scores are neither drawn nor counted here."""


class Pictures(L.Callback):
    """Draws to the run, labels left and predictions right.

    Args:
        every_n_epochs: epochs between sheets of the fixed sample; 0 = none.
        count: images of the fixed sample: the first of the validation split.
        worst: how many of the worst images of the last validation and of the test are drawn; 0 = none.
    """

    def __init__(self, every_n_epochs: int = 5, count: int = 8, worst: int = 8) -> None:
        self.every_n_epochs, self.count, self.worst = every_n_epochs, count, worst
        self._sample: list[NDArray[np.uint8]] = []
        self._worst: list[tuple[float, int, NDArray[np.uint8], str]] = []
        self._seen = 0

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Starts a sheet."""
        self._sample, self._worst, self._seen = [], [], 0

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any, **__: Any
    ) -> None:
        """Draws the sample's images as they pass."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        last = is_last(trainer)
        if last or may_stop_early(trainer):
            self._rank(pl_module, outputs, batch)
        if not self.every_n_epochs or not (last or self._due(trainer)):
            return
        wanted = min(self.count - len(self._sample), len(batch))
        if wanted > 0 and isinstance(outputs, dict):
            spaces = spaces_of(pl_module)
            self._sample += [draw_pair(batch, outputs, spaces, i) for i in range(wanted)]

    def _due(self, trainer: L.Trainer) -> bool:
        """Whether this is the first validation after a multiple of `every_n_epochs`."""
        done = trainer.current_epoch + 1
        before = max(0, done - (trainer.check_val_every_n_epoch or 1))
        return done // self.every_n_epochs > before // self.every_n_epochs

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Logs the sheet."""
        if self._sample:
            file = folder_of(trainer) / f"epoch_{trainer.current_epoch:04d}.png"
            write_png(file, sheet(self._sample, 2))
            keep(trainer, file)
        self._sample = []

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Logs the worst of the last validation."""
        self._tell_worst(trainer, "val")

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Starts the list of the worst."""
        self._worst, self._seen = [], 0

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any, **__: Any
    ) -> None:
        """Keeps pictures of the worst images so far."""
        if trainer.is_global_zero:
            self._rank(pl_module, outputs, batch)

    def _rank(self, pl_module: L.LightningModule, outputs: Any, batch: Batch) -> None:
        if not self.worst or not isinstance(outputs, dict):
            return
        spaces = spaces_of(pl_module)
        for i, error in enumerate(errors(batch, outputs)):
            self._seen += 1
            if len(self._worst) < self.worst or error > self._worst[0][0]:
                entry = (error, self._seen, draw_pair(batch, outputs, spaces, i), batch.names[i])
                (heapq.heappush if len(self._worst) < self.worst else heapq.heapreplace)(self._worst, entry)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Logs the worst."""
        self._tell_worst(trainer, "test")

    def _tell_worst(self, trainer: L.Trainer, stage: str) -> None:
        """The very worst first, and their names."""
        if not self._worst:
            return
        ordered = sorted(self._worst, key=lambda entry: -entry[0])
        file = folder_of(trainer) / f"{stage}_worst.png"
        write_png(file, sheet([entry[2] for entry in ordered], 2))
        keep(trainer, file)
        names = [{"image": entry[3], "error": round(entry[0], 4)} for entry in ordered]
        file.with_suffix(".json").write_text(json.dumps(names, indent=1), encoding="utf-8")
        keep(trainer, file.with_suffix(".json"))
        self._worst = []


def is_last(trainer: L.Trainer) -> bool:
    """Whether no validation is planned after this one."""
    every = trainer.check_val_every_n_epoch or 1
    return trainer.max_epochs is not None and 0 < trainer.max_epochs < trainer.current_epoch + 1 + every


def may_stop_early(trainer: L.Trainer) -> bool:
    """Whether any validation may turn out to be the last one."""
    if trainer.early_stopping_callbacks or trainer.max_steps > 0 or (trainer.max_epochs or -1) < 0:
        return True
    return any(isinstance(callback, Timer) for callback in cast("Any", trainer).callbacks)


def folder_of(trainer: L.Trainer) -> Path:
    """Where pictures are written: beside the checkpoints, else in the trainer's folder."""
    place = getattr(trainer.checkpoint_callback, "dirpath", None)
    return Path(place or trainer.default_root_dir) / "pictures"


def keep(trainer: L.Trainer, file: Path) -> None:
    """Copies a file into the run, for every logger that keeps files."""
    for logger in cast("list[Any]", trainer.loggers):
        if hasattr(logger, "log_file"):
            logger.log_file(file, "pictures")


def spaces_of(pl_module: L.LightningModule) -> dict[str, LabelSpace]:
    """The label space of each head."""
    heads = cast("Any", pl_module).network.named_heads()
    return {name: head.space for name, head in heads.items()}


def errors(batch: Batch, predictions: dict[str, Any]) -> list[float]:
    """How wrong each image's predictions are: 0 = right, 1 = all wrong, the mean over the heads it is labelled for."""
    each: list[list[float]] = [[] for _ in batch.names]
    for name, prediction in predictions.items():
        target = batch.targets.get(name)
        if target is None:
            continue
        for i in torch.nonzero(target.present).flatten().tolist():
            each[i].append(_error(prediction, target, i))
    return [sum(values) / len(values) if values else 0.0 for values in each]


def _error(prediction: Any, target: Target, i: int) -> float:
    """One image's error for one head: distance of probabilities, 1 - F1 at IoU 0.5, or the share of wrong pixels."""
    if isinstance(target, ClassTarget):
        return float((prediction.probabilities[i].float() - target.scores[i]).abs().max())
    if isinstance(target, BoxTarget):
        sure = prediction.scores[i] >= _SURE
        real = (target.classes[i] >= 0) & ~target.crowd[i]
        return 1 - _f1(
            prediction.boxes[i][sure].float(),
            prediction.classes[i][sure],
            target.xyxy[i][real],
            target.classes[i][real],
        )
    counted = target.mask[i] != 255
    wrong = (prediction.mask[i] != target.mask[i]) & counted
    return float(wrong.sum() / counted.sum().clamp(min=1))


def _f1(boxes: Tensor, classes: Tensor, truth: Tensor, wanted: Tensor) -> float:
    """F1 of boxes (N, 4), best score first, against truth (M, 4), each truth used once; 1 when both are empty."""
    if len(boxes) == 0 or len(truth) == 0:
        return float(len(boxes) == len(truth))
    overlap = box_iou(boxes, truth) * (classes[:, None] == wanted[None])
    hits = 0
    for row in range(len(boxes)):
        value, column = overlap[row].max(0)
        if value >= 0.5:
            hits += 1
            overlap[:, column] = 0
    return 2 * hits / (len(boxes) + len(truth))


def draw_pair(batch: Batch, predictions: dict[str, Any], spaces: dict[str, LabelSpace], i: int) -> NDArray[np.uint8]:
    """Image `i` of a batch twice, side by side: labels left, predictions right; uint8 (H, W, 3)."""
    pixels = batch.images[i]
    if pixels.is_floating_point():
        pixels = (pixels * 255).clamp(0, 255)
    image = np.ascontiguousarray(pixels.to(torch.uint8).permute(1, 2, 0).cpu().numpy()[..., :3])
    if image.shape[2] != 3:
        image = np.repeat(image[..., :1], 3, axis=2)
    truth = {}
    for name in spaces:
        target = batch.targets.get(name)
        if target is not None and bool(target.present[i]):
            truth[name] = as_answer(target, i)
    guess = {
        name: {field: _array(value[i]) for field, value in predictions[name]._asdict().items()}
        for name in spaces
        if name in predictions
    }
    return sheet([draw_answer(image, truth, spaces, _SURE), draw_answer(image, guess, spaces, _SURE)], 2)


def as_answer(target: Target, i: int) -> dict[str, Any]:
    """The label of image `i` in the form of a prediction, with full confidence."""
    if isinstance(target, ClassTarget):
        return {"probabilities": _array(target.scores[i])}
    if isinstance(target, BoxTarget):
        real = target.classes[i] >= 0
        boxes, classes = target.xyxy[i][real], target.classes[i][real]
        return {"boxes": _array(boxes), "scores": np.ones(len(boxes), np.float32), "classes": _array(classes)}
    return {"mask": _array(target.mask[i])}


def _array(tensor: Tensor) -> Any:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
