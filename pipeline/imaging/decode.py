"""Any bytes to upright RGB uint8, safely: formats by content from an allow-list, limits before decoding, EXIF last."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import ImageError, ImageFormatError, ImageSizeError
from pipeline.imaging.quiet import hush_libtiff
from pipeline.imaging.tiff_float import float_pixels, float_tiff

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""What Pillow may open; rarely used formats are where its holes are."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
"""Lower-case file endings that are taken for images when a folder is listed."""

MAX_PIXELS = 178_956_970
"""Of a picture that is decoded whole; Pillow itself opens none with more."""

MAX_BYTES = 512 * 2**20

_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}

_PNG_END = b"IEND\xaeB`\x82"

Pixels = NDArray[np.uint8]


def read_image(path: Path, at_least: int | None = None) -> tuple[Pixels, tuple[int, int]]:
    """An image file as upright RGB uint8 (H, W, 3), and its full upright (height, width).

    Args:
        path: the file.
        at_least: the decoder may shrink, but to no less than this many pixels on the longer side.

    Raises:
        ImageError: missing, too large, truncated, or not an image of an allowed format.
    """
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_BYTES else None
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}") from error
    if data is None:
        raise ImageSizeError(f"{path}: larger than {MAX_BYTES >> 20} MiB")
    return decode_bytes(data, str(path), at_least)


def decode_bytes(
    data: bytes,
    name: str,
    at_least: int | None = None,
    max_pixels: int | None = None,
    formats: tuple[str, ...] = FORMATS,
) -> tuple[Pixels, tuple[int, int]]:
    """Like `read_image`, of bytes; `name` is for messages. More than `max_pixels` (MAX_PIXELS) are refused by the header."""
    if max_pixels is None:
        max_pixels = MAX_PIXELS
    if not data:
        raise ImageError(f"{name}: the file is empty")
    with warnings.catch_warnings():
        # Pillow warns of odd but readable files; the limits here are ours.
        warnings.simplefilter("ignore")
        try:
            return _decode(data, name, at_least, max_pixels, formats)
        except UnidentifiedImageError as error:
            kind = _claimed(data)
            if kind in formats:
                raise ImageError(
                    f"{name}: a {kind} file with a broken header, or of a kind that is not read here"
                ) from error
            raise ImageFormatError(f"{name}: not an image of an allowed format ({', '.join(formats)})") from error
        except Image.DecompressionBombError as error:
            told = re.search(r"\d+ pixels", str(error))  # Pillow goes on to name its own limit
            size = told[0] if told else "a size in pixels that"
            raise ImageSizeError(f"{name}: {size} is more than {min(max_pixels, MAX_PIXELS)}") from error
        except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
            raise ImageError(f"{name}: cannot be decoded: {error}") from error
        except (TypeError, KeyError, IndexError, AttributeError, OverflowError, ZeroDivisionError) as error:
            # Pillow's plugins let these escape on broken headers.
            raise ImageError(f"{name}: broken file: {error!r}") from error


def _claimed(data: bytes) -> str | None:
    """The format that the first bytes claim, of those that tell it beyond doubt."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((kind for start, kind in _SIGNATURES.items() if data.startswith(start)), None)


def _decode(
    data: bytes, name: str, at_least: int | None, max_pixels: int, formats: tuple[str, ...]
) -> tuple[Pixels, tuple[int, int]]:
    header = float_tiff(io.BytesIO(data)) if "TIFF" in formats else None
    if header is not None:
        _require_pixels(name, header.size, max_pixels)
        rgb = _from_floats(float_pixels(data, header))
        return rgb, (rgb.shape[0], rgb.shape[1])
    with Image.open(io.BytesIO(data), formats=formats) as image:
        _require_pixels(name, (image.height, image.width), max_pixels)
        if image.format == "JPEG" and image.mode in {"RGB", "L"}:
            orientation = _orientation(image)
            pixels = _decode_jpeg(data, (image.height, image.width), at_least)
            return np.ascontiguousarray(turned(pixels, orientation)), _upright_size(image)
        if image.format == "TIFF":
            hush_libtiff()
        # The pixels first: on a broken file, asking for EXIF first would hide the damage.
        image.load()
        if image.format == "PNG" and _PNG_END not in data:  # Pillow does not mind
            raise ImageError(f"{name}: cannot be decoded: the file is truncated, its end is missing")
        rgb = _to_rgb(image)
        return rgb, (rgb.shape[0], rgb.shape[1])


def _require_pixels(name: str, size: tuple[int, int], most: int) -> None:
    if size[0] * size[1] > most:
        raise ImageSizeError(f"{name}: {size[1]} x {size[0]} is more than {most} pixels")


def _decode_jpeg(data: bytes, size: tuple[int, int], at_least: int | None) -> Pixels:
    import simplejpeg

    smallest = (0, 0)
    if at_least is not None and max(size) > at_least:
        smallest = (-(-size[0] * at_least // max(size)), -(-size[1] * at_least // max(size)))
    pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=smallest[0], min_width=smallest[1], strict=True)
    return pixels


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 where the header cannot be read."""
    try:
        value = image.getexif().get(0x0112, 1)
    except (OSError, ValueError, SyntaxError, TypeError, KeyError):
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright_size(image: Image.Image) -> tuple[int, int]:
    turned = image.format != "TIFF" and _orientation(image) >= 5  # of TIFF, Pillow gives the upright size
    return (image.width, image.height) if turned else (image.height, image.width)


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """Pixels (H, W, 3) seen upright by their EXIF orientation, without a copy."""
    if orientation in {5, 6, 7, 8}:
        pixels = pixels.swapaxes(0, 1)
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    return pixels


def _to_rgb(image: Image.Image) -> Pixels:
    """A loaded Pillow image of any mode to upright RGB uint8; 16-bit and float scaled, alpha laid over white."""
    upright = image if _orientation(image) == 1 else ImageOps.exif_transpose(image)
    mode = upright.mode
    if mode.startswith("I") or mode == "F":
        return np.ascontiguousarray(np.repeat(_to_bytes(np.asarray(upright), mode)[..., None], 3, 2))
    if "A" in mode or mode == "P" or "transparency" in upright.info:
        layered = upright.convert("RGBA")
        upright = Image.new("RGB", layered.size, "white")
        upright.paste(layered, mask=layered.getchannel("A"))
    return np.array(upright if upright.mode == "RGB" else upright.convert("RGB"), np.uint8)


def _from_floats(values: NDArray[Any]) -> Pixels:
    """RGB or RGBA floats (H, W, 3 or 4) as RGB uint8, scaled by the largest colour; alpha of 0 to 1 laid over white."""
    rgb = _to_bytes(values[..., :3], "F")
    if values.shape[2] == 3:
        return rgb
    alpha = np.clip(np.nan_to_num(values[..., 3:].astype(np.float32)), 0, 1)
    mixed: Pixels = np.rint(rgb * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return mixed


def _to_bytes(grey: NDArray[Any], mode: str) -> Pixels:
    """Values (H, W, ...) of 16 or 32 bits or float as bytes: whole numbers by their range, floats by the largest one."""
    if mode.startswith("I;16"):
        return (grey >> 8).astype(np.uint8)
    largest = float(grey.max(initial=0, where=np.isfinite(grey)))
    ranges = (255.0, 65535.0) if mode == "I" else ()
    top = next((top for top in ranges if largest <= top), max(largest, 1e-9))
    scaled = grey.astype(np.float32)
    scaled *= 255 / top
    np.nan_to_num(scaled, copy=False, posinf=255)
    return np.clip(scaled, 0, 255, out=scaled).astype(np.uint8)


def image_size(path: Path) -> tuple[int, int]:
    """Upright (height, width) from the header alone; raises ImageError."""
    try:
        with path.open("rb") as file:
            header = float_tiff(file)
            if header is not None:
                return header.upright_size
            with Image.open(file, formats=FORMATS) as image:
                return _upright_size(image)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: {error}") from error
