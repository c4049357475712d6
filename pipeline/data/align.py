"""Which head each label field of a data set is, where the data was read without the network, and its classes' numbers."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import DataError
from pipeline.labels import LabelSpace, pair_fields


@dataclass(frozen=True, slots=True)
class Alignment:
    """Fields as a network's heads.

    Attributes:
        heads: the head of each field that is one's.
        tables: by field, the head's index of each of its classes.
        remarks: which fields and heads found no partner, and why.
    """

    heads: dict[str, str]
    tables: dict[str, list[int]]
    remarks: tuple[str, ...]


def align_fields(fields: dict[str, LabelSpace], heads: dict[str, LabelSpace]) -> Alignment:
    """The fields paired with the heads by `pair_fields`.

    A field of another name than its head's counts only where that head knows all of its classes.

    Raises:
        DataError: no field is a head's, or one has a head's name and holds another kind, or a class unknown to it.
    """
    remarks: list[str] = []
    tables: dict[str, list[int]] = {}
    paired = pair_fields(fields, heads)
    for name in fields.keys() & heads.keys():
        if heads[name].kind != fields[name].kind:
            raise DataError(f"field {name!r} holds {fields[name].kind}, its head answers {heads[name].kind}")
    for name, head in paired.items():
        try:
            tables[name] = [heads[head].index(each) for each in fields[name].names]
        except DataError as error:
            if name == head:
                raise
            remarks.append(f"labels {name!r} do not count at head {head!r}: {error}")
    found = {name: head for name, head in paired.items() if name in tables}
    if not found:
        why = f"; {'; '.join(remarks)}" if remarks else ""
        raise DataError(f"no label field of the data ({', '.join(fields)}) is a head's ({', '.join(heads)}){why}")
    remarks += [f"labels {name!r} do not count: they are no head's" for name in fields if name not in paired]
    unlabelled = [name for name, head in heads.items() if name not in found.values() and head.kind != "image"]
    remarks += [f"head {name!r} is not scored: the data has no labels for it" for name in unlabelled]
    return Alignment(found, tables, tuple(remarks))
