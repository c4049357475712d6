"""`--tta`: answers averaged over a picture and its mirror image, or over ten crops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.bundle import HeadSpec
from pipeline.imaging.decode import decode_bytes
from serving.answers import Answer, HeadAnswer, LabelAnswer, Options
from serving.batch.merge import average_boxes
from serving.engines.base import Engine, EngineReport, Outputs
from serving.predictor import Predictor, Prepared

CROP = 224 / 256
"""Side of each of the ten crops, as a share of the picture's (Krizhevsky et al. 2012)."""


class MirroredEngine:
    """An engine that answers for each batch and its mirror image, averaged.

    Args:
        engine: answers each.
        heads: the bundle's. A mask without probabilities in the graph cannot be averaged and stays the plain one.
    """

    def __init__(self, engine: Engine, heads: dict[str, HeadSpec]) -> None:
        self._engine, self._heads = engine, heads

    def infer(self, batch: NDArray[np.uint8]) -> Outputs:
        """RGB uint8 (B, H, W, 3) to the averaged answers by name; raises EngineError."""
        plain = self._engine.infer(batch)
        mirrored = self._engine.infer(np.ascontiguousarray(batch[:, :, ::-1]))
        out = dict(plain)
        for name, head in self._heads.items():
            if head.kind == "boxes":
                out |= _boxes(name, plain, mirrored, batch.shape[2])
                continue
            key = f"{name}.probabilities"
            if key in plain:
                other = mirrored[key][..., ::-1] if head.kind == "mask" else mirrored[key]
                out[key] = ((plain[key].astype(np.float32) + other) / 2).astype(np.float32)
            if head.kind == "mask" and key in plain:
                out[f"{name}.mask"] = out[key].argmax(1).astype(np.uint8)
        return out

    def warm_up(self, batch: int = 1) -> None:
        """As the engine's."""
        self._engine.warm_up(batch)

    def cancel(self) -> None:
        """As the engine's."""
        self._engine.cancel()

    def report(self) -> EngineReport:
        """The engine's."""
        return self._engine.report()


def _boxes(name: str, plain: Outputs, mirrored: Outputs, width: int) -> Outputs:
    keys = [f"{name}.{column}" for column in ("boxes", "scores", "classes")]
    merged = []
    for boxes, scores, classes, others, their_scores, their_classes in zip(
        *(plain[key] for key in keys), *(mirrored[key] for key in keys), strict=True
    ):
        back = np.stack([width - others[:, 2], others[:, 1], width - others[:, 0], others[:, 3]], 1)
        merged.append(average_boxes((boxes, scores, classes), (back, their_scores, their_classes)))
    return {key: np.stack([one[at] for one in merged]) for at, key in enumerate(keys)}


def mirrored(predictor: Predictor) -> Predictor:
    """A predictor that answers through a MirroredEngine."""
    return Predictor(predictor.bundle, MirroredEngine(predictor.engine, predictor.heads), predictor.choice)


@dataclass(frozen=True, slots=True)
class Crops:
    """A picture as the network's inputs: five crops uint8 (5, H, W, 3), and the whole."""

    five: NDArray[np.uint8]
    whole: Prepared


class TenCrop:
    """Image labels averaged over the four corners and the middle, each mirrored too; boxes and masks are of the whole.

    Each crop is 224/256 of the picture's height and width, letterboxed as any picture.
    """

    opens_files = False

    def __init__(self, predictor: Predictor, options: Options) -> None:
        wanted = options.heads or tuple(predictor.heads)
        self.labels = tuple(n for n in wanted if predictor.heads[n].kind in {"classes", "multilabel"})
        self.others = len(self.labels) < len(wanted)
        self.predictor, self.options = predictor, options

    def prepare(self, content: bytes | None, name: str, path: Path | None) -> Crops:  # noqa: ARG002  # every Views' signature
        """Decoded, cut and letterboxed; raises ImageError."""
        assert content is not None
        pixels, full = decode_bytes(content, name, round(max(self.predictor.size) / CROP))
        height, width = pixels.shape[:2]
        tall, wide = max(1, round(height * CROP)), max(1, round(width * CROP))
        corners = [(0, 0), (0, width - wide), (height - tall, 0), (height - tall, width - wide)]
        corners.append(((height - tall) // 2, (width - wide) // 2))
        five = [self.predictor.letterbox(pixels[y : y + tall, x : x + wide]).pixels for y, x in corners]
        return Crops(np.stack(five), self.predictor.letterbox(pixels, full))

    def answers(self, views: Sequence[Crops]) -> list[Answer]:
        """Ten inferences a picture, and one more where other heads are wanted."""
        return [self._answer(view) for view in views]

    def _answer(self, view: Crops) -> Answer:
        ten = np.concatenate([view.five, view.five[:, :, ::-1]])
        outputs = self.predictor.infer(np.ascontiguousarray(ten))
        crops = self.predictor.answers(outputs, [view.whole.frame] * 10, Options(self.options.threshold, self.labels))
        found: dict[str, HeadAnswer] = {name: _mean([crop.heads[name] for crop in crops]) for name in self.labels}
        if not self.others:
            return Answer(view.whole.frame.source, found)
        outputs = self.predictor.infer(view.whole.pixels[None])
        (whole,) = self.predictor.answers(outputs, [view.whole.frame], self.options)
        return Answer(whole.size, {name: found.get(name, answer) for name, answer in whole.heads.items()})


def _mean(found: Sequence[HeadAnswer]) -> LabelAnswer:
    labels = [answer for answer in found if isinstance(answer, LabelAnswer)]
    values = np.stack([answer.probabilities for answer in labels]).mean(0).astype(np.float32)
    return LabelAnswer(values, labels[0].multilabel, labels[0].threshold)
