"""What the network was trained on: samples as augmentation leaves them, with their labels."""

from __future__ import annotations

from pipeline.data.module import VisionData
from pipeline.data.show import augmented_sheet
from pipeline.errors import DataError
from pipeline.inspect.look import Look, NotHereError
from pipeline.inspect.page import Picture, Section


def look_at_samples(look: Look) -> Section:
    """The sheet of `lightning show-data` with the checkpoint's own settings."""
    settings = look.subject.data
    if settings is None:
        raise NotHereError("needs the data a checkpoint was trained on")
    try:
        picture = augmented_sheet(VisionData.from_settings({**settings, "workers": 0}), look.wish.count)
    except DataError as error:
        raise NotHereError(f"needs the data the checkpoint was trained on: {error}") from error
    lead = (
        "Samples of the first epoch as the network saw them: letterboxed, augmented, mixed. What is lost here, no network"
        " finds. `lightning show-data` draws them before training."
    )
    keys = ("root", "augment", "flip", "mosaic", "mixup", "cutmix", "size")
    figures = {key: settings[key] for key in keys if key in settings}
    return Section(
        "Augmented samples", lead, [Picture("samples", picture, "Augmented training samples")], figures=figures
    )
