"""TIFF files of several float channels, which Pillow does not open: their header by Pillow, their pixels by OpenCV."""

from __future__ import annotations

from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    IMAGELENGTH,
    IMAGEWIDTH,
    SAMPLEFORMAT,
    SAMPLESPERPIXEL,
    ImageFileDirectory_v2,
)

_ORIENTATION, _FLOAT = 0x0112, 3


class FloatTiff(NamedTuple):
    """What the header of such a file says.

    Attributes:
        size: (height, width) in pixels as stored.
        orientation: EXIF's, 1 to 8.
        more: whether other pages follow the first.
    """

    size: tuple[int, int]
    orientation: int
    more: bool

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) in pixels as seen."""
        return self.size[::-1] if self.orientation >= 5 else self.size


def float_tiff(file: BinaryIO) -> FloatTiff | None:
    """The header of a TIFF file of three or four float channels; None for any other file. Leaves it at its start."""
    start = file.read(8)
    file.seek(0)
    if start[:4] not in {b"II*\0", b"MM\0*"}:
        return None
    try:
        header = ImageFileDirectory_v2(start)
        file.seek(header.next)
        header.load(file)
        channels = int(header[SAMPLESPERPIXEL])
        formats, bits = header[SAMPLEFORMAT], header[BITSPERSAMPLE]
        size = int(header[IMAGELENGTH]), int(header[IMAGEWIDTH])
        orientation = header.get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001  # a stranger's header may be broken in any way
        return None
    finally:
        file.seek(0)
    if channels not in {3, 4} or set(formats) != {_FLOAT} or not set(bits) <= {32, 64} or min(size) < 1:
        return None
    return FloatTiff(size, orientation if orientation in range(1, 9) else 1, bool(header.next))


def float_pixels(data: bytes, header: FloatTiff) -> NDArray[np.floating[Any]]:
    """The pixels upright, RGB or RGBA float (H, W, 3 or 4); raises ValueError where they are broken or cut off."""
    try:
        found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ValueError(f"OpenCV: {error.err}") from error
    if found is None or found.ndim != 3 or found.shape[:2] != header.upright_size or found.dtype.kind != "f":
        raise ValueError("the file is truncated or broken")
    pixels: NDArray[np.floating[Any]] = found[..., [2, 1, 0, 3][: found.shape[2]]]  # turned upright by OpenCV
    return pixels
