"""Pixels of a picture by rectangle: of one that lies decoded in memory, or of one far larger, read where it is asked for."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError
from pipeline.imaging.decode import MAX_BYTES, decode_bytes, read_image, turned
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
    """Decoded pixels (h, w, 3), in memory or in a file that the system maps into it."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.size = pixels.shape[0], pixels.shape[1]
        self._pixels = pixels

    def crop(self, left: int, top: int, right: int, bottom: int) -> NDArray[np.uint8]:
        """See Regions."""
        return np.ascontiguousarray(self._pixels[top:bottom, left:right])


class Tiled:
    """A tiled TIFF that libvips reads by region."""

    def __init__(self, image: Any, name: str) -> None:
        with _told(name) as pyvips:
            upright = image.autorot()
            self.size = int(upright.height), int(upright.width)
            self._name, self._region = name, pyvips.Region.new(_rgb(upright))

    def crop(self, left: int, top: int, right: int, bottom: int) -> NDArray[np.uint8]:
        """See Regions."""
        with _told(self._name):
            data = self._region.fetch(left, top, right - left, bottom - top)
        return np.frombuffer(data, np.uint8).reshape(bottom - top, right - left, 3)


def on_disk(source: Path | bytes, name: str, folder: Path | None = None) -> Regions:
    """A picture too large for memory: straight from tiled TIFF, of other formats by way of a temporary file.

    Args:
        source: its file, or its bytes.
        name: for messages.
        folder: where the temporary file is made; the system's own place where it does not exist.

    Raises:
        ImageError: libvips is not installed, cannot read it, or there are too many pixels even for it.
    """
    _give_buffers_back()
    with _told(name):
        image = _opened(source, name)
        if image.get_typeof("tile-width"):
            return Tiled(image, name)
        place = folder if folder is not None and folder.is_dir() else None
        with tempfile.NamedTemporaryFile(dir=place) as file:
            _rgb(_opened(source, name, "sequential")).rawsave(file.name)
            pixels = np.memmap(file.name, np.uint8, "r", shape=(image.height, image.width, 3))
        orientation = image.get("orientation") if image.get_typeof("orientation") else 1
        return InMemory(turned(pixels, orientation))


def _give_buffers_back() -> None:
    """Tells glibc to return buffers from 1 MiB on: it would come to keep them, and thousands of crops leave holes between."""
    try:
        ctypes.CDLL(None).mallopt(-3, 2**20)  # M_MMAP_THRESHOLD
    except (OSError, AttributeError):  # another C library
        return


def thumbnail(source: Path | bytes, name: str, side: int) -> NDArray[np.uint8]:
    """Upright RGB uint8 (h, w, 3), the longer side `side` pixels, of a picture that need not fit in memory; raises ImageError."""
    with _told(name) as pyvips:
        _opened(source, name)
        bounds = {"height": side, "size": "down"}
        if isinstance(source, bytes):
            small = pyvips.Image.thumbnail_buffer(source, side, **bounds)
        else:
            small = pyvips.Image.thumbnail(os.fspath(source), side, **bounds)
        pixels: NDArray[np.uint8] = _rgb(small).numpy()
    return pixels


@contextmanager
def _told(name: str) -> Iterator[Any]:
    """Gives libvips; turns what it raises into an ImageError."""
    if importlib.util.find_spec("pyvips") is None:
        raise ImageError(f"{name}: too many pixels to decode at once; {INSTALL} reads it by tiles")
    os.environ.setdefault("VIPS_CONCURRENCY", "1")  # this thread is one of many
    import pyvips

    try:
        yield pyvips
    except pyvips.Error as error:
        raise ImageError(f"{name}: cannot be decoded: {' '.join(str(error).split())[:200]}") from error


def _opened(source: Path | bytes, name: str, access: str = "random") -> Any:
    """The header of a picture that may be read."""
    import pyvips

    pyvips.cache_set_max(0)
    pyvips.block_untrusted_set(True)
    logging.getLogger("pyvips").setLevel(logging.ERROR)
    if isinstance(source, bytes):
        image = pyvips.Image.new_from_buffer(source, "", access=access, fail_on="error")
    else:
        image = pyvips.Image.new_from_file(os.fspath(source), access=access, fail_on="error")
    if not image.get("vips-loader").startswith(LOADERS):
        raise ImageError(f"{name}: not an image of a format that is read by tiles ({', '.join(LOADERS)})")
    if image.width * image.height > MOST_PIXELS:
        raise ImageError(f"{name}: {image.width} x {image.height} is more than {MOST_PIXELS} pixels")
    return image


def _rgb(image: Any) -> Any:
    """8 bits, three bands, alpha laid over white, as `decode` does."""
    image = image.colourspace("srgb")
    if image.hasalpha():
        image = image.flatten(background=255)
    return image.cast("uchar")


def open_regions(content: bytes | None, name: str, path: Path | None, folder: Path | None = None) -> Regions:
    """A picture from its bytes, or its file where it was not read; `folder` as in on_disk. Raises ImageError."""
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
    return on_disk(path if path is not None else content or b"", name, folder)
