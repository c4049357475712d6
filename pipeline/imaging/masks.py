"""Semantic masks from where they lie: index PNG, colour PNG, polygons and RLE."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import DataError
from pipeline.labels import IGNORE_INDEX

Mask = NDArray[np.uint8]


def read_plane(path: Path, colours: bool | None = None) -> NDArray[np.uint8]:
    """A mask file's pixels as uint8: values (H, W), or RGB (H, W, 3) with `colours`; None leaves it to the file.

    Raises:
        DataError: it cannot be read, or has more than 8 bits a value.
    """
    try:
        with Image.open(path, formats=("PNG", "TIFF", "BMP", "GIF")) as image:
            image.load()
            if image.mode.startswith("I") or image.mode == "F":
                # Converting would clip every value above 255 to 255.
                raise DataError(
                    f"mask {path}: mode {image.mode}, 16 bits or more a pixel; save class indices as 8 bits"
                )
            if colours is None:
                colours = image.mode not in {"1", "L", "P", "LA"}
            if colours:
                return np.asarray(image.convert("RGB"), np.uint8)
            return np.asarray(image if image.mode in {"L", "P", "1"} else image.convert("L"), np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"mask {path}: {error}") from error


def _require_size(path: Path, found: tuple[int, ...], wanted: tuple[int, int]) -> None:
    if tuple(found[:2]) != wanted:
        raise DataError(f"mask {path} is {found[1]} x {found[0]} pixels, its image {wanted[1]} x {wanted[0]}")


@dataclass(frozen=True, slots=True)
class IndexMask:
    """A PNG whose pixel values are class indices.

    Attributes:
        path: the file.
        values: the pixel value of each class, in the order of the classes; every other value is ignored.
    """

    path: Path
    values: tuple[int, ...]

    def read(self, size: tuple[int, int]) -> Mask:
        """Class indices uint8 (H, W), 255 ignored; raises DataError for another size or a broken file."""
        plane = read_plane(self.path, colours=False)
        _require_size(self.path, plane.shape, size)
        table = np.full(256, IGNORE_INDEX, np.uint8)
        table[list(self.values)] = np.arange(len(self.values), dtype=np.uint8)
        mask: Mask = table[plane]
        return mask


@dataclass(frozen=True, slots=True)
class ColourMask:
    """A PNG in which each class has an RGB colour.

    Attributes:
        path: the file.
        colours: the colour of each class; pixels of any other are ignored.
    """

    path: Path
    colours: tuple[tuple[int, int, int], ...]

    def read(self, size: tuple[int, int]) -> Mask:
        """Class indices uint8 (H, W), 255 ignored; raises DataError for another size or a broken file."""
        plane = read_plane(self.path, colours=True)
        _require_size(self.path, plane.shape, size)
        mask = np.full(size, IGNORE_INDEX, np.uint8)
        for index, colour in enumerate(self.colours):
            mask[(plane == np.asarray(colour, np.uint8)).all(2)] = index
        return mask


@dataclass(frozen=True, slots=True)
class ShapeMask:
    """Polygons and COCO RLE painted in order on background 0.

    Attributes:
        shapes: pairs of a class index and its polygons (lists of x, y, x, y, … in pixels) or RLE mapping.
    """

    shapes: tuple[tuple[int, Any], ...]

    def read(self, size: tuple[int, int]) -> Mask:
        """Class indices uint8 (H, W); raises DataError for an RLE of another size."""
        mask = np.zeros(size, np.uint8)
        for index, shape in self.shapes:
            if isinstance(shape, dict):
                mask[decode_rle(shape, size)] = index
                continue
            rings = [np.asarray(ring, np.float32).reshape(-1, 2).round().astype(np.int32) for ring in shape]
            for ring in rings:
                cv2.fillPoly(mask, [ring], (index,))
        return mask


def decode_rle(rle: dict[str, Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    """COCO's run lengths, compressed or not, as bool (H, W); raises DataError for another size."""
    from pycocotools import mask as coco_mask

    if tuple(rle["size"]) != size:
        raise DataError(f"a run-length mask of size {rle['size']} on an image of {list(size)}")
    if isinstance(rle["counts"], list):
        rle = coco_mask.frPyObjects(rle, *size)
    decoded: NDArray[np.uint8] = coco_mask.decode(rle)
    return decoded.astype(bool)
