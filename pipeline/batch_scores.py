"""Answers of batch-predict scored against labels at hand, image by image: the trainer's figures without torch."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.average_precision import ImageBoxes, average_precision
from pipeline.bundle import HeadSpec
from pipeline.data.formats.coco import read_coco_file
from pipeline.data.formats.detect import read_source
from pipeline.data.formats.files import Pictures
from pipeline.data.unite import renumber
from pipeline.errors import ConfigError, DataError
from pipeline.imaging.runs import MaskRuns
from pipeline.labels import IGNORE_INDEX, LabelSpace, pair_fields
from pipeline.records import Boxes, FileImage, Record
from serving.batch.names import raw
from serving.batch.rows import ImageResult, Row
from serving.batch.sources import LocalFiles, Source

Scores = dict[str, dict[str, float]]


class LabelScorer:
    """Labels by image, and what the answers so far are worth.

    Args:
        labels: the labelled data set's folder, or a COCO JSON file whose images lie below the source.
        form: as `data.format`.
        source: where the images are; on this machine.
        heads: those that are answered.

    Raises:
        ConfigError: the images are not on this machine.
        DataError: no labels there, none of a head, or classes that a head does not know.
    """

    def __init__(self, labels: Path, form: str, source: Source, heads: dict[str, HeadSpec]) -> None:
        if not isinstance(source, LocalFiles):
            raise ConfigError("--data.root scores images on this machine only; copy them, or predict without it")
        single = labels.is_file()
        found = read_coco_file(labels, Path(source.root)) if single else read_source(labels, form)
        self._source = source
        self._heads = _pair(found.spaces, heads, labels)
        tables = {f: _table(found.spaces[f], heads[h], labels) for f, h in self._heads.items()}
        self._records: dict[str, Record] = {}
        for record in found.records:
            if isinstance(record.image, FileImage):
                moved = renumber(record.only(self._heads.keys()), self._heads, tables)
                self._records[os.path.realpath(record.image.path)] = moved
        self._tallies = {head: _tally(heads[head]) for head in self._heads.values()}
        self._unanswered: Counter[str] = Counter()
        self._numbers: dict[str, int] = {}
        self.number: Callable[[str], int | None] | None = None
        self.categories: dict[str, int] | None = None
        if single:
            self._numbers, self.categories = _numbers(labels, source)
            self.number = self._number

    def knows(self, name: bytes) -> bool:
        """Whether an image is labelled."""
        return self._record(name) is not None

    def _record(self, name: bytes) -> Record | None:
        return self._records.get(self._real(name))

    def _number(self, image: str) -> int | None:
        return self._numbers.get(self._real(raw(image)))

    def _real(self, name: bytes) -> str:
        return os.path.realpath(Path(self._source.root, os.fsdecode(name)))

    def add(self, result: ImageResult) -> None:
        """Scores one image where it is labelled and was answered."""
        record = self._record(raw(result.image))
        if record is None:
            return
        rows = {row.head: row for row in result.rows}
        if result.failure is not None:
            self._unanswered.update(record.labels.keys())
        for head, label in record.labels.items():
            if head in rows:
                self._tallies[head].add(rows[head], label)

    def scores(self) -> Scores:
        """By head: the trainer's metrics, `images` that they count, and `unanswered`, labelled ones without an answer."""
        found: Scores = {}
        for head, tally in self._tallies.items():
            missing = {"unanswered": float(self._unanswered[head])} if self._unanswered[head] else {}
            figures = {"images": float(tally.images)} | missing | tally.compute()
            found[head] = {name: value for name, value in figures.items() if not math.isnan(value)}
        return found


def _pair(spaces: dict[str, LabelSpace], heads: dict[str, HeadSpec], labels: Path) -> dict[str, str]:
    """`pair_fields`; raises DataError where there is none."""
    paired = pair_fields(spaces, heads)
    if not paired:
        fields_told = ", ".join(f"{name} ({space.kind})" for name, space in spaces.items())
        heads_told = ", ".join(f"{name} ({head.kind})" for name, head in heads.items())
        raise DataError(f"{labels}: no label field ({fields_told}) is what a head answers ({heads_told})")
    return paired


def _table(space: LabelSpace, head: HeadSpec, labels: Path) -> list[int]:
    """The head's index of each class of a field."""
    missing = [name for name in space.names if name not in head.classes]
    if missing:
        raise DataError(
            f"{labels}: class {missing[0]!r} is unknown to the model, which knows {', '.join(head.classes)} there; --heads"
            " with the others leaves that head out"
        )
    return [head.classes.index(name) for name in space.names]


def _numbers(file: Path, source: LocalFiles) -> tuple[dict[str, int], dict[str, int]]:
    """COCO's numbers of images, by their real paths as `read_coco_file` finds them, and of categories by name."""
    content, root = json.loads(file.read_text()), Path(source.root)
    pictures, near = Pictures(root), (file.parent, root / "images")
    ids: dict[str, int] = {}
    for entry in content["images"]:
        path = pictures.named(entry["file_name"], str(file), [], near)
        if path is not None:
            ids[os.path.realpath(path)] = entry["id"]
    return ids, {category["name"]: category["id"] for category in content["categories"]}


class ClassTally:
    """Accuracy, macro F1, and recall per class; for multi-label the share of right decisions, and F1 per class."""

    def __init__(self, head: HeadSpec) -> None:
        self._head, self._multilabel = head, head.kind == "multilabel"
        self._guesses: list[NDArray[np.bool_]] = []
        self._wanted: list[NDArray[np.bool_]] = []

    @property
    def images(self) -> int:
        """Images that were scored."""
        return len(self._wanted)

    def add(self, row: Row, label: Any) -> None:
        """One image's probabilities and its class, or classes."""
        count = len(self._head.classes)
        guess, wanted = np.zeros(count, bool), np.zeros(count, bool)
        values = np.asarray(row.probabilities, np.float32)
        guess[values > self._head.threshold if self._multilabel else int(values.argmax())] = True
        wanted[list(label) if isinstance(label, tuple) else label] = True
        self._guesses.append(guess)
        self._wanted.append(wanted)

    def compute(self) -> dict[str, float]:
        """The metrics."""
        if not self._wanted:
            return {}
        guess, wanted = np.stack(self._guesses), np.stack(self._wanted)
        hits, support = (guess & wanted).sum(0), wanted.sum(0)
        f1 = 2 * hits / np.maximum(guess.sum(0) + support, 1)
        if self._multilabel:
            out = {"accuracy": float((guess == wanted).mean()), "F1": float(f1.mean())}
            return out | {f"F1/{name}": float(f1[i]) for i, name in enumerate(self._head.classes)}
        out = {"accuracy": float((guess & wanted).any(1).mean()), "F1": float(f1[support > 0].mean())}
        recall = hits / np.maximum(support, 1)
        return out | {f"recall/{name}": float(recall[i]) for i, name in enumerate(self._head.classes) if support[i]}


class BoxTally:
    """COCO's average precision."""

    def __init__(self, head: HeadSpec) -> None:
        self._head = head
        self._seen: list[ImageBoxes] = []

    @property
    def images(self) -> int:
        """Images that were scored."""
        return len(self._seen)

    def add(self, row: Row, label: Any) -> None:
        """One image's boxes and the labelled ones."""
        assert isinstance(label, Boxes)
        boxes = np.asarray(row.boxes, np.float32).reshape(-1, 4)
        scores, kinds = np.asarray(row.scores, np.float32), np.asarray(row.classes, np.int64)
        self._seen.append(ImageBoxes(boxes, scores, kinds, label.xyxy, label.classes, label.crowd))

    def compute(self) -> dict[str, float]:
        """The metrics."""
        return average_precision(self._seen, self._head.classes)[0]


class MaskTally:
    """Mean IoU over the classes that occur or are predicted, pixel accuracy, IoU and Dice per class."""

    def __init__(self, head: HeadSpec) -> None:
        self._head = head
        self._matrix = np.zeros((len(head.classes),) * 2, np.int64)
        self.images = 0

    def add(self, row: Row, label: Any) -> None:
        """One image's mask and the labelled one, at full size."""
        wanted = label.read((row.height, row.width)).ravel()
        guess = (
            MaskRuns.decoded(dict(zip(row.classes, row.counts, strict=True)), (row.height, row.width)).mask().ravel()
        )
        keep, count = wanted != IGNORE_INDEX, len(self._matrix)
        flat = wanted[keep].astype(np.int64) * count + guess[keep]
        self._matrix += np.bincount(flat, minlength=count * count).reshape(count, count)
        self.images += 1

    def compute(self) -> dict[str, float]:
        """The metrics."""
        if not self._matrix.any():
            return {}
        inter, total = self._matrix.diagonal(), self._matrix.sum(0) + self._matrix.sum(1)
        seen = total > 0
        iou, dice = inter / np.maximum(total - inter, 1), 2 * inter / np.maximum(total, 1)
        out = {"mIoU": float(iou[seen].mean()), "accuracy": float(inter.sum() / self._matrix.sum())}
        for i, name in enumerate(self._head.classes):
            if seen[i]:
                out |= {f"IoU/{name}": float(iou[i]), f"Dice/{name}": float(dice[i])}
        return out


def _tally(head: HeadSpec) -> ClassTally | BoxTally | MaskTally:
    if head.kind == "boxes":
        return BoxTally(head)
    return MaskTally(head) if head.kind == "mask" else ClassTally(head)
