"""What a format offers: files for each image as it is answered, or files for the whole run at its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from serving.answers import Answer
from serving.batch.plan import Item
from serving.batch.rows import ImageResult


class ImageWriter(Protocol):
    """Makes files of single images. Called from several threads; the same answer gives the same bytes."""

    def files(self, item: Item, answer: Answer, content: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Relative paths and contents; raises ImageError for a name that would leave the output folder."""


class RunWriter(Protocol):
    """Makes files of the whole run from results in order, holding none of them."""

    def begin(self, folder: Path) -> None:
        """Starts in an empty folder; every file made there is then moved to the output folder, whole."""

    def add(self, number: int, result: ImageResult) -> None:
        """Takes result `number` (from 1); also of images without an answer."""

    def end(self) -> None:
        """Closes its files."""
