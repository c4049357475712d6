"""Numbers in headers: `str.isdigit` lets through what `int` refuses, such as `¹` or five thousand nines."""

from __future__ import annotations


def whole_number(text: str) -> int | None:
    """A whole number of at most 18 ASCII digits; None for anything else."""
    return int(text) if len(text) <= 18 and text.isascii() and text.isdigit() else None
