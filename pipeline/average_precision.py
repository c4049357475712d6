"""COCO's average precision of boxes by the fast evaluator, in NumPy: for training's metrics and for batch prediction."""

from __future__ import annotations

import contextlib
import io
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class ImageBoxes(NamedTuple):
    """One image's predicted and labelled boxes, NumPy, in pixels of the full image where its frame is known."""

    boxes: Array
    scores: Array
    classes: Array
    wanted: Array
    wanted_classes: Array
    crowd: Array


def average_precision(images: list[ImageBoxes], names: tuple[str, ...]) -> tuple[dict[str, float], Array | None]:
    """The metrics, and precision (10, 101, C, 4) over IoU thresholds, recalls, classes and sizes.

    AP (IoU 0.50 to 0.95), AP50, AP75, AP_small, AP_medium, AP_large, AR, AP/<class> and AP50/<class>; AP and AP50 alone,
    NaN, where nothing is labelled.
    """
    if not any(len(image.wanted) for image in images):
        return dict.fromkeys(("AP", "AP50"), math.nan), None
    evaluation = coco_evaluation(images, len(names))
    # precision: IoU thresholds, recalls, classes, areas (all, small, medium, large), detections.
    precision, recall = evaluation["precision"][..., -1], evaluation["recall"][..., -1]
    out = {
        "AP": defined_mean(precision[..., 0]),
        "AP50": defined_mean(precision[0, ..., 0]),
        "AP75": defined_mean(precision[5, ..., 0]),
        "AP_small": defined_mean(precision[..., 1]),
        "AP_medium": defined_mean(precision[..., 2]),
        "AP_large": defined_mean(precision[..., 3]),
        "AR": defined_mean(recall[..., 0]),
    }
    for i, name in enumerate(names):
        out |= {f"AP/{name}": defined_mean(precision[:, :, i, 0]), f"AP50/{name}": defined_mean(precision[0, :, i, 0])}
    return {name: value for name, value in out.items() if not math.isnan(value) or name in {"AP", "AP50"}}, precision


def defined_mean(values: Array) -> float:
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
