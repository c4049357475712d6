"""From Records to Samples: read, cache, augment or letterbox; an unreadable image or mask is replaced and told."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from pipeline.data.cache import ImageCache
from pipeline.data.mix import Mixing, cutmix, mixup
from pipeline.data.mosaic import mosaic
from pipeline.data.sampling import Key
from pipeline.errors import DataError
from pipeline.imaging.geometry import FILL, Letterbox
from pipeline.imaging.letterbox import letterbox_image, place
from pipeline.labels import IGNORE_INDEX, LabelSpace
from pipeline.records import Boxes, Record, Sample, SampleLabel

Labels = dict[str, SampleLabel]
View = Callable[[NDArray[np.uint8], Labels, np.random.Generator], tuple[NDArray[np.uint8], Labels]]
"""Makes an augmented view of the input size from pixels and labels of any size."""

ALONE = Mixing()


class RecordDataset(Dataset[Sample]):
    """Samples of Records, keyed by (epoch, index): the same key gives the same sample, in any worker.

    Args:
        records: the images.
        spaces: label fields.
        size: (height, width) of the samples.
        view: the augmentation; None letterboxes and keeps frames and full-size masks for evaluation.
        cache: keeps decoded pixels.
        mixing: how often several images make one sample.
        seed: decides what is random, with the key.
    """

    def __init__(
        self,
        records: list[Record],
        spaces: dict[str, LabelSpace],
        size: tuple[int, int],
        view: View | None,
        cache: ImageCache,
        mixing: Mixing = ALONE,
        seed: int = 0,
    ) -> None:
        self.records, self.spaces, self.size, self.view, self.cache = records, spaces, size, view, cache
        self.mixing, self.seed = mixing, seed

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
            except DataError as error:  # an image, or its mask
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
        mixing = self.mixing if epoch < self.mixing.until else ALONE
        view = self._seen(index, mixing, rng)
        for probability, mix in ((mixing.mixup, mixup), (mixing.cutmix, cutmix)):
            if rng.random() < probability:
                view = mix(view, self._seen(int(rng.integers(len(self.records))), mixing, rng), rng)
                break
        return Sample(*view, record.image.name)

    def _seen(self, index: int, mixing: Mixing, rng: np.random.Generator) -> tuple[NDArray[np.uint8], Labels]:
        """The augmented view of one image, or of four in a mosaic."""
        assert self.view is not None
        if rng.random() < mixing.mosaic:
            others = [index, *(int(i) for i in rng.integers(len(self.records), size=3))]
            return self.view(*mosaic([self.load(self.records[i]) for i in others], self.size, rng), rng)
        return self.view(*self.load(self.records[index]), rng)

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
                boxed[name] = place(label, frame, IGNORE_INDEX, cv2.INTER_NEAREST_EXACT)
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
