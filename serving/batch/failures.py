"""Why a file has no answer, in words to read and in kinds to count."""

from __future__ import annotations

import re

from pipeline.errors import TrifocalError
from serving.batch.names import shown
from serving.batch.rows import Failure

NOT_AN_IMAGE = Failure("neither its name nor its first bytes are an image's", "not an image", skipped=True)


class StoppedError(Exception):
    """The run ends before an image was answered; nothing is told of it."""


def failure_of(name: bytes, error: TrifocalError) -> Failure:
    """An error as a Failure: its message without the file's name."""
    reason = str(error).removeprefix(f"{shown(name)}: ")
    return Failure(reason, kind_of(reason))


def kind_of(reason: str) -> str:
    """What failures are counted by: the reason without what differs from file to file."""
    if too_many_pixels(reason):
        return "too many pixels"
    if re.search(r"truncated|premature end|broken data", reason, re.IGNORECASE):
        return "truncated or broken"
    return reason.partition(":")[0].partition(" (")[0]


def too_many_pixels(reason: str) -> bool:
    """Whether a picture was refused for its size: by our limit, or by Pillow's own."""
    return "pixels" in reason and ("is more than" in reason or "exceeds limit of" in reason or "too many" in reason)
