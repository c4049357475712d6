"""What a batch prediction was asked for, and which of it decides the answers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.bundle import HeadSpec
from serving.answers import Options
from serving.batch.names import shown

SCORED_FROM = 0.001
"""Score from which boxes are kept where labels are at hand: average precision needs the weak ones too."""


PER_IMAGE = ("masks", "yolo", "overlay", "crops")
"""Writers that make files of their own for each image."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of `lightning batch-predict`.

    Attributes:
        source: folder, glob, list file, image or fsspec URL.
        model: a bundle's folder or `models:/NAME@ALIAS`.
        out: the output folder.
        engine: `auto`, `name:variant`, or `ray` with one of them after a colon.
        formats: names of writers beside predictions.parquet.
        overlay, crops: whether to write annotated pictures and cut-out boxes.
        threshold: score from which boxes and multi-label classes count; None takes each head's own.
        heads: names of the heads wanted; None for all.
        masks: whether masks are wanted.
        batch: images a call of the engine.
        tile: side of a tile in pixels; 0 predicts whole pictures.
        overlap: share of a tile that the next one repeats.
        tta: `none`, `flip` or `ten-crop`.
        workers: threads that decode and infer; 0 takes one per core.
        part: images between two points that a killed run can resume from.
        restart: whether to throw away another run in `out`.
        labels: the labelled data set's folder, or a COCO JSON file, to score against.
        labels_format: as `data.format`.
    """

    source: str
    model: str
    out: Path
    engine: str = "auto"
    formats: tuple[str, ...] = ()
    overlay: bool = False
    crops: bool = False
    threshold: float | None = None
    heads: tuple[str, ...] | None = None
    masks: bool = True
    batch: int = 4
    tile: int = 0
    overlap: float = 0.2
    tta: str = "none"
    workers: int = 0
    part: int = 256
    restart: bool = False
    labels: str | None = None
    labels_format: str = "auto"

    @property
    def options(self) -> Options:
        """What the predictor, which answers the wanted heads alone, shall keep."""
        kept = SCORED_FROM if self.labels is not None and self.threshold is None else self.threshold
        return Options(kept, masks=self.masks)

    def answered(self, heads: Mapping[str, HeadSpec]) -> dict[str, HeadSpec]:
        """Those of a model's heads that are answered."""
        only = self.heads
        return {n: h for n, h in heads.items() if (only is None or n in only) and (self.masks or h.kind != "mask")}

    @property
    def per_image(self) -> tuple[str, ...]:
        """Names of the writers that make files of their own for each image."""
        wanted = {*self.formats} | ({"overlay"} if self.overlay else set()) | ({"crops"} if self.crops else set())
        return tuple(name for name in PER_IMAGE if name in wanted)

    @property
    def ray(self) -> bool:
        """Whether Ray Data shall run it."""
        return self.engine.split(":")[0] == "ray"

    @property
    def local_engine(self) -> str:
        """The engine that answers, on this machine or in each of Ray's actors."""
        return (self.engine.partition(":")[2] or "auto") if self.ray else self.engine

    def identity(self) -> dict[str, Any]:
        """What decides the output; a run is resumed only with the same. Not the number of workers, nor who runs them."""
        return {
            "threshold": self.threshold,
            "heads": None if self.heads is None else list(self.heads),
            "masks": self.masks,
            "batch": self.batch,
            "tile": self.tile,
            "overlap": self.overlap if self.tile else None,
            "tta": self.tta,
            "part": self.part,
            "format": sorted(self.formats),
            "overlay": self.overlay,
            "crops": self.crops,
            "data.root": None if self.labels is None else shown(os.fsencode(self.labels)),
            "data.format": None if self.labels is None or self.labels_format == "auto" else self.labels_format,
        }


def again(restart: bool) -> str:
    """How a run that was stopped goes on."""
    return f"the same command{' without --restart' if restart else ''} goes on where it stopped"
