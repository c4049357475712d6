"""Counts the images that could not be read and were replaced; names them at the end; stops when they are too many."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from pipeline.errors import TooManyBadImagesError
from pipeline.records import Batch


class CountFailures(L.Callback):
    """Stops a run in which more than `allowed` of the images seen, and at least three, were unreadable.

    Args:
        allowed: share of the images, 0 to 1.
    """

    def __init__(self, allowed: float = 0.01) -> None:
        self.allowed, self.seen = allowed, 0
        self.failures: dict[str, int] = {}

    def _count(self, batch: Batch) -> None:
        self.seen += len(batch)
        for failure in batch.failures:
            self.failures[failure] = self.failures.get(failure, 0) + 1
        total = sum(self.failures.values())
        if len(self.failures) >= 3 and total > self.allowed * self.seen:
            raise TooManyBadImagesError(
                f"{total} of {self.seen} images could not be read, more than {self.allowed:.0%}; first:"
                f" {next(iter(self.failures))}; run `lightning check-data`"
            )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Counts."""
        self._count(batch)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Names them."""
        if self.failures:
            listed = "\n  ".join(self.failures)
            rank_zero_warn(f"{len(self.failures)} images could not be read and were replaced:\n  {listed}")
