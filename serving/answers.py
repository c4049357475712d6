"""What a network answers about one image, per head, in pixels of the upright image as it was sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.bundle import HeadSpec
from pipeline.imaging.enlarge import likeliest_runs, nearest_runs
from pipeline.imaging.geometry import Letterbox
from pipeline.imaging.runs import MaskRuns
from serving.engines.base import Outputs


@dataclass(frozen=True, slots=True)
class LabelAnswer:
    """Image labels: probabilities float32 (C,); a sum of 1, or each alone where `multilabel`."""

    probabilities: NDArray[np.float32]
    multilabel: bool = False
    threshold: float = 0.5

    @property
    def chosen(self) -> list[int]:
        """The likeliest class, or every class from the threshold on where `multilabel`."""
        if self.multilabel:
            return [int(i) for i in np.nonzero(self.probabilities >= self.threshold)[0]]
        return [int(self.probabilities.argmax())]


@dataclass(frozen=True, slots=True)
class BoxAnswer:
    """Boxes: xyxy float32 (N, 4), scores float32 (N,) descending, classes int64 (N,)."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MaskAnswer:
    """A class index for each of the full image's pixels, held as runs or as uint8 (h, w), each made from the other."""

    held: MaskRuns | NDArray[np.uint8]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.held.size if isinstance(self.held, MaskRuns) else (self.held.shape[0], self.held.shape[1])

    @property
    def mask(self) -> NDArray[np.uint8]:
        """Uint8 (h, w); made at each call where runs are held."""
        return self.held.mask() if isinstance(self.held, MaskRuns) else self.held

    @property
    def runs(self) -> MaskRuns:
        """Runs down the columns, found at each call where the plane is held."""
        return self.held if isinstance(self.held, MaskRuns) else MaskRuns.of(self.held)


HeadAnswer = LabelAnswer | BoxAnswer | MaskAnswer


@dataclass(frozen=True, slots=True)
class Answer:
    """All heads' answers on one image of `size` (height, width)."""

    size: tuple[int, int]
    heads: dict[str, HeadAnswer]


@dataclass(frozen=True, slots=True)
class Options:
    """What an answer shall hold.

    Attributes:
        threshold: score from which boxes and multi-label classes count; None takes each head's own.
        heads: names of the heads wanted; None for all.
        masks: whether masks are wanted; they cost most.
    """

    threshold: float | None = None
    heads: tuple[str, ...] | None = None
    masks: bool = True


def answer_of(
    outputs: Outputs, index: int, frame: Letterbox, heads: Mapping[str, HeadSpec], options: Options
) -> Answer:
    """Image `index` of a batch's outputs as an Answer."""
    found: dict[str, HeadAnswer] = {}
    for name, head in heads.items():
        if options.heads is not None and name not in options.heads:
            continue
        threshold = head.threshold if options.threshold is None else options.threshold
        if head.kind in {"classes", "multilabel"}:
            values = outputs[f"{name}.probabilities"][index].astype(np.float32)
            found[name] = LabelAnswer(values, head.kind == "multilabel", threshold)
        elif head.kind == "boxes":
            found[name] = _boxes(outputs, name, index, frame, threshold)
        elif options.masks:
            found[name] = _mask(outputs, name, index, frame)
    return Answer(frame.source, found)


def _boxes(outputs: Outputs, name: str, index: int, frame: Letterbox, threshold: float) -> BoxAnswer:
    scores: NDArray[Any] = outputs[f"{name}.scores"][index]
    keep = scores >= threshold
    boxes = frame.to_source(outputs[f"{name}.boxes"][index][keep].astype(np.float32))
    return BoxAnswer(boxes, scores[keep].astype(np.float32), outputs[f"{name}.classes"][index][keep].astype(np.int64))


def _mask(outputs: Outputs, name: str, index: int, frame: Letterbox) -> MaskAnswer:
    if frame.inner == frame.source or f"{name}.probabilities" not in outputs:
        return MaskAnswer(nearest_runs(outputs[f"{name}.mask"][index], frame))
    return MaskAnswer(likeliest_runs(outputs[f"{name}.probabilities"][index], outputs[f"{name}.mask"][index], frame))
