"""Several sources as one: shared class lists, renumbered labels, and label counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.data.formats.base import SourceData
from pipeline.errors import ConfigError, DataError
from pipeline.labels import LabelSpace
from pipeline.records import Boxes, Record


def unite(loaded: list[SourceData], renames: list[dict[str, str]]) -> tuple[dict[str, LabelSpace], list[list[Record]]]:
    """Several sources' fields and Records as one: fields of one name share a class list, in order of appearance.

    Raises:
        ConfigError: a renamed field that the source has not.
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
        tables: dict[str, list[int]] = {}
        for field, space in source.spaces.items():
            name = rename.get(field, field)
            known = spaces.get(name, LabelSpace(space.kind, ()))
            if known.kind != space.kind:
                raise DataError(f"label field {name!r} holds {known.kind} in one source and {space.kind} in another")
            names = known.names + tuple(n for n in space.names if n not in known.names)
            spaces[name] = LabelSpace(space.kind, names)
            tables[field] = [names.index(n) for n in space.names]
            if space.kind == "mask" and tables[field] != list(range(len(space.names))):
                raise DataError(f"the masks of field {name!r} number their classes differently in {source.format}")
        moved.append([renumber(record, rename, tables) for record in source.records])
    return spaces, moved


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
            labels[name] = label
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
