"""`lightning evaluate`: a bundle's metrics on labelled images, through the serving path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.module import VisionData
from pipeline.errors import DataError
from pipeline.export.scoring import Scores, served_scores
from serving.batch.views import check_ten_crop
from serving.predictor import Predictor


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What a bundle is worth on a split.

    Attributes:
        predictor: that was used.
        images: of the split, less those that cannot be read.
        unread: the names of the latter.
        scores: metrics by head, each image seen once.
        averaged: the same over several views of each; None where none were asked for.
        remarks: labels that no head answers, and heads without labels.
    """

    predictor: Predictor
    images: int
    unread: tuple[str, ...]
    scores: Scores
    averaged: Scores | None = None
    remarks: tuple[str, ...] = ()


def evaluate(bundle: Path, data: dict[str, Any], split: str, engine: str, tta: str = "none") -> Evaluated:
    """A bundle's metrics on labelled images.

    Args:
        bundle: the bundle's folder.
        data: VisionData's `root`, `format` or `shapes`.
        split: `train`, `val` or `test`.
        engine: as `--engine`.
        tta: `none`, or `flip` or `ten-crop`: the metrics also of answers averaged so.

    Raises:
        ConfigError: ten crops of a bundle without image labels.
        DataError: the split has no images, or labels that the bundle's heads do not know.
        BundleError, EngineError: as `Predictor.load`.
    """
    predictor = Predictor.load(bundle, engine)
    if tta == "ten-crop":
        check_ten_crop(predictor.heads)
    source = VisionData(size=predictor.size, **data)
    records = source.records(split)
    if not records:
        raise DataError(f"the data has no {split} images; choose another split by --split")
    remarks = source.align({name: head.space for name, head in predictor.heads.items()})
    unread: set[str] = set()
    scores = served_scores(predictor, source, split, unread=unread)
    averaged = None if tta == "none" else served_scores(predictor, source, split, tta=tta)
    return Evaluated(predictor, len(records) - len(unread), tuple(sorted(unread)), scores, averaged, remarks)
