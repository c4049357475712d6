"""Counts over all answers, part by part: per class, per reason, score histograms, and a few samples of every class."""

from __future__ import annotations

import heapq
import zlib
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.bundle import HeadSpec
from serving.batch.rows import ImageResult, Row

BINS = 20
"""Bars of a score histogram, from 0 to 1."""

SAMPLES = 6
"""Pictures kept for each class."""

CLASSES = 40
"""Classes of a head that get samples: those met first."""


@dataclass(slots=True)
class HeadTally:
    """One head: `counts` of images (`classes`, `multilabel`, `mask`) or boxes per class; `pixels` per class of masks.

    `samples` holds, per class, SAMPLES rows chosen by a hash of the image's name: neither the first nor the best.
    """

    kind: str
    counts: Counter[str] = field(default_factory=Counter)
    pixels: Counter[str] = field(default_factory=Counter)
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    samples: dict[str, list[tuple[int, str, Row]]] = field(default_factory=dict)

    def add(self, row: Row, shown_from: float) -> None:
        """Counts one image's answer; boxes below `shown_from` are kept only for scoring and do not count."""
        labels, scores = row.labels, row.scores
        if row.kind == "boxes" and scores and scores[-1] < shown_from:
            labels = [name for name, score in zip(labels, scores, strict=True) if score >= shown_from]
            scores = scores[: len(labels)]
        self.counts.update(labels)
        if row.kind == "mask":
            self.pixels.update(dict(zip(row.labels, row.areas, strict=True)))
        if scores:
            bins = np.minimum((np.asarray(scores) * BINS).astype(np.int64), BINS - 1)
            self.histogram += np.bincount(bins, minlength=BINS)
        rank = -zlib.crc32(row.image.encode())
        for name in set(labels):
            held = self.samples.get(name)
            if held is None:
                if len(self.samples) == CLASSES:
                    continue
                held = self.samples[name] = []
            if len(held) < SAMPLES:
                heapq.heappush(held, (rank, row.image, row))
            elif rank > held[0][0]:
                heapq.heapreplace(held, (rank, row.image, row))


@dataclass(slots=True)
class Tally:
    """Everything that summary.json and report.html tell of the answers."""

    heads: dict[str, HeadTally]
    thresholds: dict[str, float]
    answered: int = 0
    failed: int = 0
    skipped: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, heads: dict[str, HeadSpec], threshold: float | None) -> Tally:
        """An empty one for the heads that are answered."""
        found = {name: head.threshold if threshold is None else threshold for name, head in heads.items()}
        return cls({name: HeadTally(head.kind) for name, head in heads.items()}, found)

    def add(self, result: ImageResult) -> None:
        """Counts one image."""
        failure = result.failure
        if failure is None:
            self.answered += 1
            for row in result.rows:
                self.heads[row.head].add(row, self.thresholds[row.head])
        elif failure.skipped:
            self.skipped += 1
            self.left_out[failure.kind] += 1
        else:
            self.failed += 1
            self.errors[failure.kind] += 1
            if len(self.examples) < 200:
                self.examples.append((result.image, failure.reason))
