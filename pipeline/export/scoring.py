"""Task metrics by the trainer's own classes: of the network in PyTorch, and of a bundle through the serving path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.module import VisionData
from pipeline.errors import ExportError, ImageError
from pipeline.imaging.geometry import Letterbox
from pipeline.labels import LabelSpace
from pipeline.records import Batch, BoxTarget, ClassTarget, FileImage, ImageSource, MaskTarget, Record, Target
from serving.answers import Answer, BoxAnswer, LabelAnswer, MaskAnswer, Options
from serving.batch.views import Views, untiled
from serving.predictor import Predictor
from tasks.classification import ClassMetrics, ClassPrediction
from tasks.detection.decode import BoxPrediction
from tasks.detection.metrics import BoxMetrics
from tasks.head import HeadMetrics
from tasks.network import VisionNetwork
from tasks.segmentation import MaskMetrics, MaskPrediction

Scores = dict[str, dict[str, float]]
"""By head, then by metric."""

MAIN = {"classes": "accuracy", "multilabel": "accuracy", "boxes": "AP", "mask": "mIoU"}
"""The figure of each kind of head that the gate compares, as `val/score` does."""

EVERYTHING = Options(threshold=0.0)


def eager_scores(network: VisionNetwork, data: VisionData, split: str = "val") -> Scores:
    """The metrics of the network in PyTorch, float32, as training's evaluation computes them."""
    metrics = {name: head.metrics() for name, head in network.named_heads().items()}
    with torch.inference_mode():
        for batch in _loader(data, split):
            predictions = network.decode(network(batch.images))
            for name, each in metrics.items():
                if name in batch.targets:
                    each.update(predictions[name], batch.targets[name], batch.frames)
    return {name: each.compute() for name, each in metrics.items()}


def served_scores(
    predictor: Predictor,
    data: VisionData,
    split: str = "val",
    metrics: dict[str, HeadMetrics] | None = None,
    tta: str = "none",
    unread: set[str] | None = None,
) -> Scores:
    """The metrics of a bundle: every image encoded, decoded, letterboxed, inferred and moved back as in serving.

    Args:
        predictor: the bundle on an engine.
        data: where the images are.
        split: `train`, `val` or `test`.
        metrics: to add to, by head; None for fresh ones.
        tta: averages over several views of each image, as batch-predict does.
        unread: is given the names of images that cannot be read, which the metrics leave out.
    """
    views = untiled(predictor, EVERYTHING, tta)
    metrics = metrics or {name: metrics_for(head.space, head.threshold) for name, head in predictor.heads.items()}
    records = iter(data.records(split))
    for batch in _loader(data, split):
        for index, answer in _answered(views, list(islice(records, len(batch))), set() if unread is None else unread):
            for name, each in metrics.items():
                if name in batch.targets:
                    target = full_size_target(batch, name, index)
                    each.update(as_prediction(answer.heads[name]), target, [None])
    return {name: each.compute() for name, each in metrics.items()}


def _answered(views: Views, records: list[Record], unread: set[str]) -> list[tuple[int, Answer]]:
    """The answers with their images' numbers; the names of images that cannot be read go to `unread`."""
    prepared: list[tuple[int, Any]] = []
    for index, record in enumerate(records):
        try:
            prepared.append((index, views.prepare(encoded_image(record), "image", None)))
        except ImageError:
            unread.add(record.image.name)
    answers = views.answers([view for _, view in prepared]) if prepared else []
    return [(index, answer) for (index, _), answer in zip(prepared, answers, strict=True)]


def _loader(data: VisionData, split: str) -> Iterator[Batch]:
    return iter(data.evaluation_dataloader(split))


def metrics_for(space: LabelSpace, threshold: float = 0.5) -> HeadMetrics:
    """Fresh metrics for a head of which only the bundle is at hand; multi-label classes count from `threshold`."""
    if space.kind == "boxes":
        return BoxMetrics(space)
    return MaskMetrics(space) if space.kind == "mask" else ClassMetrics(space, threshold)


def encoded_image(record: Record) -> bytes:
    """The file's bytes; drawn images become PNG, which loses nothing. Raises ImageError."""
    source: ImageSource = record.image
    if isinstance(source, FileImage):
        try:
            return source.path.read_bytes()
        except OSError as error:
            raise ImageError(f"{source.path}: {error.strerror}") from error
    import cv2

    pixels, _ = source.read()
    return bytes(cv2.imencode(".png", pixels[..., ::-1])[1].tobytes())


def full_size_target(batch: Batch, name: str, index: int) -> Target:
    """One image's labels in pixels of the full image, as a batch of one."""
    target, frame = batch.targets[name], batch.frames[index]
    one = slice(index, index + 1)
    if isinstance(target, ClassTarget):
        return ClassTarget(target.scores[one], target.present[one])
    if isinstance(target, BoxTarget):
        boxes = target.xyxy[index].numpy()
        moved = torch.from_numpy(boxes if frame is None else frame.to_source(boxes))
        return BoxTarget(moved[None], target.classes[one], target.crowd[one], target.present[one])
    full = target.full[index] if target.full else None
    return MaskTarget(target.mask[one] if full is None else full[None], target.present[one])


def as_prediction(answer: LabelAnswer | BoxAnswer | MaskAnswer) -> Any:
    """An answer as the batch of one that the metrics take."""
    if isinstance(answer, LabelAnswer):
        return ClassPrediction(torch.from_numpy(answer.probabilities)[None])
    if isinstance(answer, BoxAnswer):
        columns = (answer.boxes, answer.scores, answer.classes)
        return BoxPrediction(*(torch.from_numpy(np.ascontiguousarray(column))[None] for column in columns))
    mask: Tensor = torch.from_numpy(answer.mask)[None]
    return MaskPrediction(mask, mask)


def sample_images(
    data: VisionData, predictor_size: tuple[int, int], count: int, split: str = "val"
) -> np.ndarray[Any, Any]:
    """The first readable images of a split as the network sees them: uint8 (count, H, W, 3), repeated where too few.

    Raises ExportError where none can be read.
    """
    from pipeline.imaging.letterbox import letterbox_image

    found: list[np.ndarray[Any, Any]] = []
    for record in data.records(split):
        with suppress(ImageError):
            pixels, full = record.image.read(max(predictor_size))
            found.append(letterbox_image(pixels, Letterbox.fit(full, predictor_size)))
        if len(found) == count:
            break
    if not found:
        raise ExportError(f"none of the {split} images can be read; `lightning check-data` tells why")
    return np.stack([found[i % len(found)] for i in range(count)])
