"""The training loader, which goes on in mid-epoch, and what its workers do first."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any

from torch.utils.data import DataLoader

from pipeline.data.sampling import TrainBatches
from pipeline.errors import TrifocalError


class ResumableLoader(DataLoader[Any]):
    """A DataLoader that goes on in mid-epoch: its state is how many batches of the epoch are done."""

    done = 0

    def __iter__(self) -> Any:
        """Batches of the epoch, counted."""
        assert isinstance(self.batch_sampler, TrainBatches)
        self.done = self.batch_sampler.skip
        try:
            for batch in super().__iter__():
                self.done += 1
                yield batch
        except TrifocalError as error:
            raise type(error)(own_words(str(error))) from None

    def state_dict(self) -> dict[str, int]:
        """`done`: batches of this epoch that training has had (0 at its end)."""
        return {"done": self.done % len(self)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Leaves out the batches that are done."""
        assert isinstance(self.batch_sampler, TrainBatches)
        self.batch_sampler.skip = state["done"]


def own_words(message: str) -> str:
    """An error's message without the traceback that a worker process puts before it."""
    return message.rpartition(f"\n{TrifocalError.__module__}.")[2].partition("Error: ")[2].strip() or message


def start_worker(number: int) -> None:  # noqa: ARG001  # the loader gives it
    """One thread a worker; Ctrl-C is the main process's business."""
    import cv2
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
