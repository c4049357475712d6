"""One MLflow run as Lightning's logger: metrics, parameters, files and data, kept locally while the store is down."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from pipeline.errors import ConfigError
from pipeline.provenance import clean, flatten
from pipeline.store import plain_reason, probe, public_uri, refused, store_errors, store_uri

log = logging.getLogger(__name__)


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
        self._uri = tracking_uri or store_uri()
        self._artifacts, self._offline = artifacts, Path(offline)
        self._client: Any = None
        self._final: str | None = None
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
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        # It has a thread of its own, which would tell again that the store is down.
        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
        try:
            probe(self._uri, timeout=5)
            client = MlflowClient(self._uri)
            experiment = client.get_experiment_by_name(self._experiment)
            if experiment is None:
                place = Path(self._artifacts).resolve().as_uri() if self._uri.startswith("sqlite") else None
                identity = client.create_experiment(self._experiment, artifact_location=place)
            else:
                identity = experiment.experiment_id
            if self._run is not None and not self._take_up(client, self._run):
                self._run = None
            if self._run is None:
                with _unseeded():
                    self._run = client.create_run(identity, run_name=self._run_name).info.run_id
        except MlflowException as error:
            if "unsupported" in str(error).lower() or "invalid" in str(error).lower():
                raise ConfigError(f"trainer.logger: tracking_uri {self._uri!r}: {error}") from error
            self._lose(error)
        except store_errors() as error:
            self._lose(error)
        else:
            self._client = client

    def _take_up(self, client: Any, run: str) -> bool:
        """Sets a run to running; False when the store has no such run."""
        from mlflow.exceptions import MlflowException

        try:
            client.update_run(run, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            log.warning("MLflow at %s has no run %s; a new one starts", public_uri(self._uri), run)
            return False
        return True

    def end_as(self, status: str) -> None:
        """The status the run will end with, whatever `finalize` is told later (KILLED after a signal)."""
        self._final = status

    def resume(self, run_id: str) -> None:
        """Goes on in a run instead of opening a new one."""
        if self._client is None:
            self._run = run_id

    def _lose(self, error: BaseException) -> None:
        if not self.down:
            reason = plain_reason(error)
            log.warning(
                "MLflow at %s cannot be reached (%s); training goes on, its record is kept in %s",
                public_uri(self._uri),
                reason,
                self._offline,
            )
        self.down, self._client = True, None

    def _send(self, what: str, content: dict[str, Any], **call: Any) -> None:
        """One call to the store, or one line in the local record."""
        self.start()
        if self._client is not None:
            try:
                getattr(self._client, what)(self._run, **call)
            except store_errors() as error:
                if refused(error):
                    log.warning("MLflow refused %s (%s); it is kept in %s", what, plain_reason(error), self._offline)
                else:
                    self._lose(error)
            else:
                return
        try:
            self._offline.parent.mkdir(parents=True, exist_ok=True)
            with self._offline.open("a") as file:
                file.write(json.dumps({"time": time.time(), "call": what, **content}, default=str) + "\n")
        except OSError as error:
            log.warning("the record cannot be kept in %s either: %s", self._offline, error)

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
            try:
                known = self._client.get_run(self._run).data.params
            except store_errors() as error:
                self._lose(error)
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
            self._send("set_terminated", {"status": status}, status=self._final or known.get(status, "FINISHED"))


@contextlib.contextmanager
def _unseeded() -> Iterator[None]:
    """MLflow draws a run's name from Python's generator: with the training's seed all runs would have one name."""
    state = random.getstate()
    random.seed()
    try:
        yield
    finally:
        random.setstate(state)


def run_of(checkpoint: Path) -> str | None:
    """Id of the run that wrote a checkpoint, for `RunLogger(run_id=...)`; None where the file does not say."""
    import torch

    try:
        run = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True).get("mlflow_run_id")
    except (OSError, RuntimeError, ValueError, AttributeError, pickle.UnpicklingError):
        return None
    return str(run) if run else None
