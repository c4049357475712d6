"""From Records to Samples: read, cache, augment or letterbox; an unreadable image is replaced and told."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from pipeline.data.cache import ImageCache
from pipeline.data.sampling import Key
from pipeline.errors import DataError, ImageError
from pipeline.imaging.geometry import FILL, Letterbox
from pipeline.imaging.letterbox import letterbox_image, place
from pipeline.labels import IGNORE_INDEX, LabelSpace
from pipeline.records import Boxes, Record, Sample, SampleLabel

Labels = dict[str, SampleLabel]
View = Callable[[NDArray[np.uint8], Labels, np.random.Generator], tuple[NDArray[np.uint8], Labels]]
"""Makes an augmented view of the input size from pixels and labels of any size."""


class RecordDataset(Dataset[Sample]):
    """Samples of Records, keyed by (epoch, index): the same key gives the same sample, in any worker.

    Args:
        records: the images.
        spaces: label fields.
        size: (height, width) of the samples.
        view: the augmentation; None letterboxes and keeps frames and full-size masks for evaluation.
        mosaic: probability of a sample made of four images, up to `mosaic_until` epochs.
        mosaic_until: first epoch without mosaic.
        seed: decides what is random, with the key.
        cache: keeps decoded pixels.
    """

    def __init__(
        self,
        records: list[Record],
        spaces: dict[str, LabelSpace],
        size: tuple[int, int],
        view: View | None,
        cache: ImageCache,
        mosaic: float = 0.0,
        mosaic_until: int = 1 << 30,
        seed: int = 0,
    ) -> None:
        self.records, self.spaces, self.size, self.view, self.cache = records, spaces, size, view, cache
        self.mosaic, self.mosaic_until, self.seed = mosaic, mosaic_until, seed

    def __len__(self) -> int:
        """Number of Records."""
        return len(self.records)

    def __getitem__(self, key: Key) -> Sample:
        """The sample of (epoch, index); raises DataError when twenty images in a row cannot be read."""
        epoch, index = key
        failures: list[str] = []
        for attempt in range(20):
            rng = np.random.default_rng((self.seed, epoch, index, attempt))
            at = index if attempt == 0 else int(rng.integers(len(self.records)))
            try:
                sample = self._sample(at, epoch, rng)
            except ImageError as error:
                failures.append(str(error))
                if self.view is None:
                    return self._blank(at, failures)
            else:
                return Sample(
                    sample.image, sample.labels, sample.name, sample.frame, sample.full_masks, tuple(failures)
                )
        raise DataError(f"twenty images in a row cannot be read, among them {failures[0]}; run `lightning check-data`")

    def _sample(self, index: int, epoch: int, rng: np.random.Generator) -> Sample:
        record = self.records[index]
        if self.view is None:
            return self._evaluation(record)
        if self.mosaic > 0 and epoch < self.mosaic_until and rng.random() < self.mosaic:
            from pipeline.data.mosaic import mosaic

            others = [index, *(int(i) for i in rng.integers(len(self.records), size=3))]
            image, labels = mosaic([self.load(self.records[i]) for i in others], self.size, rng)
        else:
            image, labels = self.load(record)
        image, labels = self.view(image, labels, rng)
        return Sample(image, labels, record.image.name)

    def load(self, record: Record) -> tuple[NDArray[np.uint8], Labels]:
        """Pixels, perhaps shrunk to about the input's size, with labels moved along."""
        pixels, full = self.cache.read(record.image, max(self.size))
        return pixels, self._labels(record, pixels.shape[:2], full)

    def _labels(self, record: Record, size: tuple[int, int], full: tuple[int, int]) -> Labels:
        out: Labels = {}
        for name, label in record.labels.items():
            if isinstance(label, Boxes):
                ratio = np.asarray([size[1] / full[1], size[0] / full[0]] * 2, np.float32)
                out[name] = label.moved(label.xyxy * ratio)
            elif isinstance(label, int):
                out[name] = one_hot((label,), len(self.spaces[name].names))
            elif isinstance(label, tuple):
                out[name] = one_hot(label, len(self.spaces[name].names))
            else:
                mask = self.cache.read_mask(record.image.name, name, label, full, size)
                out[name] = mask
        return out

    def _evaluation(self, record: Record) -> Sample:
        # Decoded as serving decodes: no larger than the input needs.
        pixels, full = record.image.read(max(self.size))
        frame = Letterbox.fit(full, self.size)
        labels = self._labels(record, full, full)
        full_masks = {n: m for n, m in labels.items() if isinstance(m, np.ndarray) and m.ndim == 2}
        boxed: Labels = {}
        for name, label in labels.items():
            if isinstance(label, Boxes):
                boxed[name] = label.moved(frame.to_input(label.xyxy))
            elif label.ndim == 2:
                boxed[name] = place(label, frame, IGNORE_INDEX, cv2.INTER_NEAREST)
            else:
                boxed[name] = label
        image = letterbox_image(pixels, frame)
        return Sample(image, boxed, record.image.name, frame, {n: m.astype(np.uint8) for n, m in full_masks.items()})

    def _blank(self, index: int, failures: list[str]) -> Sample:
        """What stands for an unreadable image in evaluation: grey, and labelled for nothing."""
        image = np.full((*self.size, 3), FILL, np.uint8)
        return Sample(image, {}, self.records[index].image.name, failures=tuple(failures))


def one_hot(indices: tuple[int, ...], classes: int) -> NDArray[np.float32]:
    """Float32 (C,) with ones at the indices."""
    out = np.zeros(classes, np.float32)
    out[list(indices)] = 1
    return out
