"""Formats beside predictions.parquet: one file each; this table knows them."""

from __future__ import annotations

import importlib

from pipeline.bundle import Manifest
from serving.batch.settings import Settings
from serving.batch.sources import Source
from serving.batch.writers.base import ImageWriter, RunWriter

RUN_FORMATS = ("coco", "csv", "jsonl")
"""Formats of one file for the whole run; each is a module here with `open_writer`."""

IMAGE_FORMATS = ("masks", "yolo")
"""Formats of a file for each image; each is a module here with `open_writer`."""

FORMATS = (*RUN_FORMATS, *IMAGE_FORMATS)


def run_writers(settings: Settings, manifest: Manifest) -> list[RunWriter]:
    """The writers of whole files that were asked for."""
    names = [name for name in RUN_FORMATS if name in settings.formats]
    return [importlib.import_module(f"{__name__}.{name}").open_writer(settings, manifest) for name in names]


def image_writers(settings: Settings, manifest: Manifest, source: Source) -> list[ImageWriter]:
    """The writers of files for single images that were asked for."""
    found = [
        importlib.import_module(f"{__name__}.{name}").open_writer(settings, manifest)
        for name in settings.per_image
        if name in IMAGE_FORMATS
    ]
    if settings.overlay or settings.crops:
        from serving.batch.overlay import Crops, Overlays

        found += [Overlays(settings, manifest)] if settings.overlay else []
        found += [Crops(settings, manifest)] if settings.crops else []
    return found
