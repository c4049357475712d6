"""What a config may switch on: finders, early stopping, plateau, SGD, freezing, balancing, every balancer on the real command."""

from __future__ import annotations

import mlflow
import pytest
import torch
import yaml

from tests.e2e.commands import TINY, runs_of

QUICK = [*TINY, "--data.shapes", "{images: 30, size: 32}", "--data.size", "32", "--data.batch_size", "6"]


def overlay(folder, content) -> list[str]:
    file = folder / "overlay.yaml"
    file.write_text(yaml.safe_dump(content))
    return ["--config", str(file)]


def with_callback(folder, name, **arguments) -> list[str]:
    return overlay(folder, {"trainer": {"callbacks": [{"class_path": name, "init_args": arguments}]}})


def last(folder):
    return torch.load(next(folder.glob("outputs/runs/*/last.ckpt")), weights_only=True)


def test_the_learning_rate_finder_sets_the_rate(command, tmp_path):
    # The rates it tries are no round numbers, so that what it finds is never the default.
    options = with_callback(
        tmp_path, "LearningRateFinder", num_training_steps=20, min_lr=1.3e-6, max_lr=1e-2, early_stop_threshold=None
    )
    code, _, err = command("fit", *QUICK, *options, "--trainer.max_epochs", "6")
    assert code == 0, err[-2000:]
    (found,) = {group["initial_lr"] for group in last(tmp_path)["optimizer_states"][0]["param_groups"]}
    assert found != pytest.approx(1e-3)
    client, (run,) = runs_of(tmp_path)
    highest = max(metric.value for metric in client.get_metric_history(run.info.run_id, "lr"))
    assert 0.5 * found < highest <= found  # the cosine falls from there


def test_the_batch_size_finder_sets_the_batch(command, tmp_path):
    options = with_callback(tmp_path, "BatchSizeFinder", max_trials=2, steps_per_trial=1, init_val=2)
    code, _, err = command("fit", *QUICK, *options, "--trainer.max_epochs", "1")
    assert code == 0, err[-2000:]
    # Two trials find that 2 and 4 fit: 24 training images are then 6 steps, not the 4 of batches of 6.
    assert last(tmp_path)["global_step"] == 6


def test_a_checkpoint_is_validated_and_predicts(command, tmp_path):
    code, _, err = command("fit", *QUICK, "--trainer.max_epochs", "1")
    assert code == 0, err[-2000:]
    for name in ("validate", "predict"):
        code, out, err = command(name, *QUICK, "--ckpt_path", "best")
        assert code == 0, err[-2000:]
        assert ("val/score" in out) == (name == "validate")
    assert {path.name for path in (tmp_path / "outputs").iterdir()} == {"runs"}
    assert len(list(tmp_path.glob("outputs/runs/*/best.ckpt"))) == 1


def test_a_metric_that_is_not_logged_is_one_line(command, tmp_path):
    options = with_callback(tmp_path, "EarlyStopping", monitor="val/scor", mode="max")
    code, _, err = command("fit", *QUICK, *options, "--trainer.max_epochs", "1")
    assert code == 2
    assert err.strip().splitlines()[-1].endswith("'val/scor', which is not logged; did you mean 'val/score'?")
    assert "Traceback" not in err


def test_a_resumed_run_keeps_a_config_that_starts_anew_and_needs_no_first_weights(command, tmp_path):
    quick = [*QUICK, "--model.backbone", "light", "--trainer.max_epochs", "1"]
    assert command("fit", *quick)[0] == 0
    (start,) = tmp_path.glob("outputs/runs/*/best.ckpt")
    weights = start.rename(tmp_path / "start.ckpt")
    for file in tmp_path.glob("outputs/runs/*/last.ckpt"):
        file.unlink()
    given = [*overlay(tmp_path, {"model": {"init_args": {"weights": str(weights)}}}), "--data.batch_size", "7"]
    assert command("fit", *quick, *given)[0] == 0
    weights.unlink()  # or on a hub that cannot be reached
    code, _, err = command("fit", *quick, *given, "--ckpt_path", "last", "--trainer.max_epochs", "2")
    assert code == 0, err[-2000:]
    _, (run, _) = runs_of(tmp_path)
    config = yaml.safe_load(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/config.yaml"))
    assert config["ckpt_path"] is None
    assert config["trainer"]["logger"]["init_args"]["run_id"] is None
    assert (config["trainer"]["max_epochs"], config["data"]["batch_size"]) == (2, 7)
    assert config["model"]["init_args"]["weights"] == str(weights)
    code, _, err = command("fit", *quick, "--ckpt_path", "last", "--model.weights", "imagenet")
    assert code == 2
    assert "ckpt_path" in err.strip().splitlines()[-1]


def test_early_stopping_stops(command, tmp_path):
    options = with_callback(
        tmp_path, "EarlyStopping", monitor="val/score", mode="max", patience=1, min_delta=2.0, verbose=False
    )
    code, _, err = command("fit", *QUICK, *options, "--trainer.max_epochs", "9")
    assert code == 0, err[-2000:]
    assert last(tmp_path)["epoch"] == 1


def test_a_frozen_backbone_keeps_its_weights_until_its_epoch(command, tmp_path):
    options = with_callback(tmp_path, "pipeline.callbacks.freeze.Freeze", until_epoch=2)
    code, _, err = command("fit", *QUICK, *options, "--trainer.max_epochs", "2", "--ema.decay", "0")
    assert code == 0, err[-2000:]
    trained = last(tmp_path)
    torch.manual_seed(0)
    moved = trained["optimizer_states"][0]["state"]
    groups = {group["name"]: group["params"] for group in trained["optimizer_states"][0]["param_groups"]}
    assert not set(groups["backbone"]) & set(moved)
    assert set(groups["heads"]) <= set(moved)


@pytest.mark.parametrize(
    "options",
    [
        ["--model.schedule", "plateau", "--trainer.check_val_every_n_epoch", "2"],  # no score after the first epoch
        ["--model.optimizer", "sgd", "--model.lr", "0.01", "--model.l1", "1e-6", "--model.l2", "1e-5"],
        ["--model.balancing", "uncertainty", "--model.backbone_lr_factor", "0.1"],
        ["--model.balancing", "dwa", "--trainer.accumulate_grad_batches", "2"],
        ["--model.balancing", "UPGrad", "--model.log_gradients_every", "1"],
        ["--model.balancing", "{kind: fixed, weights: {objects: 2.0}}", "--trainer.precision", "bf16-mixed"],
    ],
    ids=["plateau", "sgd", "uncertainty", "dwa", "upgrad", "fixed"],
)
def test_a_setting_trains(options, command, tmp_path):
    code, _, err = command("fit", *QUICK, *options)
    assert code == 0, err[-2000:]
    (run,) = runs_of(tmp_path)[1]
    assert run.info.status == "FINISHED"
    assert {"weight/objects", "weight/surface", "train/objects/loss", "train/scene/loss"} <= set(run.data.metrics)
    if "--model.log_gradients_every" in options:
        assert any(name.endswith("/norm") for name in run.data.metrics)
        assert any(name.endswith("/cosine") for name in run.data.metrics)
