"""What `fit` checks of its data before it starts, and what it says of them: labels and image headers, not pixels."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.data.formats.base import DROPPED, Problem, SourceData
from pipeline.data.formats.files import images_under
from pipeline.errors import DataError, ImageError
from pipeline.imaging.decode import image_size
from pipeline.imaging.masks import ColourMask, IndexMask
from pipeline.labels import LabelSpace
from pipeline.records import FileImage, Record

_BEARABLE = 0.1
"""Share of the images that may be left out before the data are taken for the wrong ones."""


def size_problems(records: list[Record]) -> list[Problem]:
    """Images whose header gives another size than their labels or masks have: those would lie elsewhere.

    Unreadable images are passed.
    """
    stated = [record for record in records if isinstance(record.image, FileImage) and (record.size or _masks(record))]
    with ThreadPoolExecutor(8) as pool:
        return [problem for found in pool.map(_size_problems, stated) for problem in found]


def _masks(record: Record) -> list[Path]:
    return [label.path for label in record.labels.values() if isinstance(label, (IndexMask, ColourMask))]


def _size_problems(record: Record) -> list[Problem]:
    assert isinstance(record.image, FileImage)
    try:
        size = image_size(record.image.path)
    except ImageError:
        return []  # training replaces it, counts it and names it
    found = [_mask_problem(record.image.name, mask, size) for mask in _masks(record)]
    return [problem for problem in (size_problem(record, size), *found) if problem is not None]


def _mask_problem(name: str, mask: Path, size: tuple[int, int]) -> Problem | None:
    try:
        height, width = image_size(mask)
    except ImageError as error:
        return Problem("error", "bad mask", name, f"mask {error}")
    if (height, width) == size:
        return None
    message = f"mask {mask} is {width} x {height} pixels, its image {size[1]} x {size[0]}"
    return Problem("error", "bad mask", name, message)


def size_problem(record: Record, size: tuple[int, int], orientation: int = 1) -> Problem | None:
    """The Problem of an image of full upright (height, width) whose labels state another size, else None."""
    if record.size is None or record.size == size:
        return None
    message = f"the labels say {record.size[1]} x {record.size[0]}, the upright image is {size[1]} x {size[0]}"
    if record.size == size[::-1]:
        turned = f"EXIF orientation {orientation}" if orientation >= 5 else "EXIF or not"
        message += f"; were they drawn on the picture before it was turned ({turned})?"
    return Problem("error", "size differs", record.image.name, message)


def unlabelled(root: Path, source: SourceData) -> list[Problem]:
    """Images of the folder that no label names, unless a problem already tells of them."""
    known = {record.image.name for record in source.records} | {problem.where for problem in source.problems}
    return [
        Problem("warning", "image without label", str(path), "no label names it: left out")
        for path in images_under(root)
        if str(path) not in known
    ]


def refuse(problems: list[Problem], images: int) -> None:
    """Raises DataError for what would poison a run: any error but a few images that are left out."""
    errors = [problem for problem in problems if problem.severity == "error" and problem.kind not in DROPPED]
    lost = [problem for problem in problems if problem.severity == "error" and problem.kind in DROPPED]
    if errors:
        listed = "; ".join(f"{p.kind}: {p.where}: {p.message}" for p in errors[:3])
        raise DataError(f"{len(errors)} errors in the data ({listed}); `lightning check-data` lists them all")
    if len(lost) > _BEARABLE * (images + len(lost)):
        raise DataError(
            f"{len(lost)} of {images + len(lost)} images would be left out ({lost[0].kind}: {lost[0].where}:"
            f" {lost[0].message}); is data.root right? `lightning check-data` lists them all"
        )


def refuse_unlearnable(spaces: dict[str, LabelSpace], train: list[Record]) -> None:
    """Raises DataError for no training images, a label field of one class, or one that they do not label or tell apart."""
    if not train:
        raise DataError("the data has no training images; check data.split, or the data set's own split files")
    for name, space in spaces.items():
        if space.kind in {"classes", "mask"} and len(space.names) < 2:
            only = repr(space.names[0]) if space.names else "none"
            raise DataError(f"label field {name!r} has only one class ({only}): there is nothing to tell apart")
        learnt = [kind for kind, number in zip(space.names, space.counts, strict=True) if number]
        unlabelled = not learnt if space.kind != "mask" else not any(name in record.labels for record in train)
        if unlabelled:
            raise DataError(
                f"label field {name!r} has no label in the training split; check data.split, or `lightning check-data`"
            )
        if space.kind == "classes" and len(learnt) < 2:
            raise DataError(
                f"label field {name!r} has only one class ({learnt[0]!r}) in the training split, though the data set"
                f" knows {len(space.names)}; check its split, or data.split"
            )


def statement(
    formats: list[str],
    spaces: dict[str, LabelSpace],
    splits: dict[str, list[Record]],
    problems: list[Problem],
) -> str:
    """One line on what was found, and one on every kind of thing that was dropped or mended, with the first names."""
    fields = ", ".join(f"{name} ({_classes(space)})" for name, space in spaces.items()) or "no labels"
    sizes = ", ".join(f"{name} {len(records)}" for name, records in splits.items())
    lines = [f"data: {' and '.join(formats)}; {fields}; {sizes} images"]
    told = [problem for problem in problems if problem.severity != "info"]
    for kind, number in Counter(problem.kind for problem in told).items():
        first = [problem for problem in told if problem.kind == kind][:3]
        names = "; ".join(f"{Path(problem.where).name}: {problem.message}" for problem in first)
        lines.append(f"data: {number} x {kind} ({names}{'; …' if number > 3 else ''})")
    return "\n".join(lines)


def _classes(space: LabelSpace) -> str:
    names = space.names if space.kind != "mask" else space.names[1:] or space.names
    if len(names) == 1:
        return f"{space.kind}: {names[0]}"
    listed = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return f"{space.kind}, {len(space.names)} classes: {listed}"
