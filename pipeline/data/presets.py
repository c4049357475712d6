"""The augmentation presets: how far each draw may go, by name and by what the data is labelled with."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from pipeline.errors import ConfigError, nearest


@dataclass(frozen=True, slots=True)
class Preset:
    """How far a random draw may go.

    Attributes:
        flip: probability of a horizontal flip.
        flip_vertical: probability of a vertical flip.
        degrees: rotation to either side.
        scale: smallest and largest zoom; above 1 crops.
        stretch: aspect ratio changes by up to this factor either way.
        shift: share of the side the picture may move.
        brightness, contrast, colour: largest relative change; colour per channel.
        blur: probability of a slight Gaussian blur.
        vignette: probability of darkened corners.
        lens: probability of a pincushion or barrel distortion.
        erase: probability that a grey rectangle hides a part (Zhong et al. 2017, https://arxiv.org/abs/1708.04896);
            for image labels alone, since a hidden object would keep its box.
    """

    flip: float = 0.5
    flip_vertical: float = 0.0
    degrees: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    stretch: float = 1.0
    shift: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    colour: float = 0.0
    blur: float = 0.0
    vignette: float = 0.0
    lens: float = 0.0
    erase: float = 0.0


NAMES = ("none", "light", "standard", "strong")

_PLACES = {
    "none": Preset(flip=0.0),
    "light": Preset(shift=0.05, scale=(0.9, 1.1), brightness=0.1, contrast=0.1),
    "standard": Preset(
        degrees=8, scale=(0.6, 1.4), stretch=1.15, shift=0.1, brightness=0.25, contrast=0.25, colour=0.08
    ),
    "strong": Preset(
        flip_vertical=0.5, degrees=45, scale=(0.5, 1.6), stretch=1.25, shift=0.15,
        brightness=0.35, contrast=0.35, colour=0.15, blur=0.2, vignette=0.2, lens=0.2,
    ),
}  # fmt: skip
"""Where boxes or masks say what is where: wide zooms, because objects come in all sizes."""

PRESETS: dict[str, dict[str, Preset]] = {
    "boxes": _PLACES,
    # No box is lost at the border, so that a mask may turn and be cropped further.
    "mask": _PLACES | {"standard": replace(_PLACES["standard"], degrees=15, scale=(0.6, 1.8), shift=0.15)},
    # The object fills the picture: it must stay in it, but a part of it may be hidden.
    "labels": _PLACES | {
        "standard": Preset(
            degrees=15, scale=(0.85, 1.25), stretch=1.15, shift=0.1,
            brightness=0.3, contrast=0.3, colour=0.1, erase=0.5,
        ),
        "strong": Preset(
            degrees=25, scale=(0.7, 1.5), stretch=1.3, shift=0.15,
            brightness=0.4, contrast=0.4, colour=0.2, blur=0.2, vignette=0.2, lens=0.2, erase=0.7,
        ),
    },
}  # fmt: skip
"""By task: `boxes` where the data has any, else `mask`, else `labels`."""


def find_preset(name: str, kinds: Collection[str], flip: float | None = None) -> Preset:
    """The preset for data with label fields of these kinds.

    Args:
        name: one of NAMES.
        kinds: kinds of the data's label fields.
        flip: replaces the preset's probability of a horizontal flip, for texts, hands or roads, which have a side.

    Raises:
        ConfigError: an unknown name, with the nearest spelling.
    """
    check_preset(name)
    task = next((task for task in ("boxes", "mask") if task in kinds), "labels")
    found = PRESETS[task][name]
    return found if flip is None else replace(found, flip=flip)


def check_preset(name: str) -> None:
    """Raises ConfigError for a name that is no preset."""
    if name not in NAMES:
        raise ConfigError(f"data.augment: unknown preset {name!r}{nearest(name, NAMES)}")
