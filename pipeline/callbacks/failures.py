"""Counts the images that could not be read and were replaced; names them at the end; stops when they are too many."""

from __future__ import annotations

import sys
from typing import Any

import lightning as L

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
        self._told = 0

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

    def on_validation_batch_end(self, trainer: Any, *args: Any, **_: Any) -> None:
        """Counts, but not in the sanity check, whose images come again."""
        if not trainer.sanity_checking:
            self._count(args[2])

    def on_test_batch_end(self, trainer: Any, *args: Any, **_: Any) -> None:  # noqa: ARG002
        """Counts."""
        self._count(args[2])

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002
        """Names them."""
        self._tell()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002
        """Names them also when the run stops early."""
        self._tell()

    def _tell(self) -> None:
        if len(self.failures) > self._told:
            self._told = len(self.failures)
            shown = list(self.failures)[:20]
            more = f"\n  and {self._told - 20} more" if self._told > 20 else ""
            lines = f"{self._told} images could not be read and were replaced:\n  " + "\n  ".join(shown) + more
            sys.stderr.write(lines + "\n")
