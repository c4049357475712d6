"""`lightning evaluate`: a bundle's metrics on labelled images, through the serving path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.data.module import VisionData
from pipeline.errors import DataError
from pipeline.export.scoring import Scores, served_scores
from serving.predictor import Predictor


def evaluate(bundle: Path, data: dict[str, Any], split: str, engine: str) -> tuple[Predictor, Scores, int]:
    """The predictor that was used, the metrics by head, and the number of images.

    Args:
        bundle: the bundle's folder.
        data: VisionData's `root`, `format` or `shapes`.
        split: `train`, `val` or `test`.
        engine: as `--engine`.

    Raises:
        DataError: the split has no images, or labels that the bundle's heads do not know.
        BundleError, EngineError: as `Predictor.load`.
    """
    predictor = Predictor.load(bundle, engine)
    source = VisionData(size=predictor.size, **data)
    records = source.records(split)
    if not records:
        raise DataError(f"the data has no {split} images; choose another split by --split")
    source.align({name: head.space for name, head in predictor.heads.items()})
    return predictor, served_scores(predictor, source, split), len(records)
