"""`model.weights` from a run or a registered model: the store is a real one, and nothing in it is unpickled."""

from __future__ import annotations

import pickle

import mlflow
import pytest
import torch

import tasks.multitask  # noqa: F401  # registers the heads
from pipeline.backbones.build import build_backbone
from pipeline.errors import CheckpointError, ConfigError
from pipeline.labels import LabelSpace
from tasks.network import build_network

HEADS, SPACES = {"scene": {}}, {"scene": LabelSpace("classes", ("a", "b"))}


class Bomb:
    """What unpickling would run."""

    def __reduce__(self):
        return (pytest.fail, ("the file's code was run",))


def network(weights, backbone="light", stages=None):
    return build_network(backbone, 3, weights, HEADS, SPACES, weights_stages=stages)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with a trained network's run, one whose checkpoint holds code, and a model registered from the first."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.create_experiment("trifocal", artifact_location=(folder / "artifacts").as_uri())
        mlflow.set_experiment("trifocal")
        torch.manual_seed(1)
        body = build_backbone("light").body.state_dict()
        state = {f"network.backbone.body.{key}": value for key, value in body.items()}
        runs = {}
        for name, content in (("good", {"state_dict": state}), ("bad", {"state_dict": Bomb()})):
            torch.save(content, folder / "best.ckpt")
            with mlflow.start_run() as run:
                mlflow.log_artifact(folder / "best.ckpt", "checkpoints")
            runs[name] = run.info.run_id
        client = mlflow.MlflowClient()
        client.create_registered_model("street")
        client.create_model_version("street", (folder / "artifacts").as_uri(), run_id=runs["good"])
        client.set_registered_model_alias("street", "champion", "1")
        yield runs, body


def same(network, body):
    own = network.backbone.body.state_dict()
    return {key for key in own if torch.equal(own[key], body[key]) and own[key].ndim > 1}


def test_a_run_and_a_registered_model_give_their_backbone(store):
    runs, body = store
    weights = {key for key, value in body.items() if value.ndim > 1}
    for reference in (f"runs:/{runs['good']}", "models:/street@champion", "models:/street/1"):
        torch.manual_seed(2)
        assert same(network(reference), body) == weights


def test_some_stages_of_a_run(store):
    runs, body = store
    torch.manual_seed(2)
    taken = same(network(f"runs:/{runs['good']}", stages=2), body)
    assert "stem.0.weight" in taken
    assert {key.split(".")[0:2] == ["stages", "0"] for key in taken if key.startswith("stages")} == {True}


def test_nothing_is_left_behind(store, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    network(f"runs:/{store[0]['good']}")
    assert list(tmp_path.iterdir()) == []


def test_code_in_a_checkpoint_is_not_run(store):
    bad = f"runs:/{store[0]['bad']}"
    with pytest.raises(CheckpointError, match=f"{bad} cannot be read: it holds code, which is not run"):
        network(bad)


def test_a_local_file_with_code_is_told_likewise(tmp_path):
    (tmp_path / "x.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match=r"weights file .*x\.pt cannot be read"):
        network(str(tmp_path / "x.pt"))
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        network(str(tmp_path / "list.pt"))
    (tmp_path / "cut.safetensors").write_bytes(b"\0" * 9)
    with pytest.raises(CheckpointError, match="cannot be read"):
        network(str(tmp_path / "cut.safetensors"))


def test_mistakes_are_one_line(store):
    good = f"runs:/{store[0]['good']}"
    with pytest.raises(CheckpointError, match=f"^{good} does not fit backbone 'plain20': 1 of"):
        network(good, "plain20")
    with pytest.raises(ConfigError, match="weights_stages is 9; backbone 'light' has 1 to 5"):
        network(good, stages=9)
    with pytest.raises(CheckpointError, match="runs:/0123 in sqlite:"):
        network("runs:/0123")
    with pytest.raises(CheckpointError, match="models:/street@nobody in sqlite:"):
        network("models:/street@nobody")
    with pytest.raises(ConfigError, match="write models:/NAME@ALIAS"):
        network("models:/street")
