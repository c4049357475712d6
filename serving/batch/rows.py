"""One row per image and head: what predictions.parquet holds, and how an Answer becomes rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.bundle import HeadSpec
from serving.answers import Answer, BoxAnswer, HeadAnswer, LabelAnswer

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Row:
    """One head's answer on one image; columns that its kind does not use are empty.

    Attributes:
        image: the file's name relative to the source.
        width, height: of the upright image, pixels.
        head, kind: which head, and `classes`, `multilabel`, `boxes` or `mask`.
        classes, labels: indices and names: chosen (`classes`, `multilabel`), of each box, or present in the mask.
        scores: of each of them; empty for masks.
        probabilities: of every class (`classes`, `multilabel`).
        boxes: xyxy in pixels, of each box.
        areas: pixels of each class in the mask.
        counts: COCO's compressed run lengths of each class in the mask, `size` being [height, width].
    """

    image: str
    width: int
    height: int
    head: str
    kind: str
    classes: list[int] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    boxes: list[list[float]] = field(default_factory=list)
    areas: list[int] = field(default_factory=list)
    counts: list[str] = field(default_factory=list)


_EMPTY = Row("", 0, 0, "", "")


def prediction_names() -> tuple[str, ...]:
    """Names of the columns of predictions.parquet."""
    return tuple(Row.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a file has no answer: `reason` for people, `kind` to count by; `skipped` where it is no image at all."""

    reason: str
    kind: str
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class ImageResult:
    """What is known of one file: its rows, or its failure; `files` are those written for it alone."""

    image: str
    rows: tuple[Row, ...] = ()
    failure: Failure | None = None
    files: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels; (0, 0) without an answer."""
        return (self.rows[0].height, self.rows[0].width) if self.rows else (0, 0)


def rows_of(image: str, answer: Answer, heads: Mapping[str, HeadSpec], shown_from: float | None) -> tuple[Row, ...]:
    """An Answer as rows.

    Args:
        image: the file's name.
        answer: of the predictor.
        heads: the bundle's.
        shown_from: score from which a multi-label class is chosen; None takes each head's own.
    """
    height, width = answer.size
    return tuple(
        Row(image, width, height, name, heads[name].kind, **_columns(found, heads[name], shown_from))
        for name, found in answer.heads.items()
    )


def _columns(found: HeadAnswer, head: HeadSpec, shown_from: float | None) -> dict[str, Any]:
    if isinstance(found, LabelAnswer):
        values = found.probabilities.tolist()
        chosen = found.chosen
        if found.multilabel:
            least = head.threshold if shown_from is None else shown_from
            chosen = [index for index, value in enumerate(values) if value >= least]
        return {
            "classes": chosen,
            "labels": [head.classes[i] for i in chosen],
            "scores": [values[i] for i in chosen],
            "probabilities": values,
        }
    if isinstance(found, BoxAnswer):
        kinds = found.classes.tolist()
        names = [head.classes[i] for i in kinds]
        return {"classes": kinds, "labels": names, "scores": found.scores.tolist(), "boxes": found.boxes.tolist()}
    encoded = found.runs.encoded()
    return {
        "classes": list(encoded),
        "labels": [head.classes[i] if i < len(head.classes) else "" for i in encoded],
        "areas": [area for area, _ in encoded.values()],
        "counts": [counts for _, counts in encoded.values()],
    }


# --- tables ---------------------------------------------------------------------------------------------------------


def prediction_schema() -> pa.Schema:
    """Columns of predictions.parquet."""
    import pyarrow as pa

    text, number, real = pa.string(), pa.int32(), pa.float32()
    return pa.schema(
        [
            ("image", text), ("width", number), ("height", number), ("head", text), ("kind", text),
            ("classes", pa.list_(number)), ("labels", pa.list_(text)), ("scores", pa.list_(real)),
            ("probabilities", pa.list_(real)), ("boxes", pa.list_(pa.list_(real, 4))), ("areas", pa.list_(pa.int64())),
            ("counts", pa.list_(text)),
        ]
    )  # fmt: skip


def part_schema() -> pa.Schema:
    """Columns of a part: those of predictions.parquet, why there is no answer, and the files written for the image."""
    import pyarrow as pa

    more = [("reason", pa.string()), ("reason_kind", pa.string()), ("skipped", pa.bool_())]
    return pa.schema(
        [*prediction_schema(), *(pa.field(*each) for each in more), pa.field("files", pa.list_(pa.string()))]
    )


def table_of(results: Iterable[ImageResult]) -> pa.Table:
    """Results as a part's table; an image without an answer is one row without a head."""
    import pyarrow as pa

    from serving.batch.columns import column

    schema = part_schema()
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    for result in results:
        for at, row in enumerate(result.rows or (_EMPTY,)):
            for name in prediction_names():
                columns[name].append(getattr(row, name))
            columns["files"].append(() if at else result.files)
        failure = result.failure
        if failure is not None:
            columns["image"][-1], columns["head"][-1], columns["kind"][-1] = result.image, None, None
        missing = len(columns["image"]) - len(columns["reason"])
        columns["reason"] += [failure and failure.reason] * missing
        columns["reason_kind"] += [failure and failure.kind] * missing
        columns["skipped"] += [bool(failure and failure.skipped)] * missing
    return pa.table([column(columns[field.name], field.type) for field in schema], schema)


def results_of(table: pa.Table) -> Iterator[ImageResult]:
    """Inverse of `table_of`."""
    names = prediction_names()
    held: list[dict[str, Any]] = []
    for plain in table.to_pylist():
        if held and held[0]["image"] != plain["image"]:
            yield _result(held, names)
            held = []
        held.append(plain)
    if held:
        yield _result(held, names)


def _result(held: list[dict[str, Any]], names: tuple[str, ...]) -> ImageResult:
    first = held[0]
    files = tuple(first["files"] or ())
    if first["reason"] is not None:
        return ImageResult(first["image"], (), Failure(first["reason"], first["reason_kind"], first["skipped"]), files)
    return ImageResult(first["image"], tuple(Row(**{n: row[n] for n in names}) for row in held), None, files)
