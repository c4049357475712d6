"""Keeps libtiff's own remarks on broken files off the terminal: the error that Pillow raises says it all."""

from __future__ import annotations

import contextlib
import ctypes
from functools import cache
from pathlib import Path


@cache
def hush_libtiff() -> None:
    """Takes the handlers that write to standard error from the libtiff that Pillow has loaded; elsewhere than on Linux it talks on."""
    with contextlib.suppress(OSError, AttributeError):
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
        for path in {line.split(maxsplit=5)[5] for line in maps.splitlines() if "/libtiff" in line}:
            library = ctypes.CDLL(path)  # the one that is loaded, not another
            library.TIFFSetErrorHandler(None)
            library.TIFFSetWarningHandler(None)
