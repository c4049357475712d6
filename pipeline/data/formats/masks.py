"""A folder of masks beside the images: index PNGs or colour PNGs, named as their images."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pipeline.data.formats.base import Problem, SourceData
from pipeline.data.formats.colours import Listing, Value, find_list, read_list
from pipeline.data.formats.files import SPLITS, folder_split, images_under, masks_under
from pipeline.data.formats.voc import read_image_sets
from pipeline.errors import DataError
from pipeline.imaging.masks import ColourMask, IndexMask, read_plane
from pipeline.labels import IGNORE_INDEX, LabelSpace
from pipeline.records import FileImage, Record

_PROBED = (200, 2000)
"""Masks that are looked at to learn which values occur: with a class list, and without; `check-data` looks at all."""

_SUFFIX = re.compile(r"[_-](masks?|labels?|gt|seg|l|labelids|color)$", re.IGNORECASE)
"""What a mask's name may have behind its image's."""


def find_masks(root: Path) -> list[Path]:
    """The pictures in folders of masks, sorted."""
    return masks_under(root)


def read_masks(root: Path) -> SourceData:
    """Records of images with masks; class names and colours from `classes.txt` where there is one.

    Raises:
        DataError: no masks, none with an image of its name, or a class list that does not fit them.
    """
    masks = find_masks(root)
    if not masks:
        raise DataError(
            f"{root}: no folder `masks` (or `labels`, `SegmentationClass`) with PNG masks beside the images"
        )
    pairs, problems = _pair(images_under(root), masks, root)
    if not pairs:
        raise DataError(f"{root}: no mask in {masks[0].parent} has the name of an image")
    listing = find_list(root, *sorted({folder for mask in masks for folder in (mask.parent, mask.parent.parent)}))
    step = max(1, len(pairs) // _PROBED[listing is None])
    found = _probe([mask for _, mask in pairs[::step]], problems)
    values = list(found)
    names = _names(values)
    if listing is not None:
        names, known = _match(read_list(listing), found, listing)
        if unknown := [value for value in found if value not in known]:
            message = f"of no class, ignored: {_shown(unknown, found)}"
            problems.append(Problem("warning", "unknown mask value", str(listing), message))
        values = known
    if not values:
        raise DataError(f"{root}: every pixel of the masks is {IGNORE_INDEX} (ignored), or no mask can be read")
    sets = read_image_sets(root, "Segmentation", problems)
    records = []
    for picture, mask in pairs:
        split = sets.get(picture.stem) if sets else folder_split(picture, root) or folder_split(mask, root)
        records.append(Record(FileImage(picture), {"mask": _source(mask, values)}, split))
    unnamed = frozenset() if listing else frozenset({"mask"})
    return SourceData("masks", {"mask": LabelSpace("mask", names)}, records, problems, unnamed)


def _pair(pictures: list[Path], masks: list[Path], root: Path) -> tuple[list[tuple[Path, Path]], list[Problem]]:
    """Images with their masks: of the same name in the same split's folder, or of the same name at all."""
    images: dict[tuple[str | None, str], list[Path]] = {}
    for path in pictures:
        for key in {(folder_split(path, root), path.stem), (None, path.stem)}:
            images.setdefault(key, []).append(path)
    pairs: dict[Path, Path] = {}
    problems = []
    for mask in masks:
        stems = dict.fromkeys((mask.stem, _SUFFIX.sub("", mask.stem)))
        keys = [(split, stem) for stem in stems for split in (_mask_split(mask, root), None)]
        found = next((images[key] for key in keys if key in images), [])
        if len(found) == 1 and found[0] not in pairs:
            pairs[found[0]] = mask
        elif found:
            others = [pairs[found[0]]] if found[0] in pairs else found
            message = f"not clear which image it belongs to: {', '.join(map(str, others[:3]))} bears its name too"
            problems.append(Problem("error", "ambiguous mask", str(mask), message))
        else:
            problems.append(Problem("error", "label without image", str(mask), "no image of this name: left out"))
    return sorted(pairs.items()), problems


def _mask_split(mask: Path, root: Path) -> str | None:
    """The split of a mask's folders, also of one like `train_masks`."""
    parts = [re.sub(r"[_-]?(masks?|labels?|annot)$", "", part.lower()) for part in mask.relative_to(root).parts[:-1]]
    return folder_split(mask, root) or next((SPLITS[part] for part in reversed(parts) if part in SPLITS), None)


def _names(values: list[Value]) -> tuple[str, ...]:
    return ("background", "foreground") if len(values) == 2 else tuple(f"class_{i}" for i in range(len(values)))


def _source(mask: Path, values: list[Value]) -> IndexMask | ColourMask:
    if isinstance(values[0], tuple):
        return ColourMask(mask, tuple(v for v in values if isinstance(v, tuple)))
    return IndexMask(mask, tuple(v for v in values if isinstance(v, int)))


def _shown(values: list[Value], found: dict[Value, Path]) -> str:
    """Some values, each with a mask that holds it."""
    return ", ".join(f"{value} ({found[value].name})" for value in values[:8]) + (", …" if len(values) > 8 else "")


def _match(listing: Listing, found: dict[Value, Path], file: Path) -> tuple[tuple[str, ...], list[Value]]:
    """Class names with the pixel value of each; raises DataError when the list cannot be meant for these masks."""
    names = tuple(name for name, _ in listing)
    given = [value for _, value in listing if value is not None]
    colours = any(isinstance(value, tuple) for value in found)
    if given:
        if isinstance(given[0], tuple) != colours:
            kinds = ("colours", "pixel values") if isinstance(given[0], tuple) else ("pixel values", "colours")
            raise DataError(f"{file}: it lists {kinds[0]}, but the masks hold {kinds[1]}")
        return names, given
    if not colours and set(found) <= set(range(len(names))):
        return names, list(range(len(names)))
    if len(found) == len(names) and not colours:
        return names, list(found)
    remedy = "give each name its colour: `name r g b`" if colours else "give each name its value: `value name`"
    shown = _shown(list(found), found)
    raise DataError(f"{file}: {len(names)} names, but the masks have {len(found)} values: {shown}; {remedy}")


def _probe(paths: list[Path], problems: list[Problem]) -> dict[Value, Path]:
    """The values that occur, ascending, without the ignored one, each with a mask; unreadable masks are told."""
    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(_values_or_error, paths))
    found: dict[Value, Path] = {}
    for path, values in zip(paths, seen, strict=True):
        if isinstance(values, DataError):
            problems.append(Problem("error", "bad mask", str(path), str(values)))
        else:
            found = dict.fromkeys(values, path) | found
    if any(isinstance(value, tuple) for value in found):
        colours = {(value, value, value) if isinstance(value, int) else value: path for value, path in found.items()}
        if len(colours) > IGNORE_INDEX:
            raise DataError(f"{paths[0].parent}: the masks have {len(colours)} colours; are these pictures masks?")
        return {colour: colours[colour] for colour in sorted(colours)}
    numbers = sorted(value for value in found if isinstance(value, int))
    # 0 and 255 alone are black and white: two classes.
    return {n: found[n] for n in numbers if n != IGNORE_INDEX or numbers == [0, IGNORE_INDEX]}


def _values_or_error(path: Path) -> set[Value] | DataError:
    try:
        return mask_values(path)
    except DataError as error:
        return error


def mask_values(path: Path) -> set[Value]:
    """The pixel values of an index PNG or the RGB colours of a colour PNG; raises DataError when it cannot be read."""
    plane = read_plane(path)
    if plane.ndim == 2:
        return {int(value) for value in np.flatnonzero(np.bincount(plane.reshape(-1), minlength=256))}
    rgb = plane.astype(np.uint32)
    packed = np.unique(rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2])
    return {(int(v) >> 16, int(v) >> 8 & 255, int(v) & 255) for v in packed}
