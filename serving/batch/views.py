"""What of an image the network sees: the whole, mirrored too, ten crops, or tiles; one door for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from serving.answers import Answer
from serving.batch.settings import Settings
from serving.predictor import Predictor, Prepared

View = Any
"""An image as one kind of `Views` has prepared it."""

TTA = ("none", "flip", "ten-crop")


class Views(Protocol):
    """How images are prepared and answered."""

    def prepare(self, content: bytes, name: str, path: Path | None) -> View:
        """An encoded image, ready; raises ImageError."""

    def answers(self, views: Sequence[View]) -> list[Answer]:
        """An Answer for each prepared image; raises EngineError."""


class Whole:
    """Each image once, as the service sees it."""

    def __init__(self, predictor: Predictor, settings: Settings) -> None:
        self.predictor, self.options = predictor, settings.options

    def prepare(self, content: bytes, name: str, path: Path | None) -> Prepared:  # noqa: ARG002  # every Views' signature
        """Decoded and letterboxed."""
        return self.predictor.decode(content, name)

    def answers(self, views: Sequence[Prepared]) -> list[Answer]:
        """One call of the engine."""
        outputs = self.predictor.infer(np.stack([view.pixels for view in views]))
        return self.predictor.answers(outputs, [view.frame for view in views], self.options)


def views_of(predictor: Predictor, settings: Settings) -> Views:
    """The views that the settings ask for; raises ConfigError for what cannot be had together."""
    return Whole(predictor, settings)
