"""Pictures: predictions beside labels on a fixed sample of the validation images, and the test's worst."""

from __future__ import annotations

import heapq
import io
from dataclasses import dataclass
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from pipeline.callbacks.checkpoints import run_logger
from pipeline.imaging.draw import contact_sheet, draw_labels
from pipeline.labels import LabelSpace
from pipeline.records import Batch, BoxTarget, ClassTarget, MaskTarget, Target

_SURE = 0.3
"""Boxes with lower scores are neither drawn nor counted here."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What is drawn on one image: texts, boxes (N, 4) with classes (N,), a mask (H, W), with their spaces."""

    texts: list[str]
    boxes: list[tuple[NDArray[np.float32], NDArray[np.int64], LabelSpace]]
    masks: list[tuple[NDArray[np.uint8], LabelSpace]]


class Pictures(L.Callback):
    """Draws to the run, labels left and predictions right.

    Args:
        every_n_epochs: epochs between sheets of the fixed sample; 0 = none.
        count: images of the fixed sample: the first of the validation split.
        worst: how many of the test's worst images are drawn at its end; 0 = none.
    """

    def __init__(self, every_n_epochs: int = 5, count: int = 8, worst: int = 8) -> None:
        self.every_n_epochs, self.count, self.worst = every_n_epochs, count, worst
        self._sample: list[NDArray[np.uint8]] = []
        self._worst: list[tuple[float, int, NDArray[np.uint8], str]] = []
        self._seen = 0

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Starts a sheet."""
        self._sample = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any, **__: Any
    ) -> None:
        """Draws the sample's images as they pass."""
        due = self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        last = trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs
        if not (due or (self.every_n_epochs and last)) or trainer.sanity_checking or not trainer.is_global_zero:
            return
        wanted = min(self.count - len(self._sample), len(batch))
        if wanted > 0 and isinstance(outputs, dict):
            spaces = spaces_of(pl_module)
            self._sample += [draw_pair(batch, outputs, spaces, i) for i in range(wanted)]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Logs the sheet."""
        logger = run_logger(trainer)
        if self._sample and logger is not None:
            logger.log_bytes(png(contact_sheet(self._sample, 2)), f"pictures/epoch_{trainer.current_epoch:04d}.png")
        self._sample = []

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Starts the list of the worst."""
        self._worst, self._seen = [], 0

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any, **__: Any
    ) -> None:
        """Keeps pictures of the worst images so far."""
        if not self.worst or not trainer.is_global_zero or not isinstance(outputs, dict):
            return
        spaces = spaces_of(pl_module)
        for i, error in enumerate(errors(batch, outputs)):
            self._seen += 1
            if len(self._worst) < self.worst or error > self._worst[0][0]:
                entry = (error, self._seen, draw_pair(batch, outputs, spaces, i), batch.names[i])
                (heapq.heappush if len(self._worst) < self.worst else heapq.heapreplace)(self._worst, entry)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Logs the worst, the very worst first, and their names."""
        logger = run_logger(trainer)
        if not self._worst or logger is None:
            return
        ordered = sorted(self._worst, key=lambda entry: -entry[0])
        logger.log_bytes(png(contact_sheet([entry[2] for entry in ordered], 2)), "pictures/test_worst.png")
        names = [{"image": entry[3], "error": round(entry[0], 4)} for entry in ordered]
        logger.log_json(names, "pictures/test_worst.json")
        self._worst = []


def spaces_of(pl_module: L.LightningModule) -> dict[str, LabelSpace]:
    """The label space of each head."""
    heads = cast("Any", pl_module).network.heads
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
    """Image `i` of a batch twice, side by side: labels left, predictions right; uint8 (H, 2 W + 4, 3)."""
    pixels = batch.images[i]
    if pixels.is_floating_point():
        pixels = (pixels * 255).clamp(0, 255)
    image = np.ascontiguousarray(pixels.to(torch.uint8).permute(1, 2, 0).cpu().numpy()[..., :3])
    if image.shape[2] != 3:
        image = np.repeat(image[..., :1], 3, axis=2)
    truth, guess = Shown(["label"], [], []), Shown(["prediction"], [], [])
    for name, space in spaces.items():
        target = batch.targets.get(name)
        if target is not None and bool(target.present[i]):
            _add_target(truth, name, target, space, i)
        if name in predictions:
            _add_prediction(guess, name, predictions[name], space, i)
    gap = np.full((image.shape[0], 4, 3), 255, np.uint8)
    return np.concatenate([_draw(image, truth), gap, _draw(image, guess)], axis=1)


def _add_target(shown: Shown, name: str, target: Target, space: LabelSpace, i: int) -> None:
    if isinstance(target, ClassTarget):
        chosen = torch.nonzero(target.scores[i] >= 0.5).flatten().tolist()
        shown.texts.append(f"{name}: {', '.join(space.names[c] for c in chosen) or '-'}")
    elif isinstance(target, BoxTarget):
        real = target.classes[i] >= 0
        shown.boxes.append((_array(target.xyxy[i][real]), _array(target.classes[i][real]), space))
    elif isinstance(target, MaskTarget):
        shown.masks.append((_array(target.mask[i]), space))


def _add_prediction(shown: Shown, name: str, prediction: Any, space: LabelSpace, i: int) -> None:
    if space.kind in {"classes", "multilabel"}:
        p = prediction.probabilities[i].float()
        chosen = [int(p.argmax())] if space.kind == "classes" else torch.nonzero(p >= 0.5).flatten().tolist()
        shown.texts.append(f"{name}: {', '.join(f'{space.names[c]} {float(p[c]):.2f}' for c in chosen) or '-'}")
    elif space.kind == "boxes":
        sure = prediction.scores[i] >= _SURE
        shown.boxes.append((_array(prediction.boxes[i][sure].float()), _array(prediction.classes[i][sure]), space))
    else:
        shown.masks.append((_array(prediction.mask[i]), space))


def _array(tensor: Tensor) -> Any:
    return tensor.detach().cpu().numpy()


def png(image: NDArray[np.uint8]) -> bytes:
    """A uint8 RGB picture (H, W, 3) as PNG bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
