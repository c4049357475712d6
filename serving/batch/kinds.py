"""Which files are taken for images: by their ending, or else by their first bytes."""

from __future__ import annotations

import os

from pipeline.imaging.decode import SUFFIXES

_OTHER = frozenset(
    {".avif", ".heic", ".heif", ".ico", ".jp2", ".j2k", ".jxl", ".jpe", ".jfif", ".mpo", ".pbm", ".pnm", ".apng",
     ".svg", ".exr", ".psd", ".raw", ".cr2", ".nef", ".arw", ".dng", ".tga", ".dib"}
)  # fmt: skip
"""Endings of pictures that may be in a format nobody reads here: they are tried, and told where they fail."""

_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

HEAD = 18
"""Bytes that `looks_like_image` wants to see."""


def has_image_ending(name: bytes) -> bool:
    """Whether the name alone says that it is a picture."""
    suffix = os.path.splitext(name)[1].decode("ascii", "replace").lower()
    return suffix in SUFFIXES or suffix in _OTHER


def looks_like_image(name: bytes, head: bytes) -> bool:
    """Whether a file is to be tried: by its name, or by the first bytes of its content."""
    if has_image_ending(name):
        return True
    if head.startswith(b"BM"):  # or a text that begins so: a BMP's second header is less than 256 bytes long
        return head[15:18] == b"\0\0\0"
    return head.startswith(_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
