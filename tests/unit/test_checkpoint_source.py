"""Where `--ckpt` finds its checkpoint: a file, a run, a registered model's run; and what is told where there is none."""

from __future__ import annotations

import hashlib

import mlflow
import pytest

from pipeline.bundle import read_bundle
from pipeline.errors import CheckpointError, ConfigError
from pipeline.export.register import register
from pipeline.export.source import find_checkpoint
from tests.unit.bundles import known_bundle


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store with a run that holds two checkpoints, one that holds none, and a model registered without its run's."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(uri)
    mlflow.create_experiment("trifocal", artifact_location=(tmp_path / "artifacts").as_uri())
    mlflow.set_experiment("trifocal")
    with mlflow.start_run() as run:
        mlflow.log_text("the best", "checkpoints/best.ckpt")
        mlflow.log_text("the last", "checkpoints/last.ckpt")
    with mlflow.start_run() as empty:
        pass
    return run.info.run_id, empty.info.run_id


def test_a_file_is_itself(tmp_path):
    (tmp_path / "mine.ckpt").write_text("")
    assert find_checkpoint(str(tmp_path / "mine.ckpt")) == tmp_path / "mine.ckpt"
    with pytest.raises(CheckpointError, match=r"none\.ckpt does not exist; `lightning fit` writes"):
        find_checkpoint(str(tmp_path / "none.ckpt"))


def test_a_run_gives_its_best_checkpoint(store):
    full, empty = store
    assert find_checkpoint(f"runs:/{full}").read_text() == "the best"
    assert find_checkpoint(f"runs:/{full}/checkpoints/last.ckpt").read_text() == "the last"
    with pytest.raises(CheckpointError, match=r"holds no lst\.ckpt; it holds checkpoints/best\.ckpt, checkpoints/last"):
        find_checkpoint(f"runs:/{full}/lst.ckpt")
    with pytest.raises(CheckpointError, match=f"run {empty} holds no checkpoint"):
        find_checkpoint(f"runs:/{empty}")
    with pytest.raises(CheckpointError, match="runs:/0123 in sqlite:"):
        find_checkpoint("runs:/0123")


def test_a_registered_model_gives_its_runs(store, tmp_path):
    bundle = read_bundle(known_bundle(tmp_path / "known"))
    register(bundle, "known", "champion")
    client = mlflow.MlflowClient()
    version = client.get_model_version_by_alias("known", "champion")
    with pytest.raises(CheckpointError, match=f"run {version.run_id} holds no checkpoint"):
        find_checkpoint("models:/known@champion")
    client.create_model_version("known", bundle.path.as_uri(), run_id=store[0])
    assert find_checkpoint("models:/known/2").read_text() == "the best"
    client.create_model_version("known", bundle.path.as_uri())
    with pytest.raises(CheckpointError, match="models:/known/3 was registered without a run"):
        find_checkpoint("models:/known/3")
    with pytest.raises(CheckpointError, match="models:/known@nobody in sqlite:"):
        find_checkpoint("models:/known@nobody")
    with pytest.raises(ConfigError, match="models:/NAME@ALIAS or models:/NAME/VERSION"):
        find_checkpoint("models:/known")


def test_a_registered_model_gives_the_checkpoint_it_was_exported_from(store, tmp_path):
    """Its run's last one here, as the digest in the bundle's version tells, and not the best."""
    client = mlflow.MlflowClient()
    client.create_registered_model("known")
    for text in ("the last", "gone"):
        version = f"{hashlib.sha256(text.encode()).hexdigest()[:8]}-1795352746"
        client.create_model_version("known", tmp_path.as_uri(), run_id=store[0], tags={"trifocal.bundle": version})
    assert find_checkpoint("models:/known/1").read_text() == "the last"
    with pytest.raises(CheckpointError, match=f"run {store[0]} does not hold .* runs:/{store[0]}/checkpoints/best"):
        find_checkpoint("models:/known/2")
    assert find_checkpoint(f"runs:/{store[0]}").read_text() == "the best"  # looking left it where it was


def test_a_store_that_is_down_is_one_line(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match=r"runs:/0123 in http://127\.0\.0\.1:9: "):
        find_checkpoint("runs:/0123")
