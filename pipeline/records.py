"""Record, Sample and Batch with their typed targets: what flows from disk to the network, and what a missing label is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.imaging.geometry import Letterbox

if TYPE_CHECKING:  # serving reads Records' geometry without torch
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Boxes:
    """Boxes of one image: xyxy float32 (N, 4) in pixels of that image, classes int64 (N,), crowd bool (N,)."""

    xyxy: NDArray[np.float32]
    classes: NDArray[np.int64]
    crowd: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        xyxy: NDArray[np.floating] | list[list[float]],
        classes: NDArray[np.integer] | list[int],
        crowd: NDArray[np.bool_] | list[bool] | None = None,
    ) -> Boxes:
        """Boxes from any array-likes, with the right dtypes and shapes, also when there are none."""
        array = np.asarray(xyxy, np.float32).reshape(-1, 4)
        flags = np.zeros(len(array), bool) if crowd is None else np.asarray(crowd, bool).reshape(-1)
        return cls(array, np.asarray(classes, np.int64).reshape(-1), flags)

    def __len__(self) -> int:
        """Number of boxes."""
        return len(self.xyxy)

    def select(self, keep: NDArray[np.bool_] | NDArray[np.integer]) -> Boxes:
        """The boxes chosen by a mask or by indices."""
        return Boxes(self.xyxy[keep], self.classes[keep], self.crowd[keep])

    def moved(self, xyxy: NDArray[np.float32]) -> Boxes:
        """The same boxes at other places: float32 (N, 4)."""
        return replace(self, xyxy=xyxy)


class ImageSource(Protocol):
    """Where an image's pixels come from: a file, or the built-in data that draws them."""

    @property
    def name(self) -> str:
        """How messages name the image: a path for files."""

    def read(self, at_least: int | None = None) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """Upright RGB uint8 (H, W, 3) and the full (height, width).

        With `at_least` the pixels may be shrunk by the decoder, but to no less than that many pixels on the
        longer side; labels stay in pixels of the full size. Raises ImageError.
        """


class MaskSource(Protocol):
    """Where a semantic mask comes from: an index PNG, a colour PNG, polygons, RLE, or the built-in data."""

    def read(self, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Class indices uint8 (H, W) at the image's full upright (height, width); 255 = ignored. Raises DataError."""


FieldLabel = int | tuple[int, ...] | Boxes | MaskSource
"""By kind: `classes` an index, `multilabel` a tuple of indices, `boxes` Boxes, `mask` a MaskSource."""


@dataclass(frozen=True, slots=True)
class Record:
    """One image and what is known about it.

    Attributes:
        image: where its pixels come from.
        labels: by field name. A field that is missing is *not labelled*; no boxes, or an empty tuple, is
            *labelled, nothing there*. The difference is kept to the loss.
        split: `train`, `val` or `test` where the data set says so itself, else None.
        group: images of one group never stand in two splits (a patient, a video).
        size: full upright (height, width) where the format states it, else None.
    """

    image: ImageSource
    labels: dict[str, FieldLabel] = field(default_factory=dict)
    split: str | None = None
    group: str | None = None
    size: tuple[int, int] | None = None

    def only(self, fields: Collection[str]) -> Record:
        """The same Record with the labels of some fields."""
        return replace(self, labels={name: label for name, label in self.labels.items() if name in fields})


@dataclass(frozen=True, slots=True)
class FileImage:
    """An image file on disk."""

    path: Path

    @property
    def name(self) -> str:
        """The file's path."""
        return str(self.path)

    def read(self, at_least: int | None = None) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """Upright RGB uint8 (H, W, 3), perhaps shrunk by the decoder, and the full (height, width)."""
        from pipeline.imaging.decode import read_image  # decoders load when the first image is read

        return read_image(self.path, at_least)


SampleLabel = NDArray[np.float32] | Boxes | NDArray[np.uint8]
"""By kind: `classes` and `multilabel` float32 (C,) one-hot, soft or multi-hot; `boxes` Boxes in pixels of the
sample's image; `mask` uint8 (H, W)."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A Record decoded and brought to the network's input size.

    Attributes:
        image: RGB uint8 (H, W, 3).
        labels: by field name; a missing field is not labelled.
        name: the image's name.
        frame: how the full image lies in `image`; None once augmentation has moved it otherwise.
        full_masks: for evaluation, masks uint8 (h, w) at the image's full size, by field name.
        failures: "name: reason" of images that could not be read and that this sample stands in for.
    """

    image: NDArray[np.uint8]
    labels: dict[str, SampleLabel]
    name: str
    frame: Letterbox | None = None
    full_masks: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    failures: tuple[str, ...] = ()


@dataclass(slots=True)
class ClassTarget:
    """Image labels: scores float32 (B, C), one-hot, soft (mixup) or multi-hot; present bool (B,)."""

    scores: Tensor
    present: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ClassTarget:
        """The same target on a device."""
        return ClassTarget(self.scores.to(device, non_blocking=non_blocking), self.present.to(device))


@dataclass(slots=True)
class BoxTarget:
    """Boxes, padded to the most in the batch: xyxy float32 (B, M, 4) in input pixels, classes int64 (B, M) with -1 for
    padding, crowd bool (B, M), present bool (B,).
    """

    xyxy: Tensor
    classes: Tensor
    crowd: Tensor
    present: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> BoxTarget:
        """The same target on a device."""
        move = (t.to(device, non_blocking=non_blocking) for t in (self.xyxy, self.classes, self.crowd, self.present))
        return BoxTarget(*move)


@dataclass(slots=True)
class MaskTarget:
    """Semantic masks: uint8 (B, H, W) with 255 ignored; present bool (B,); `full` per image uint8 (h, w) at full size
    for evaluation (None where an image is not labelled), else None.
    """

    mask: Tensor
    present: Tensor
    full: list[Tensor | None] | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> MaskTarget:
        """The same target on a device; the full-size masks stay where they are."""
        return MaskTarget(self.mask.to(device, non_blocking=non_blocking), self.present.to(device), self.full)


@dataclass(slots=True)
class ImageTarget:
    """What an image was before it was spoilt: `clean` and `spoilt` (B, C, H, W) in 0 to 255; `asked` float32 (B, 1, H, W),
    1 where the answer counts; present bool (B,).
    """

    clean: Tensor
    spoilt: Tensor
    asked: Tensor
    present: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ImageTarget:
        """The same target on a device."""
        move = (t.to(device, non_blocking=non_blocking) for t in (self.clean, self.spoilt, self.asked, self.present))
        return ImageTarget(*move)


Target = ClassTarget | BoxTarget | MaskTarget


@dataclass(slots=True)
class Batch:
    """Stacked samples.

    Attributes:
        images: uint8 (B, 3, H, W) RGB; the network normalises.
        targets: by field name; every field of the data set is there, `present` says for which images.
        names: the images' names, for messages and pictures.
        frames: how each full image lies in its input (None after augmentation).
        failures: "name: reason" of images that could not be read and were replaced.
    """

    images: Tensor
    targets: dict[str, Target]
    names: list[str]
    frames: list[Letterbox | None]
    failures: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on a device."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=non_blocking),
            targets={name: target.to(device, non_blocking) for name, target in self.targets.items()},
        )

    def pin_memory(self) -> Batch:
        """The same batch with its images in page-locked memory (called by the DataLoader)."""
        return replace(self, images=self.images.pin_memory())
