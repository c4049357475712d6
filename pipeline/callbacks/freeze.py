"""Freeze: keeps the backbone, or its first stages, as loaded, for the whole run or until an epoch."""

from __future__ import annotations

from typing import Any, Protocol, cast

import lightning as L
from torch import nn

from pipeline.errors import ConfigError


class _Backbone(Protocol):
    def stages(self) -> list[nn.Module]: ...


class Freeze(L.Callback):
    """Freezes the first stages of `module.network.backbone`; their norms keep their statistics.

    Args:
        stages: how many stages from the input on; None = the whole backbone.
        until_epoch: the epoch in which they begin to train; None = never.
    """

    def __init__(self, stages: int | None = None, until_epoch: int | None = None) -> None:
        self.stages, self.until_epoch = stages, until_epoch
        self._parts: list[nn.Module] = []
        self._trainable: list[nn.Parameter] = []
        self._frozen = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Finds the stages; raises ConfigError when the backbone has fewer."""
        if stage != "fit":
            return
        backbone = cast("nn.Module", cast("Any", pl_module).network.backbone)
        found = cast("_Backbone", backbone).stages()
        if self.stages is not None and not 0 < self.stages <= len(found):
            raise ConfigError(f"Freeze: stages is {self.stages}; this backbone has 1 to {len(found)}")
        self._parts = [backbone] if self.stages is None else found[: self.stages]
        self._trainable = [p for part in self._parts for p in part.parameters() if p.requires_grad]
        if self.until_epoch is None:
            self._freeze(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Freezes or unfreezes by the epoch, also after a resume."""
        if self.until_epoch is None or trainer.current_epoch < self.until_epoch:
            self._freeze(trainer)
        elif self._frozen:
            self._frozen = False
            for parameter in self._trainable:
                parameter.requires_grad_(True)
            for part in self._parts:
                part.train()

    def on_train_batch_start(
        self,
        trainer: L.Trainer,  # noqa: ARG002
        pl_module: L.LightningModule,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Keeps frozen norms from learning statistics, whoever called train() in between."""
        if self._frozen:
            for part in self._parts:
                part.eval()

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Drops the gradients of frozen weights that several processes keep in their exchange."""
        if self._frozen:
            for parameter in self._trainable:
                parameter.grad = None

    def _freeze(self, trainer: L.Trainer) -> None:
        self._frozen = True
        # With several processes the exchange of gradients is fixed at the start: what trains later takes part in it.
        if self.until_epoch is None or trainer.world_size == 1:
            for parameter in self._trainable:
                parameter.requires_grad_(False)
        for part in self._parts:
            part.eval()
