"""A task: a head, its loss, its metrics and its LightningModule."""
