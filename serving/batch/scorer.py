"""What judges answers by labels, and what makes it: training's metrics, which this floor knows nothing of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pipeline.bundle import HeadSpec
from serving.batch.rows import ImageResult
from serving.batch.sources import Source


class Scorer(Protocol):
    """Judges answers by labels.

    Attributes:
        number, categories: as in Context.
    """

    number: Callable[[str], int | None] | None
    categories: dict[str, int] | None

    def add(self, result: ImageResult) -> None:
        """Takes the next image."""

    def scores(self) -> dict[str, dict[str, float]]:
        """Metrics by head."""

    def knows(self, name: bytes) -> bool:
        """Whether an image is labelled."""


MakeScorer = Callable[[Source, dict[str, HeadSpec]], Scorer]
