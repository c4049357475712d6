"""Every writer by name: those of one document over all images, and those of files for each image."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from pipeline.errors import ConfigError, nearest
from serving.batch.settings import PER_IMAGE, Settings
from serving.batch.writers.base import Context, ImageWriter, RunWriter

RUN = ("coco", "csv", "jsonl")
"""Each is a module of this package with a class `Writer(context)`, a RunWriter."""

FORMATS = (*RUN, *(name for name in PER_IMAGE if name not in {"overlay", "crops"}))
"""What `--format` takes."""

NEEDS = {"coco": ("boxes", "mask"), "yolo": ("boxes",), "masks": ("mask",), "crops": ("boxes",)}
"""The kinds of heads that a writer needs one of; others take any."""


def check_formats(names: tuple[str, ...]) -> None:
    """Raises ConfigError for a format that does not exist."""
    for name in names:
        if name not in FORMATS:
            raise ConfigError(f"--format: unknown format {name!r}{nearest(name, FORMATS)}")


def idle(settings: Settings, kinds: set[str]) -> Iterator[tuple[str, str]]:
    """Options that nothing comes of, and what they would need, where heads of these kinds are answered."""
    for name, needed in NEEDS.items():
        option = f"--format {name}" if name in settings.formats else f"--{name}"
        if name in (*settings.formats, *settings.per_image) and not kinds & set(needed):
            yield option, " or ".join({"boxes": "boxes", "mask": "a mask"}[kind] for kind in needed)


def image_writers(context: Context) -> list[ImageWriter]:
    """The writers of files for each image that the options ask for."""
    return [_module(name).Writer(context) for name in context.settings.per_image]


def run_writers(context: Context) -> list[RunWriter]:
    """The writers of documents over all images that the options ask for."""
    return [_module(name).Writer(context) for name in RUN if name in context.settings.formats]


def once(context: Context) -> Iterator[tuple[str, bytes]]:
    """Names and contents of what the writers of files for each image add once."""
    for name in context.settings.per_image:
        yield from getattr(_module(name), "once", _nothing)(context)


def _nothing(context: Context) -> Iterator[tuple[str, bytes]]:  # noqa: ARG001  # every `once`'s signature
    return iter(())


def _module(name: str):  # type: ignore[no-untyped-def]  # noqa: ANN202  # each module has a Writer of its own
    return importlib.import_module(f"serving.batch.writers.{name}")
