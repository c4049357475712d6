"""Several sources as one: shared class lists, renumbered labels and masks, label counts; what cannot be united."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.formats.base import SourceData
from pipeline.errors import ConfigError, DataError
from pipeline.labels import IGNORE_INDEX, LabelSpace
from pipeline.records import Boxes, FileImage, MaskSource, Record


def unite(loaded: list[SourceData], renames: list[dict[str, str]]) -> tuple[dict[str, LabelSpace], list[list[Record]]]:
    """Several sources' fields and Records as one: fields of one name share a class list, in order of appearance.

    Raises:
        ConfigError: a renamed field that the source has not, two fields of one name, an image in two sources.
        DataError: fields of one name but of different kinds.
    """
    spaces: dict[str, LabelSpace] = {}
    moved: list[list[Record]] = []
    for number, source in enumerate(loaded):
        rename = renames[number] if number < len(renames) else {}
        for field in rename:
            if field not in source.spaces:
                raise ConfigError(
                    f"data.sources[{number}].fields: no field {field!r}; it has {', '.join(source.spaces)}"
                )
        new = [rename.get(field, field) for field in source.spaces]
        if twice := {name for name in new if new.count(name) > 1}:
            raise ConfigError(f"data.sources[{number}].fields: two fields would be called {', '.join(sorted(twice))}")
        tables: dict[str, list[int]] = {}
        for name, (field, space) in zip(new, source.spaces.items(), strict=True):
            known = spaces.get(name, LabelSpace(space.kind, ()))
            if known.kind != space.kind:
                raise DataError(
                    f"label field {name!r} holds {known.kind} in one source and {space.kind} in data.sources[{number}];"
                    " give it another name by `fields`"
                )
            names = known.names + tuple(n for n in space.names if n not in known.names)
            spaces[name] = LabelSpace(space.kind, names)
            tables[field] = [names.index(n) for n in space.names]
        moved.append([renumber(record, rename, tables) for record in source.records])
    _refuse_shared(moved)
    return spaces, moved


def _refuse_shared(parts: list[list[Record]]) -> None:
    """Raises ConfigError for a file in two sources: each would split on its own, and one's training be the other's test."""
    home: dict[str, int] = {}
    for number, records in enumerate(parts):
        for record in records:
            if isinstance(record.image, FileImage):
                path = os.path.abspath(record.image.path)  # noqa: PTH100  # thrice as fast as resolve, for every image
                if (known := home.setdefault(path, number)) != number:
                    raise ConfigError(
                        f"data.sources[{known}] and data.sources[{number}] both hold {record.image.name}; read its"
                        " formats as one source, e.g. format coco+table"
                    )


@dataclass(frozen=True, slots=True)
class RenumberedMask:
    """A mask whose classes have other numbers in the data set it comes from.

    Attributes:
        mask: the mask as its data set numbers it.
        table: the new number of each class.
    """

    mask: MaskSource
    table: tuple[int, ...]

    def read(self, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Class indices uint8 (H, W), 255 ignored."""
        table = np.full(256, IGNORE_INDEX, np.uint8)
        table[: len(self.table)] = self.table
        renumbered: NDArray[np.uint8] = table[self.mask.read(size)]
        return renumbered


def renumber(record: Record, rename: dict[str, str], tables: dict[str, list[int]]) -> Record:
    """The Record with its fields renamed and its class indices taken through each field's table."""
    labels: dict[str, Any] = {}
    for field, label in record.labels.items():
        table, name = tables[field], rename.get(field, field)
        if isinstance(label, Boxes):
            labels[name] = replace(label, classes=np.asarray(table, np.int64)[label.classes])
        elif isinstance(label, int):
            labels[name] = table[label]
        elif isinstance(label, tuple):
            labels[name] = tuple(table[i] for i in label)
        else:
            labels[name] = label if table == list(range(len(table))) else RenumberedMask(label, tuple(table))
    return replace(record, labels=labels)


def count(name: str, space: LabelSpace, records: list[Record]) -> tuple[int, ...]:
    """Labels per class: images, or boxes; zeros for masks, which are not read for it."""
    total = np.zeros(len(space.names), np.int64)
    for record in records:
        label = record.labels.get(name)
        if isinstance(label, Boxes):
            total += np.bincount(label.classes, minlength=len(total))
        elif isinstance(label, int):
            total[label] += 1
        elif isinstance(label, tuple):
            total[list(label)] += 1
    return tuple(int(value) for value in total)
