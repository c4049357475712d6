"""What a writer is: of files for each image while the run goes on, or of one document over all images at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from pipeline.bundle import Manifest
from serving.answers import Answer
from serving.batch.journal import Journal
from serving.batch.picture import Picture
from serving.batch.plan import Item
from serving.batch.rows import ImageResult
from serving.batch.settings import Settings


@dataclass(frozen=True, slots=True)
class Context:
    """What a writer may need to know: the options, the model, and how to name each image by a number.

    Attributes:
        settings: the options.
        manifest: the model's.
        number: gives COCO's image id of a file's name where labels are at hand, None where it is in none of them;
            without it the images are numbered in order from 1.
        categories: COCO's category id by class name, likewise; None numbers the classes from 1.
    """

    settings: Settings
    manifest: Manifest
    number: Callable[[str], int | None] | None = None
    categories: dict[str, int] | None = None

    @property
    def thresholds(self) -> dict[str, float]:
        """By head, the score from which an answer counts."""
        given = self.settings.threshold
        return {name: head.threshold if given is None else given for name, head in self.manifest.heads.items()}


class ImageWriter(Protocol):
    """Makes files of one image. Called from several threads."""

    def files(self, item: Item, answer: Answer, picture: Picture) -> Iterator[tuple[bytes, bytes]]:
        """Names in the output folder with their contents; raises ImageError.

        Args:
            item: the image's name.
            answer: what was predicted.
            picture: the image.
        """


Add = Callable[[int, ImageResult], None]
"""Takes the next image: its number from 1 in order of the names, and what is known of it."""


class RunWriter(Protocol):
    """Writes documents over all images."""

    def writing(self, journal: Journal) -> AbstractContextManager[Add]:
        """The documents get their names when the block ends well; images without an answer are passed too."""
