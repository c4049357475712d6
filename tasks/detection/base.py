"""What every head that answers with boxes shares: its kind, and how its answers are measured."""

from __future__ import annotations

from abc import ABC

from tasks.detection.metrics import BoxMetrics
from tasks.head import Head


class BoxHead(Head, ABC):
    """A head of labelled boxes, whose `decode` gives a BoxPrediction."""

    kind = "boxes"
    main_metric = "AP"

    def metrics(self) -> BoxMetrics:
        """COCO's AP and its kin."""
        return BoxMetrics(self.space)
