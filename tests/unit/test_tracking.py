"""The run's record: one MLflow run with a real sqlite store, taken up again on resume, kept locally when it is down."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.callbacks.checkpoints import Checkpoints
from pipeline.callbacks.track import TrackRun
from pipeline.tracking import RunLogger, run_of
from tests.unit.toy import Toy, datamodule_stub, trainer


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlruns/mlflow.db"


@pytest.fixture
def logger(uri, tmp_path):
    def make(**options):
        options = {"tracking_uri": uri, "artifacts": str(tmp_path / "artifacts"), **options}
        return RunLogger(offline=str(tmp_path / "offline-run.jsonl"), **options)

    return make


@pytest.fixture(autouse=True)
def _keep_signals():
    before = signal.getsignal(signal.SIGINT)  # Lightning ignores Ctrl-C after the first one
    yield
    signal.signal(signal.SIGINT, before)


def fit(folder, logger, module=None, ckpt_path=None, epochs=2):
    made = trainer(folder, [TrackRun(), Checkpoints()], logger, epochs)
    made.fit(module or Toy(), ckpt_path=ckpt_path)
    return made


def test_a_run_holds_metrics_packages_and_checkpoints(tmp_path, logger, uri):
    one = logger()
    fit(tmp_path, one)
    client = MlflowClient(uri)
    run = client.get_run(one.run_id)
    assert run.info.status == "FINISHED"
    assert {"train/loss", "val/score", "lr"} <= set(run.data.metrics)
    assert {item.path for item in client.list_artifacts(one.run_id, "checkpoints")} == {
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
    }
    assert "environment.json" in {item.path for item in client.list_artifacts(one.run_id)}


def test_the_data_is_an_input_with_digest_and_counts(logger, uri):
    one = logger()
    one.log_data(datamodule_stub().digest(), "shapes")
    (given,) = MlflowClient(uri).get_run(one.run_id).inputs.dataset_inputs
    assert given.dataset.digest == "ab" * 16
    assert json.loads(given.dataset.profile)["images"] == 16
    assert given.tags[0].value == "train"


def test_a_resumed_fit_goes_on_in_the_same_run(tmp_path, logger, uri):
    first = logger()
    last = fit(tmp_path, first).checkpoint_callback.last_model_path
    assert run_of(Path(last)) == first.run_id
    second = logger(run_id=run_of(Path(last)))
    fit(tmp_path, second, ckpt_path=last, epochs=3)
    assert second.run_id == first.run_id
    steps = [m.step for m in MlflowClient(uri).get_metric_history(first.run_id, "train/loss")]
    assert steps == list(range(12))


def test_a_run_that_the_store_lacks_is_replaced_by_a_new_one(logger):
    lost = logger(run_id="0" * 32)
    assert lost.run_id not in {None, "0" * 32}
    assert not lost.down


def test_a_changed_parameter_becomes_a_tag(logger, uri):
    one = logger()
    one.log_hyperparams({"model": {"lr": 0.1}})
    again = logger(run_id=one.run_id)
    again.log_hyperparams({"model": {"lr": 0.2, "momentum": 0.9}})
    data = MlflowClient(uri).get_run(one.run_id).data
    assert data.params == {"model.lr": "0.1", "model.momentum": "0.9"}
    assert data.tags["changed.model.lr"] == "0.2"


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143)])
@pytest.mark.parametrize("where", ["train", "val"])
def test_a_stopped_run_is_marked_killed_and_saved(tmp_path, logger, uri, stop, where):
    one = logger()
    with pytest.raises(SystemExit):
        fit(tmp_path, one, Toy(stop=(where, 3, stop)))
    assert MlflowClient(uri).get_run(one.run_id).info.status == "KILLED"
    assert list(tmp_path.glob("**/last.ckpt"))


def test_an_error_marks_the_run_failed(tmp_path, logger, uri):
    one = logger()
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, one, Toy(stop=("train", 3, ZeroDivisionError())))
    assert MlflowClient(uri).get_run(one.run_id).info.status == "FAILED"


class Slow(Toy):
    """Long enough in its first epoch to be measured."""

    def on_train_epoch_end(self):
        time.sleep(1.5)


def test_a_run_has_its_machines_figures_and_its_codes_version(tmp_path, logger, uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    monkeypatch.setattr("pipeline.callbacks.track.code_version", lambda: {"code.commit": "abc", "code.dirty": "False"})
    one = logger()
    fit(tmp_path, one, Slow(), epochs=1)
    data = MlflowClient(uri).get_run(one.run_id).data
    assert any(name.startswith("system/cpu") for name in data.metrics)
    assert (data.tags["code.commit"], data.tags["code.dirty"]) == ("abc", "False")


def test_the_codes_version_is_its_own_repositorys(tmp_path, monkeypatch):
    """Not that of a repository which merely contains the environment, nor the working directory's."""
    from pipeline import provenance

    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", "-C", tmp_path, *who, *words], check=True, capture_output=True, text=True).stdout

    file = tmp_path / "provenance.py"
    file.write_text("1")
    monkeypatch.setattr(provenance, "__file__", str(file))
    assert provenance.code_version() == {}
    git("init", "-q")
    assert provenance.code_version() == {}
    git("add", ".")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "HEAD").strip()
    assert provenance.code_version() == {"code.commit": commit, "code.dirty": "False"}
    file.write_text("2")
    assert provenance.code_version() == {"code.commit": commit, "code.dirty": "True"}


def test_a_refused_entry_does_not_end_the_record(logger, uri, tmp_path):
    one = logger()
    one.set_tags({"": "no name"})
    one.set_tags({"good": "1"})
    assert not one.down
    assert MlflowClient(uri).get_run(one.run_id).data.tags["good"] == "1"


@pytest.mark.parametrize(
    "down", ["http://127.0.0.1:9", "postgresql://user:secret@127.0.0.1:9/x", "sqlite:////dev/null/mlflow.db"]
)
def test_a_store_that_is_down_is_told_once_and_fails_nothing(tmp_path, logger, down, caplog):
    one = logger(tracking_uri=down)
    began = time.monotonic()
    fit(tmp_path, one)
    assert time.monotonic() - began < 10
    told = [r.getMessage() for r in caplog.records if "cannot be reached" in r.getMessage()]
    assert len(told) == 1
    assert "secret" not in told[0]
    kept = [json.loads(line) for line in (tmp_path / "offline-run.jsonl").read_text().splitlines()]
    assert sum("train/loss" in line.get("metrics", {}) for line in kept) == 8
    assert list(tmp_path.glob("**/best.ckpt"))


def test_a_store_that_dies_in_mid_run_fails_nothing(tmp_path, logger, monkeypatch):
    one = logger()
    assert one.run_id
    monkeypatch.setattr(MlflowClient, "log_batch", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("gone")))
    fit(tmp_path, one)
    assert one.down
    assert (tmp_path / "offline-run.jsonl").is_file()
