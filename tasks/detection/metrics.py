"""COCO's average precision over a split, by the fast evaluator; answers for images without boxes and for crowds."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from pipeline.average_precision import ImageBoxes, average_precision
from pipeline.imaging.geometry import Letterbox
from pipeline.labels import LabelSpace
from pipeline.records import BoxTarget
from tasks.detection.decode import BoxPrediction

Array = NDArray[Any]


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

        out, self._precision = average_precision(gather(self.images), self.space.names)
        return out

    def curves(self) -> dict[str, Any]:
        """`precision_recall`: precision at IoU 0.5 over 101 recalls, per class (after `compute`)."""
        if self._precision is None:
            return {}
        at_half = self._precision[0, :, :, 0].T
        names = self.space.names
        return {
            "precision_recall": {name: at_half[i].tolist() for i, name in enumerate(names) if at_half[i].max() > -1}
        }
