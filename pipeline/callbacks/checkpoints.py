"""Checkpoints: the best by `val/score` and the last, written whole or not at all; the last one also when stopped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from pipeline.errors import CheckpointError


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
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
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
        """Chooses the folder: the run's."""
        if self.dirpath is None and stage == "fit":
            name = getattr(trainer.logger, "run_id", None) or "run"
            self.dirpath = str(Path(trainer.default_root_dir) / "runs" / trainer.strategy.broadcast(name))
        trainer.strategy.checkpoint_io = WholeFileIO()
        super().setup(trainer, pl_module, stage)

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


def newest_checkpoint(root: Path, which: str) -> Path:
    """`last` or `best` checkpoint of the newest run under a folder; raises CheckpointError when there is none."""
    found = sorted(root.glob(f"**/{which}.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise CheckpointError(f"no {which}.ckpt under {root}; train first, or give the checkpoint's path")
    return found[-1]
