"""Exponential moving average of the weights, used for validation, testing and export."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from pipeline.ranges import require_between


class AverageWeights(WeightAveraging):
    """Lightning's weight averaging with a decay that warms up: decay * (1 - exp(-step / tau)).

    Checkpoints hold the average as `state_dict`, and the weights being trained beside it.

    Args:
        decay: share of the average that stays at each step, 0 to 1; 0 turns averaging off.
        tau: steps of the warm-up.
    """

    def __init__(self, decay: float = 0.998, tau: float = 200.0) -> None:
        require_between("ema.decay", decay, 0, 1)
        require_between("ema.tau", tau, 1e-9)
        self.decay, self.tau = decay, tau
        self._swapped = False
        super().__init__(device=None, use_buffers=True, multi_avg_fn=self._average)

    @torch.no_grad()
    def _average(self, averages: Any, currents: Any, count: Any) -> None:
        weight = 1 - self.decay * (1 - math.exp(-(float(count) + 1) / self.tau))
        pairs: list[tuple[Tensor, Tensor]] = list(zip(averages, currents, strict=True))
        floats = [(a, c) for a, c in pairs if a.is_floating_point()]
        if floats:
            torch._foreach_lerp_([a for a, _ in floats], [c for _, c in floats], weight)
        for average, current in pairs:
            if not average.is_floating_point():
                average.copy_(current)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Copies the module when training begins."""
        if stage == "fit":
            self._swapped = False
        super().setup(trainer, pl_module, stage)

    def _swap(self, trainer: L.Trainer, pl_module: L.LightningModule, averaged: bool) -> None:
        """Brings the averaged or the raw weights into the module."""
        if self._average_model is not None and trainer.state.fn == "fit" and self._swapped != averaged:
            self._swap_models(pl_module)
            self._swapped = averaged

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validates the averaged weights."""
        self._swap(trainer, pl_module, averaged=True)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Trains on with the raw weights."""
        self._swap(trainer, pl_module, averaged=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leaves the averaged weights in the module; the raw ones stay at hand for a last checkpoint."""
        self._swap(trainer, pl_module, averaged=True)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """The averaged weights as `state_dict`, also after training and when interrupted while validating."""
        if self._average_model is None:
            return
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._swapped:  # the module holds the average, the copy the raw weights
            raw, average = checkpoint["state_dict"], checkpoint["current_model_state"]
            checkpoint["state_dict"], checkpoint["current_model_state"] = average, raw

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Going on with training restores both sets of weights; everything else keeps the average."""
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
