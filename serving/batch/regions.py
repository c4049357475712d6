"""Pixels of a picture by rectangle: of one that lies decoded in memory, or of one far larger, read where it is asked for."""

from __future__ import annotations

import importlib.util
import logging
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError
from pipeline.imaging.decode import MAX_BYTES, decode_bytes, read_image
from serving.batch.failures import too_many_pixels

INSTALL = "pip install 'trifocal[large]'"

LOADERS = ("tiff", "jpeg", "png", "webp", "ppm")
"""What libvips may open: rarely used formats are where holes are."""

MOST_PIXELS = 20_000_000_000
"""What even tiling refuses: a picture that would take days is a mistake or an attack."""


class Regions(Protocol):
    """A picture; `size` is its upright (height, width)."""

    size: tuple[int, int]

    def crop(self, left: int, top: int, right: int, bottom: int) -> NDArray[np.uint8]:
        """RGB uint8 (bottom - top, right - left, 3); raises ImageError."""


class InMemory:
    """Decoded pixels (h, w, 3)."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.size = pixels.shape[0], pixels.shape[1]
        self._pixels = pixels

    def crop(self, left: int, top: int, right: int, bottom: int) -> NDArray[np.uint8]:
        """See Regions."""
        return np.ascontiguousarray(self._pixels[top:bottom, left:right])


class OnDisk:
    """A picture that libvips reads by region: straight from tiled TIFF, other formats by way of a temporary file.

    Args:
        source: its file, or its bytes.
        name: for messages.

    Raises:
        ImageError: libvips is not installed, cannot read it, or there are too many pixels even for it.
    """

    def __init__(self, source: Path | bytes, name: str) -> None:
        if importlib.util.find_spec("pyvips") is None:
            raise ImageError(f"{name}: too many pixels to decode at once; {INSTALL} reads it by tiles")
        os.environ.setdefault("VIPS_CONCURRENCY", "1")  # this thread is one of many
        import pyvips

        self._name, self._error = name, pyvips.Error
        pyvips.cache_set_max(0)
        pyvips.block_untrusted_set(True)
        logging.getLogger("pyvips").setLevel(logging.ERROR)
        try:
            if isinstance(source, bytes):
                image = pyvips.Image.new_from_buffer(source, "", access="random", fail_on="error")
            else:
                image = pyvips.Image.new_from_file(os.fspath(source), access="random", fail_on="error")
            if not image.get("vips-loader").startswith(LOADERS):
                raise ImageError(f"{name}: not an image of a format that is read by tiles ({', '.join(LOADERS)})")
            if image.width * image.height > MOST_PIXELS:
                raise ImageError(f"{name}: {image.width} x {image.height} is more than {MOST_PIXELS} pixels")
            self._region = pyvips.Region.new(self._rgb(image))
        except pyvips.Error as error:
            raise self._failed(error) from error
        self.size = int(image.height), int(image.width)
        if image.get_typeof("orientation") and image.get("orientation") >= 5:
            self.size = self.size[1], self.size[0]

    @staticmethod
    def _rgb(image: Any) -> Any:
        """Upright, 8 bits, three bands, alpha laid over white, as `decode` does."""
        image = image.autorot().colourspace("srgb")
        if image.hasalpha():
            image = image.flatten(background=255)
        return image.cast("uchar")

    def crop(self, left: int, top: int, right: int, bottom: int) -> NDArray[np.uint8]:
        """See Regions."""
        try:
            data = self._region.fetch(left, top, right - left, bottom - top)
        except self._error as error:
            raise self._failed(error) from error
        return np.frombuffer(data, np.uint8).reshape(bottom - top, right - left, 3)

    def _failed(self, error: Exception) -> ImageError:
        return ImageError(f"{self._name}: cannot be decoded: {' '.join(str(error).split())[:200]}")


def open_regions(content: bytes | None, name: str, path: Path | None) -> Regions:
    """A picture from its bytes, or its file where it was not read; raises ImageError."""
    try:
        if content is not None:
            return InMemory(decode_bytes(content, name)[0])
        assert path is not None
        if path.stat().st_size <= MAX_BYTES:
            return InMemory(read_image(path)[0])
    except ImageError as error:
        if not too_many_pixels(str(error)):
            raise
    except OSError as error:
        raise ImageError(f"{name}: {error.strerror or error}") from error
    return OnDisk(path if path is not None else content or b"", name)
