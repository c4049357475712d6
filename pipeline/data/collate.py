"""Samples to a Batch: stacked images, padded boxes, and who is labelled."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.labels import IGNORE_INDEX, LabelSpace
from pipeline.records import Batch, Boxes, BoxTarget, ClassTarget, MaskTarget, Sample, Target


class Collate:
    """Makes Batches of Samples; picklable, so that loader workers carry it.

    Args:
        spaces: every label field of the data; each gets a target in each batch.
    """

    def __init__(self, spaces: dict[str, LabelSpace]) -> None:
        self.spaces = spaces

    def __call__(self, samples: list[Sample]) -> Batch:
        """Samples of one size, labelled or not, to a Batch."""
        images = torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2)
        return Batch(
            images,
            {name: self._target(name, space, samples) for name, space in self.spaces.items()},
            [sample.name for sample in samples],
            [sample.frame for sample in samples],
            [failure for sample in samples for failure in sample.failures],
        )

    def _target(self, name: str, space: LabelSpace, samples: list[Sample]) -> Target:
        present = torch.tensor([name in sample.labels for sample in samples])
        if space.kind == "boxes":
            return _boxes(name, samples, present)
        if space.kind == "mask":
            return _masks(name, samples, present)
        scores = np.zeros((len(samples), len(space.names)), np.float32)
        for i, sample in enumerate(samples):
            label = sample.labels.get(name)
            if isinstance(label, np.ndarray):
                scores[i] = label
        return ClassTarget(torch.from_numpy(scores), present)


def _boxes(name: str, samples: list[Sample], present: torch.Tensor) -> BoxTarget:
    each = [label if isinstance(label := sample.labels.get(name), Boxes) else Boxes.of([], []) for sample in samples]
    most = max(len(boxes) for boxes in each)
    xyxy = np.zeros((len(each), most, 4), np.float32)
    classes = np.full((len(each), most), -1, np.int64)
    crowd = np.zeros((len(each), most), bool)
    for i, boxes in enumerate(each):
        xyxy[i, : len(boxes)], classes[i, : len(boxes)], crowd[i, : len(boxes)] = boxes.xyxy, boxes.classes, boxes.crowd
    return BoxTarget(torch.from_numpy(xyxy), torch.from_numpy(classes), torch.from_numpy(crowd), present)


def _masks(name: str, samples: list[Sample], present: torch.Tensor) -> MaskTarget:
    blank = np.full(samples[0].image.shape[:2], IGNORE_INDEX, np.uint8)
    planes = [label if isinstance(label := sample.labels.get(name), np.ndarray) else blank for sample in samples]
    full = None
    if any(sample.full_masks for sample in samples):
        full = [torch.from_numpy(s.full_masks[name]) if name in s.full_masks else None for s in samples]
    return MaskTarget(torch.from_numpy(np.stack(planes)), present, full)
