"""A toy module and data for tests of loggers and callbacks: a linear fit with a batch norm."""

from __future__ import annotations

from types import SimpleNamespace

import lightning as L
import torch
from torch import nn


class ToyBatch:
    """Four rows and the images that could not be read."""

    def __init__(self, x, failures=()):
        self.x, self.failures = x, list(failures)

    def __len__(self):
        return len(self.x)


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.two = nn.Linear(4, 4)

    def stages(self):
        return [self.one, self.two]

    def forward(self, x):
        return self.two(self.one(x))


class Toy(L.LightningModule):
    def __init__(self, failures=(), stop=None):
        super().__init__()
        self.network = nn.Module()
        self.network.backbone, self.network.head = Backbone(), nn.Linear(4, 1)
        self.failures, self.stop, self.metrics = failures, stop, {}

    def forward(self, x):
        return self.network.head(self.network.backbone(x))

    def training_step(self, batch, batch_idx):
        self._stop("train")
        loss = (self(batch.x) - 1).square().mean()
        self.log("train/loss", loss, on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch, batch_idx):
        self._stop("val")
        loss = (self(batch.x) - 1).square().mean()
        self.log("val/score", -loss, batch_size=4)

    def _stop(self, where):
        if (
            self.stop
            and where == self.stop[0]
            and self.global_step >= self.stop[1]
            and not self.trainer.sanity_checking
        ):
            raise self.stop[2]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)

    def _loader(self):
        rows = torch.arange(48, dtype=torch.float32).reshape(16, 3) / 48
        return torch.utils.data.DataLoader(
            list(rows), batch_size=4, collate_fn=lambda x: ToyBatch(torch.stack(x), self.failures)
        )

    def train_dataloader(self):
        return self._loader()

    def val_dataloader(self):
        return self._loader()

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch


def trainer(folder, callbacks, logger=False, epochs=2, **options):
    return L.Trainer(
        default_root_dir=folder, max_epochs=epochs, logger=logger, callbacks=callbacks, accelerator="cpu",
        log_every_n_steps=1, num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip


def datamodule_stub():
    return SimpleNamespace(
        digest=lambda: {"train": {"sha256": "ab" * 32, "images": 16}}, sources=[], formats=["shapes"]
    )
