"""What of an image the network sees: the whole, mirrored too, ten crops, or tiles; one door for all of them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipeline.bundle import HeadSpec
from pipeline.errors import ConfigError
from serving.answers import Answer, Options
from serving.batch.settings import Settings
from serving.batch.tiles import Tiles
from serving.batch.tta import TenCrop, mirrored
from serving.predictor import Predictor, Prepared

View = Any
"""An image as one kind of `Views` has prepared it."""

TTA = ("none", "flip", "ten-crop")


class Views(Protocol):
    """How images are prepared and answered; `opens_files` where `prepare` reads a file that was not read before."""

    opens_files: bool

    def prepare(self, content: bytes | None, name: str, path: Path | None) -> View:
        """An encoded image, ready; raises ImageError."""

    def answers(self, views: Sequence[View]) -> list[Answer]:
        """An Answer for each prepared image; raises EngineError, or ImageError where pixels are read only now."""


class Whole:
    """Each image once, as the service sees it."""

    opens_files = False

    def __init__(self, predictor: Predictor, options: Options) -> None:
        self.predictor, self.options = predictor, options

    def prepare(self, content: bytes | None, name: str, path: Path | None) -> Prepared:  # noqa: ARG002  # every Views' signature
        """Decoded and letterboxed."""
        assert content is not None
        return self.predictor.decode(content, name)

    def answers(self, views: Sequence[Prepared]) -> list[Answer]:
        """One call of the engine."""
        outputs = self.predictor.infer(np.stack([view.pixels for view in views]))
        return self.predictor.answers(outputs, [view.frame for view in views], self.options)


def check_views(settings: Settings, heads: Mapping[str, HeadSpec]) -> None:
    """Raises ConfigError for what cannot be had together, or of these heads."""
    if settings.tta != "ten-crop":
        return
    if settings.tile:
        raise ConfigError("--tile cuts tiles and --tta ten-crop other crops; take one of them, or --tta flip")
    check_ten_crop(heads)


def check_ten_crop(heads: Mapping[str, HeadSpec]) -> None:
    """Raises ConfigError where none of the heads has what ten crops are averaged for."""
    if not any(head.kind in {"classes", "multilabel"} for head in heads.values()):
        raise ConfigError("--tta ten-crop averages image labels, and none is wanted; take --tta flip for the others")


def views_of(predictor: Predictor, settings: Settings, stopped: threading.Event) -> Views:
    """The views that the settings ask for; `stopped` ends those of many tiles early."""
    if settings.tile:
        return Tiles(mirrored(predictor) if settings.tta == "flip" else predictor, settings, stopped)
    return untiled(predictor, settings.options, settings.tta)


def untiled(predictor: Predictor, options: Options, tta: str = "none") -> Views:
    """Whole pictures, once each or averaged as `tta` says."""
    if tta == "ten-crop":
        return TenCrop(predictor, options)
    return Whole(mirrored(predictor) if tta == "flip" else predictor, options)
