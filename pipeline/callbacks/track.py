"""What a run records of itself: code, environment, data, system metrics, curves and checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from pipeline.provenance import code_version, environment
from pipeline.tracking import RunLogger


class TrackRun(L.Callback):
    """Records what a run needs to be repeated and trusted: code, environment, data, curves, checkpoints."""

    def __init__(self) -> None:
        self._monitor: Any = None

    def _loggers(self, trainer: L.Trainer) -> list[RunLogger]:
        return [logger for logger in trainer.loggers if isinstance(logger, RunLogger)]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Code version, package versions, data."""
        data: Any = getattr(trainer, "datamodule", None)
        for logger in self._loggers(trainer):
            logger.set_tags(code_version())
            logger.log_text(json.dumps(environment(), indent=1), "environment.json")
            if data is not None and hasattr(data, "digest"):
                roots = ", ".join(source.root for source in data.sources) or data.formats[0]
                logger.log_data(data.digest(), roots)
            self._watch(logger)

    def _watch(self, logger: RunLogger) -> None:
        """System metrics by MLflow's own monitor."""
        if logger.run_id is None or trainer_is_child():
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(  # type: ignore[no-untyped-call]  # mlflow leaves it untyped
            logger.run_id, resume_logging=True, tracking_uri=logger.tracking_uri
        )
        self._monitor.start()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The learning rate."""
        pl_module.log("lr", trainer.optimizers[0].param_groups[0]["lr"])

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """The run's id travels with the checkpoint."""
        for logger in self._loggers(trainer):
            checkpoint["mlflow_run_id"] = logger.run_id

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Curves of every head."""
        self._curves(trainer, pl_module, "test")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Curves, and the best and last checkpoints."""
        self._stop_watching()
        self._curves(trainer, pl_module, "val")
        for logger in self._loggers(trainer):
            for callback in trainer.checkpoint_callbacks:
                for path in {getattr(callback, "best_model_path", ""), getattr(callback, "last_model_path", "")} - {""}:
                    if Path(path).is_file():
                        logger.log_file(Path(path), "checkpoints")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Marks the run: killed by a person or the system, or failed."""
        self._stop_watching()
        stopped = isinstance(exception, (KeyboardInterrupt, SystemExit)) or "SIGTERM" in type(exception).__name__
        for logger in self._loggers(trainer):
            if stopped:  # Lightning itself says `failed` after this
                logger.end_as("KILLED")
            else:
                logger.finalize("failed")

    def _stop_watching(self) -> None:
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None

    def _curves(self, trainer: L.Trainer, module: Any, stage: str) -> None:
        for name, metrics in getattr(module, "metrics", {}).items():
            curves = metrics.curves()  # on every rank: the metrics may gather from the others
            for logger in self._loggers(trainer):
                if curves:
                    logger.log_text(json.dumps(curves), f"curves/{stage}/{name.replace('/', '_')}.json")


def trainer_is_child() -> bool:
    """Whether this process is a worker that another one started for it (its rank is above 0)."""
    return getattr(rank_zero_only, "rank", None) not in {0, None}
