"""Checkpoints: the best by `val/score` and the last, written whole or not at all; the last one also when stopped."""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from pipeline.errors import CheckpointError
from pipeline.ranges import require_between


class WholeFileIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that a full disk leaves the previous checkpoint intact."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Saves a checkpoint; raises CheckpointError naming the path when the disk is full or not writable."""
        target = Path(path)
        part = target.with_name(target.name + ".part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            super().save_checkpoint(checkpoint, part, storage_options)
            os.replace(part, target)  # noqa: PTH105  # the standard name for an atomic rename
        except (OSError, RuntimeError) as error:
            part.unlink(missing_ok=True)
            if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
                raise
            raise CheckpointError(
                f"checkpoint {target} could not be written ({error}); the previous one is intact."
                f" Free some space, then go on with --ckpt_path last"
            ) from error


class Checkpoints(ModelCheckpoint):
    """`best.ckpt` by `val/score` and `last.ckpt`, in `<default_root_dir>/runs/<run>/`.

    Args:
        every_n_epochs: epochs between checkpoints.
        every_minutes: in a longer epoch, minutes between saves of `last.ckpt`; 0 = only at its end.

    Attributes:
        resumes: the checkpoint that the run goes on from, if any.
    """

    def __init__(self, every_n_epochs: int = 1, every_minutes: float = 5.0) -> None:
        require_between("checkpoints.every_n_epochs", every_n_epochs, 1)
        require_between("checkpoints.every_minutes", every_minutes, 0)
        self.every_minutes, self._saved_at = every_minutes, time.monotonic()
        self.resumes: str | None = None
        super().__init__(
            monitor="val/score",
            mode="max",
            filename="best",
            save_last=True,
            every_n_epochs=every_n_epochs,
            enable_version_counter=False,
            auto_insert_metric_name=False,
        )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Chooses the folder: the run's, also for the curves and pictures of a test."""
        if self.dirpath is None:
            found = getattr(trainer.logger, "run_id", None)  # with fast_dev_run a stand-in that has everything
            runs = Path(trainer.default_root_dir) / "runs"
            name = found if isinstance(found, str) else own_folder(runs, self.resumes)
            self.dirpath = str(runs / trainer.strategy.broadcast(name))
        trainer.strategy.checkpoint_io = WholeFileIO()
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        """Saves in mid-epoch where epochs are long."""
        super().on_train_batch_end(trainer, pl_module, *args, **kwargs)
        due = self.every_minutes > 0 and time.monotonic() - self._saved_at > 60 * self.every_minutes
        if trainer.world_size > 1:  # the processes' clocks differ: the first one decides, now and then
            due = trainer.global_step % 50 == 0 and trainer.strategy.broadcast(due)
        if due:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves the best and the last."""
        super().on_validation_end(trainer, pl_module)
        if not self._should_save_on_train_epoch_end(trainer):  # else the best, saved there, would be passed over
            self._keep_last(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves the last of an epoch that was not validated."""
        super().on_train_epoch_end(trainer, pl_module)
        self._keep_last(trainer)

    def _keep_last(self, trainer: L.Trainer) -> None:
        """Lightning's `save_last` saves only what is also the best: a resumed run would lose every epoch since."""
        due = (trainer.current_epoch + 1) % self._every_n_epochs == 0
        if due and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_last_checkpoint(self, trainer: L.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """What was just saved as the best is linked, not written again."""
        if getattr(trainer, "fast_dev_run", False):  # set by Lightning outside its class
            return
        self._saved_at = time.monotonic()
        best = Path(self.best_model_path) if self.best_model_path else None
        fresh = (
            self._last_checkpoint_saved == self.best_model_path and self._last_global_step_saved == trainer.global_step
        )
        if best is None or not fresh or not best.is_file() or trainer.world_size > 1:
            super()._save_last_checkpoint(trainer, monitor_candidates)
            return
        target = best.with_name("last.ckpt")
        part = target.with_name("last.ckpt.part")
        part.unlink(missing_ok=True)
        try:
            os.link(best, part)  # checkpoints are replaced, never written into: the link keeps this one
        except OSError:
            super()._save_last_checkpoint(trainer, monitor_candidates)
            return
        os.replace(part, target)  # noqa: PTH105  # the standard name for an atomic rename
        self.last_model_path = str(target)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Ctrl-C and SIGTERM: saves where training stands."""
        stopped = isinstance(exception, (KeyboardInterrupt, SystemExit)) or "SIGTERM" in type(exception).__name__
        if stopped and trainer.state.fn == "fit" and trainer.global_step > 0 and self.dirpath:
            try:
                trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt")
            except CheckpointError as error:
                rank_zero_warn(str(error))

    def _save_topk_checkpoint(self, trainer: L.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """Without the figure (no validation data) there is no best, only a last."""
        if self.monitor in monitor_candidates:
            super()._save_topk_checkpoint(trainer, monitor_candidates)


def own_folder(runs: Path, checkpoint: str | None) -> str:
    """A folder below `runs` for a run without an id (no store): that of its checkpoint, else one that is not there yet."""
    if checkpoint is not None and Path(checkpoint).parent.parent.resolve() == runs.resolve():
        return Path(checkpoint).parent.name
    names = ("run", *(f"run-{number}" for number in range(2, 1_000_000)))
    return next(name for name in names if not (runs / name).exists())


def newest_checkpoint(root: Path, which: str) -> Path:
    """`last` or `best` checkpoint of the newest run under a folder; raises CheckpointError when there is none."""
    found = sorted(root.glob(f"**/{which}.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise CheckpointError(f"no {which}.ckpt under {root}; train first, or give the checkpoint's path")
    return found[-1]


def require_readable(path: Path) -> None:
    """Raises CheckpointError for a file that is no whole checkpoint of this project; nothing in it is unpickled."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({type(error).__name__}): it is cut off, or no checkpoint"
        ) from error
    if not isinstance(content, dict) or not {"state_dict", "hyper_parameters"} <= set(content):
        raise CheckpointError(
            f"{path} is no checkpoint of this project: it does not say how the network is built; weights alone are"
            " given as model.weights"
        )
