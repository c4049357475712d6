"""LabelSpace: what the values of one label field mean: its kind, class names, ignore index, counts and colours."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol, get_args

from pipeline.errors import DataError, nearest

FieldKind = Literal["classes", "multilabel", "boxes", "mask", "image"]

IGNORE_INDEX = 255
"""Mask value of pixels that neither train nor count (also why a mask has at most 255 classes)."""


class Kinded(Protocol):
    """A field's space or a head."""

    @property
    def kind(self) -> str:
        """Of what its labels or answers are."""


@dataclass(frozen=True, slots=True)
class LabelSpace:
    """One label field of a data set, e.g. the boxes `objects` or the image label `scene`.

    Attributes:
        kind: `classes` (one class an image), `multilabel` (any number), `boxes`, `mask` (a class a pixel), or `image`
            (pixels; no label of any data set, but what a head learns from the images themselves).
        names: class names; the index in this tuple is the class index everywhere.
        counts: per class in the training split: images (`classes`, `multilabel`), boxes, or images in which
            the class occurs (`mask`, 0 where unknown). Empty when not counted yet.
    """

    kind: FieldKind
    names: tuple[str, ...]
    counts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Raises DataError for an unknown kind, double names, counts of another length, or too many mask classes."""
        if self.kind not in get_args(FieldKind):
            raise DataError(f"unknown label kind {self.kind!r}{nearest(self.kind, get_args(FieldKind))}")
        if len(set(self.names)) != len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise DataError(f"class names must differ; these stand twice: {', '.join(twice)}")
        if self.counts and len(self.counts) != len(self.names):
            raise DataError(f"{len(self.counts)} counts for {len(self.names)} classes")
        if self.kind == "mask" and len(self.names) > IGNORE_INDEX:
            raise DataError(f"a mask has at most {IGNORE_INDEX} classes, not {len(self.names)}")

    def index(self, name: str) -> int:
        """Index of a class name; raises DataError with the nearest spelling when there is none."""
        try:
            return self.names.index(name)
        except ValueError:
            raise DataError(f"unknown class {name!r}{nearest(name, self.names)}") from None

    def with_counts(self, counts: tuple[int, ...]) -> LabelSpace:
        """The same space with per-class counts of the training split."""
        return replace(self, counts=counts)

    @property
    def colours(self) -> tuple[tuple[int, int, int], ...]:
        """One RGB colour (0 to 255) per class, the same every time; class 0 of a mask is dark (background)."""
        return tuple(
            (40, 40, 40) if self.kind == "mask" and i == 0 else class_colour(i) for i in range(len(self.names))
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as kept in checkpoints and bundles."""
        return {**asdict(self), "names": list(self.names), "counts": list(self.counts)}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> LabelSpace:
        """Inverse of `to_dict`."""
        return cls(plain["kind"], tuple(plain["names"]), tuple(plain.get("counts", ())))


def class_colour(index: int) -> tuple[int, int, int]:
    """A well separated RGB colour (0 to 255): hues by the golden ratio, so neighbours in index differ most."""
    red, green, blue = colorsys.hsv_to_rgb((0.08 + index * 0.618034) % 1.0, 0.75, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def pair_fields(fields: Mapping[str, LabelSpace], heads: Mapping[str, Kinded]) -> dict[str, str]:
    """The head of each label field: of the same name and kind, or the only one of its kind where the field is that too."""
    paired = {name: name for name, space in fields.items() if name in heads and space.kind == heads[name].kind}
    for kind in ("classes", "multilabel", "boxes", "mask"):
        labelled = [name for name, space in fields.items() if space.kind == kind]
        answering = [name for name, head in heads.items() if head.kind == kind]
        if len(labelled) == len(answering) == 1:
            paired[labelled[0]] = answering[0]
    return paired
