"""EpochLines: a plain line per epoch where the output is no terminal, so that a log shows how training goes."""

from __future__ import annotations

import sys
import time

import lightning as L


class EpochLines(L.Callback):
    """Prints epoch, loss, score, images a second and the time left; silent on a terminal, which has the progress bar."""

    def __init__(self) -> None:
        self._begun = self._seconds = self._spent = 0.0
        self._images, self._epochs = 0, 0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Prints the line of the epoch before, whose figures are complete only now."""
        self._tell(trainer, trainer.current_epoch)
        self._images, self._seconds, self._begun = 0, 0.0, time.monotonic()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,  # noqa: ARG002
        pl_module: L.LightningModule,  # noqa: ARG002
        outputs: object,  # noqa: ARG002
        batch: object,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Counts images, and the time without validation."""
        self._images += len(batch) if hasattr(batch, "__len__") else 0
        self._seconds = time.monotonic() - self._begun

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Prints the last epoch's line."""
        self._tell(trainer, trainer.current_epoch)

    def _tell(self, trainer: L.Trainer, done: int) -> None:
        if sys.stdout.isatty() or not trainer.is_global_zero or not self._images:
            return
        self._epochs += 1
        self._spent += time.monotonic() - self._begun
        total, known = trainer.max_epochs or -1, trainer.callback_metrics
        figures = {"loss": "train/loss", "score": "val/score"}
        told = [f"{word} {float(known[key]):.3f}" for word, key in figures.items() if key in known]
        told.append(f"{self._images * trainer.world_size / max(self._seconds, 1e-9):.0f} images/s")
        if total > done:
            told.append(f"{_clock(self._spent / self._epochs * (total - done))} left")
        sys.stdout.write(f"epoch {done}{f'/{total}' if total > 0 else ''}: {', '.join(told)}\n")
        sys.stdout.flush()


def _clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
