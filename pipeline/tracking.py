"""Everything that talks to MLflow: the run's logger, and what is recorded when training starts and ends."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from pipeline.errors import ConfigError

log = logging.getLogger(__name__)

PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "albumentations",
    "segmentation-models-pytorch",
    "timm",
    "mlflow",
    "numpy",
)


class RunLogger(Logger):
    """One MLflow run. A store that cannot be reached is told once; the run trains on, and its record is kept locally.

    Args:
        experiment: the experiment's name.
        name: the run's name; MLflow chooses one where none is given.
        tracking_uri: the store; MLFLOW_TRACKING_URI, else sqlite under `mlruns/` of the working directory.
        artifacts: where a new experiment of the embedded store keeps files.
        run_id: a run to go on with; a resumed checkpoint brings its own.
        offline: file that keeps the record while the store is down.
    """

    def __init__(
        self,
        experiment: str = "trifocal",
        name: str | None = None,
        tracking_uri: str | None = None,
        artifacts: str = "mlruns/artifacts",
        run_id: str | None = None,
        offline: str = "outputs/offline-run.jsonl",
    ) -> None:
        super().__init__()
        self._experiment, self._run_name, self._run = experiment, name, run_id
        self._uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlruns/mlflow.db"
        self._artifacts, self._offline = artifacts, Path(offline)
        self._client: Any = None
        self.down = False

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self._experiment

    @property
    def version(self) -> str | None:
        """The run's id."""
        return self._run

    @property
    def run_id(self) -> str | None:
        """The run's id, once the run is started; None when the store is down."""
        self.start()
        return self._run

    @property
    def tracking_uri(self) -> str:
        """Where the run is kept."""
        return self._uri

    @rank_zero_only
    def start(self) -> None:
        """Opens the run, once; raises ConfigError for a store that is no URI at all."""
        if self._client is not None or self.down:
            return
        # A store that is down must not hold training up.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        if self._uri.startswith("sqlite:///"):
            Path(self._uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        try:
            client = MlflowClient(self._uri)
            experiment = client.get_experiment_by_name(self._experiment)
            if experiment is None:
                place = Path(self._artifacts).resolve().as_uri() if self._uri.startswith("sqlite") else None
                identity = client.create_experiment(self._experiment, artifact_location=place)
            else:
                identity = experiment.experiment_id
            if self._run is None:
                self._run = client.create_run(identity, run_name=self._run_name).info.run_id
            else:
                client.update_run(self._run, status="RUNNING")
        except MlflowException as error:
            if "unsupported" in str(error).lower() or "invalid" in str(error).lower():
                raise ConfigError(f"trainer.logger: tracking_uri {self._uri!r}: {error}") from error
            self._lose(error)
        except OSError as error:
            self._lose(error)
        else:
            self._client = client

    def resume(self, run_id: str) -> None:
        """Goes on in a run instead of opening a new one."""
        if self._client is None:
            self._run = run_id

    def _lose(self, error: BaseException) -> None:
        if not self.down:
            reason = " ".join(str(error).split())[:200]
            log.warning(
                "MLflow at %s cannot be reached (%s); training goes on, its record is kept in %s",
                self._uri,
                reason,
                self._offline,
            )
        self.down, self._client = True, None

    def _send(self, what: str, content: dict[str, Any], **call: Any) -> None:
        """One call to the store, or one line in the local record."""
        self.start()
        if self._client is not None:
            from mlflow.exceptions import MlflowException

            try:
                getattr(self._client, what)(self._run, **call)
            except (MlflowException, OSError) as error:
                if "Changing param values" in str(error):
                    return
                self._lose(error)
            else:
                return
        self._offline.parent.mkdir(parents=True, exist_ok=True)
        with self._offline.open("a") as file:
            file.write(json.dumps({"time": time.time(), "call": what, **content}, default=str) + "\n")

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Figures at a step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        rows = [Metric(clean(key), float(value), now, step or 0) for key, value in metrics.items() if key != "epoch"]
        for at in range(0, len(rows), 900):
            self._send("log_batch", {"metrics": metrics, "step": step}, metrics=rows[at : at + 900])

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Flat parameters; one that was logged with another value before (a resumed run) becomes a tag."""
        from mlflow.entities import Param, RunTag

        flat = flatten(params if isinstance(params, dict) else vars(params))
        known: dict[str, str] = {}
        self.start()
        if self._client is not None:
            known = self._client.get_run(self._run).data.params
        fresh = [Param(key, value[:500]) for key, value in flat.items() if key not in known]
        changed = [RunTag(f"changed.{k}", v[:500]) for k, v in flat.items() if k in known and known[k] != v[:500]]
        for at in range(0, len(fresh), 90):
            self._send("log_batch", {"params": flat}, params=fresh[at : at + 90])
        if changed:
            self._send("log_batch", {"changed": [tag.key for tag in changed]}, tags=changed)

    def log_config(self, text: str) -> None:
        """The resolved config as `config.yaml` and as flat parameters."""
        self.log_text(text, "config.yaml")
        self.log_hyperparams(yaml.safe_load(text))

    @rank_zero_only
    def log_text(self, text: str, file: str) -> None:
        """A text file of the run."""
        self._send("log_text", {"file": file, "text": text}, text=text, artifact_file=file)

    @rank_zero_only
    def log_file(self, path: Path, folder: str) -> None:
        """A file of the run, copied into a folder of its artifacts."""
        self._send("log_artifact", {"path": str(path)}, local_path=str(path), artifact_path=folder)

    @rank_zero_only
    def set_tags(self, tags: dict[str, str]) -> None:
        """Tags of the run."""
        from mlflow.entities import RunTag

        self._send("log_batch", {"tags": tags}, tags=[RunTag(key, value[:5000]) for key, value in tags.items()])

    @rank_zero_only
    def log_data(self, digest: dict[str, dict[str, Any]], source: str) -> None:
        """Each split as an input of the run, with digest and counts."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(source[-500:], str(facts["sha256"])[:32], "local", source, profile=json.dumps(facts)),
                [InputTag("mlflow.data.context", split)],
            )
            for split, facts in digest.items()
        ]
        self._send("log_inputs", {"digest": digest}, datasets=inputs)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Ends the run: finished, failed, or killed."""
        if self._client is not None:
            known = {"success": "FINISHED", "finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
            self._send("set_terminated", {"status": status}, status=known.get(status, "FINISHED"))


def clean(name: str) -> str:
    """A metric name that MLflow accepts: letters, digits, and _ - . space : /."""
    return "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in name)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `a.b.c: text`; lists stay one value."""
    out: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            out |= flatten(value, f"{name}.")
        else:
            out[clean(name)] = str(value)
    return out


def code_version() -> dict[str, str]:
    """Git commit and whether the tree had changes; empty outside a repository."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=5, check=True)  # noqa: S603, S607
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    return {} if commit is None else {"code.commit": commit, "code.dirty": str(bool(git("status", "--porcelain")))}


def environment() -> dict[str, str]:
    """Python, platform and package versions."""
    versions = {name: metadata.version(name) for name in PACKAGES}
    return {"python": sys.version.split()[0], "platform": platform.platform(), **versions}


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
            logger.finalize("killed" if stopped else "failed")

    def _stop_watching(self) -> None:
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None

    def _curves(self, trainer: L.Trainer, module: Any, stage: str) -> None:
        if trainer.world_size > 1:
            return
        for name, metrics in getattr(module, "metrics", {}).items():
            curves = metrics.curves()
            for logger in self._loggers(trainer):
                if curves:
                    logger.log_text(json.dumps(curves), f"curves/{stage}/{name}.json")


def trainer_is_child() -> bool:
    """Whether this process is a worker that another one started for it (its rank is above 0)."""
    return getattr(rank_zero_only, "rank", None) not in {0, None}
