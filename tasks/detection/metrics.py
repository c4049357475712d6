"""COCO's average precision over a split, by the fast evaluator; answers for images without boxes and for crowds."""

from __future__ import annotations

import contextlib
import io
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.imaging.geometry import Letterbox
from pipeline.labels import LabelSpace
from pipeline.records import BoxTarget
from tasks.detection.decode import BoxPrediction

Array = NDArray[Any]


class ImageBoxes(NamedTuple):
    """One image's predicted and labelled boxes, NumPy, in pixels of the full image where its frame is known."""

    boxes: Array
    scores: Array
    classes: Array
    wanted: Array
    wanted_classes: Array
    crowd: Array


class BoxMetrics:
    """AP (IoU 0.50 to 0.95), AP50, AP75, by size (small < 32², large > 96² pixels) and per class."""

    def __init__(self, space: LabelSpace, min_score: float = 0.001) -> None:
        self.space = space
        self.min_score = min_score
        self.images: list[ImageBoxes] = []
        self._precision: Array | None = None

    def reset(self) -> None:
        """Forgets everything."""
        self.images = []

    def update(self, prediction: BoxPrediction, target: BoxTarget, frames: list[Letterbox | None]) -> None:
        """Adds the labelled images of a batch."""
        columns = [value.detach().float().cpu().numpy() for value in prediction]
        wanted, classes = target.xyxy.cpu().numpy(), target.classes.cpu().numpy()
        crowd = target.crowd.cpu().numpy()
        for i in target.present.nonzero().flatten().tolist():
            keep, real, frame = columns[1][i] >= self.min_score, classes[i] >= 0, frames[i]
            boxes, labels = columns[0][i][keep], wanted[i][real]
            if frame is not None:
                boxes, labels = frame.to_source(boxes), frame.to_source(labels)
            self.images.append(
                ImageBoxes(boxes, columns[1][i][keep], columns[2][i][keep], labels, classes[i][real], crowd[i][real])
            )

    def compute(self) -> dict[str, float]:
        """AP, AP50, AP75, AP_small, AP_medium, AP_large, AR, AP/<class>, AP50/<class>; NaN where nothing is labelled."""
        from tasks.sync import gather

        images = gather(self.images)
        if not any(len(image.wanted) for image in images):
            return dict.fromkeys(("AP", "AP50"), math.nan)
        evaluation = coco_evaluation(images, len(self.space.names))
        # precision: IoU thresholds, recalls, classes, areas (all, small, medium, large), detections.
        precision, recall = evaluation["precision"][..., -1], evaluation["recall"][..., -1]
        self._precision = precision
        out = {
            "AP": _mean(precision[..., 0]),
            "AP50": _mean(precision[0, ..., 0]),
            "AP75": _mean(precision[5, ..., 0]),
            "AP_small": _mean(precision[..., 1]),
            "AP_medium": _mean(precision[..., 2]),
            "AP_large": _mean(precision[..., 3]),
            "AR": _mean(recall[..., 0]),
        }
        for i, name in enumerate(self.space.names):
            out |= {f"AP/{name}": _mean(precision[:, :, i, 0]), f"AP50/{name}": _mean(precision[0, :, i, 0])}
        return {name: value for name, value in out.items() if not math.isnan(value) or name in {"AP", "AP50"}}

    def curves(self) -> dict[str, Any]:
        """`precision_recall`: precision at IoU 0.5 over 101 recalls, per class (after `compute`)."""
        if self._precision is None:
            return {}
        at_half = self._precision[0, :, :, 0].T
        names = self.space.names
        return {
            "precision_recall": {name: at_half[i].tolist() for i, name in enumerate(names) if at_half[i].max() > -1}
        }


def _mean(values: Array) -> float:
    """Mean of the entries that COCO defines (it marks the others with -1); NaN when there are none."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else math.nan


def coco_evaluation(images: list[ImageBoxes], classes: int) -> dict[str, Array]:
    """`precision` (10, 101, C, 4, 3) and `recall` (10, C, 4, 3) as pycocotools lays them out; -1 where undefined."""
    from faster_coco_eval import COCO, COCOeval_faster

    categories = [{"id": i + 1, "name": str(i)} for i in range(classes)]
    truth, guesses = coco_rows(images)
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO(
            {"images": [{"id": i + 1} for i in range(len(images))], "annotations": truth, "categories": categories}
        )
        evaluator = COCOeval_faster(
            ground,
            ground.loadRes(guesses)
            if guesses
            else COCO({"images": ground.dataset["images"], "annotations": [], "categories": categories}),
            "bbox",
        )
        evaluator.run()
    result: dict[str, Array] = evaluator.eval
    shape = (10, 101, classes, 4, 3)
    return {
        "precision": np.reshape(result["precision"], shape),
        "recall": np.reshape(result["recall"], (10, classes, 4, 3)),
    }


def coco_rows(images: list[ImageBoxes]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """COCO's annotations and results of these images: ids from 1, boxes as x, y, width, height."""
    truth: list[dict[str, Any]] = []
    guesses: list[dict[str, Any]] = []
    for number, image in enumerate(images, 1):
        for box, kind, crowd in zip(
            image.wanted.tolist(), image.wanted_classes.tolist(), image.crowd.tolist(), strict=True
        ):
            xywh = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            row = {"id": len(truth) + 1, "image_id": number, "category_id": int(kind) + 1, "bbox": xywh}
            truth.append(row | {"area": xywh[2] * xywh[3], "iscrowd": int(crowd)})
        for box, score, kind in zip(image.boxes.tolist(), image.scores.tolist(), image.classes.tolist(), strict=True):
            xywh = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            guesses.append({"image_id": number, "category_id": int(kind) + 1, "bbox": xywh, "score": score})
    return truth, guesses
