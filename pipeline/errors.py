"""The exceptions a user may meet: each message says what is wrong, where, and what to do about it.

TrifocalError
├── ConfigError               a wrong key, class name or value in a config, on the command line or in the environment
├── DataError                 a data set that cannot be used: empty, missing split, unknown format, mismatching labels
│   └── ImageError            one image that cannot be decoded
│       ├── ImageFormatError  of a format that is not read here
│       └── ImageSizeError    of more bytes or pixels than are allowed
├── BundleError               an exported folder that is missing, altered, of a newer format, or holds what it may not
├── EngineError               an engine that is unknown, not installed, or cannot run here
├── ServeError                a service that cannot start
├── ExportError               a graph that cannot be exported, or that would not answer as the trained network does
├── CheckpointError           a checkpoint that cannot be found, read, written or fits another network
└── TrainingError             a run that cannot go on
    ├── NonFiniteLossError    a loss became NaN or infinite
    └── TooManyBadImagesError more unreadable images than a run may replace
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TrifocalError(Exception):
    """Base of every error that is the user's to mend; the command prints it as one line and exits with `exit_code`."""

    exit_code = 1

    def line(self) -> str:
        """`error: …` for the terminal; characters that a file's name may hold to break the line or steer it are escaped."""
        escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(self))
        return f"error: {''.join(escaped)}\n"


class ConfigError(TrifocalError):
    """A wrong key, class name or value; names it, the file it stands in and the nearest right spelling."""

    exit_code = 2


class DataError(TrifocalError):
    """A data set that cannot be used as it is."""


class ImageError(DataError):
    """One image that cannot be decoded; names the file and the reason."""


class ImageFormatError(ImageError):
    """Bytes that are no image of an allowed format."""


class ImageSizeError(ImageError):
    """An image of more bytes or pixels than are allowed; found before it is decoded."""


class CheckpointError(TrifocalError):
    """A checkpoint that cannot be found, read, written, or that fits another network."""


class BundleError(TrifocalError):
    """An exported folder that is missing, altered, of a newer format, or that holds what it may not."""


class ServeError(TrifocalError):
    """A service that cannot start: an address in use, a worker process that does not come up."""


class EngineError(TrifocalError):
    """An engine that is unknown, not installed, or that cannot run on this machine or with this bundle."""


class ExportError(TrifocalError):
    """A graph that cannot be exported, or that would not answer as the trained network does."""


class TrainingError(TrifocalError):
    """A run that cannot go on."""


class NonFiniteLossError(TrainingError):
    """A loss became NaN or infinite; names the head and the files of the batch."""


class TooManyBadImagesError(TrainingError):
    """More than the allowed share of the images could not be read."""


def nearest(wrong: str, known: Iterable[str]) -> str:
    """A hint such as `; did you mean 'objects'?`, or the known spellings where none is near, or nothing."""
    names = sorted(known)
    close = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    more = f", … ({len(names)} in all)" if len(names) > 20 else ""
    return f"; known: {', '.join(names[:20])}{more}" if names else ""
