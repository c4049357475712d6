"""The real commands, run as a user runs them: train, resume, test, check data; and one line for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.e2e.commands import ROOT, TINY, lightning, runs_of


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which the three-task network was trained for two epochs on the built-in data."""
    folder = tmp_path_factory.mktemp("trained")
    done = lightning("fit", *TINY, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "stdout").write_text(done.stdout)
    return folder


def test_help_is_quick_and_lists_every_command(tmp_path):
    done = lightning("--help", cwd=tmp_path)
    assert done.returncode == 0
    for name in ("fit", "validate", "test", "predict", "check-data", "show-data", "demo"):
        assert f"\n  {name} " in done.stdout
    imports = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import pipeline.cli"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for slow in ("torch", "lightning", "mlflow", "numpy"):
        assert f" {slow}\n" not in imports.stderr


def test_a_log_has_a_line_for_every_epoch(trained):
    lines = [line for line in (trained / "stdout").read_text().splitlines() if line.startswith("epoch ")]
    assert [line.split(":")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert all(word in lines[0] for word in ("loss ", "score ", "images/s", "left"))


def test_a_run_holds_what_repeats_it(trained, tmp_path):
    client, runs = runs_of(trained)
    (run,) = runs
    assert run.info.status == "FINISHED"
    for name in (
        "train/loss",
        "val/objects/AP50",
        "val/scene/accuracy",
        "val/daytime/accuracy",
        "val/surface/mIoU",
        "lr",
    ):
        assert name in run.data.metrics
    assert run.data.params["model.init_args.backbone"] == "resnet18"
    assert {item.dataset.name for item in run.inputs.dataset_inputs}
    files = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "environment.json", "curves", "checkpoints"} <= files
    pictures = {item.path for item in client.list_artifacts(run.info.run_id, "pictures")}
    assert {"pictures/epoch_0001.png", "pictures/val_worst.png", "pictures/val_worst.json"} <= pictures
    curves = {item.path.rpartition("/")[2] for item in client.list_artifacts(run.info.run_id, "curves/val")}
    assert {"scene_confusion.png", "scene_reliability.png", "objects_precision_recall.png"} <= curves
    config = client.download_artifacts(run.info.run_id, "config.yaml", str(tmp_path))
    again = lightning(
        "fit", "--config", config, "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", cwd=tmp_path
    )
    assert again.returncode == 0, again.stderr[-2000:]


def test_the_last_checkpoint_is_tested_and_resumed_in_the_same_run(trained):
    tested = lightning("test", *TINY, "--ckpt_path", "last", "--trainer.max_epochs", "7", cwd=trained)
    assert tested.returncode == 0, tested.stderr[-2000:]
    assert "test/surface/mIoU" in tested.stdout
    client, (run,) = runs_of(trained)
    names = ("config.yaml", "config_test.yaml")
    configs = [mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{name}") for name in names]
    assert [yaml.safe_load(text)["trainer"]["max_epochs"] for text in configs] == [2, 7]  # the training's is kept
    assert not [tag for tag in run.data.tags if tag.startswith("changed.")]
    assert {item.path for item in client.list_artifacts(run.info.run_id, "pictures")} >= {"pictures/test_worst.png"}
    checkpoint = next((trained / "outputs").glob("runs/*/last.ckpt"))
    content = torch.load(checkpoint, weights_only=True)
    assert content["hyper_parameters"]["spaces"]["objects"]["names"][0] == "disc"
    assert content["mlflow_run_id"] == checkpoint.parent.name


def test_a_wrong_key_class_or_value_is_one_line(command, tmp_path):
    cases = {
        ("--trainer.max_epocs", "3"): "max_epochs",
        ("--model.heads.objcts.width=3",): "objects",
        ("--model.heads.objects.widht=3",): "width",
        ("--model.backbone", "resnet81"): "resnet18",
        ("--data.augment", "stong"): "strong",
        ("--data.root", "nowhere"): "nowhere",
    }
    for arguments, remedy in cases.items():
        code, _, err = command("fit", *TINY, *arguments)
        last = err.strip().splitlines()[-1]
        assert code in {1, 2}, arguments
        assert last.startswith("error:"), err[-2000:]
        assert remedy in last, last
        assert "Traceback" not in err
    unknown = lightning("fti", cwd=tmp_path)
    assert "did you mean 'fit'" in unknown.stderr


def folder_of_classes(root: Path, broken: bool) -> Path:
    rng = np.random.default_rng(0)
    for kind in range(2):
        (root / f"class_{kind}").mkdir(parents=True)
        for number in range(8):
            pixels = rng.integers(0, 120, (48, 48, 3)) + 120 * kind
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"class_{kind}" / f"{number}.png")
    if broken:
        (root / "class_0" / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
        (root / "class_1" / "0.png").write_bytes((root / "class_1" / "1.png").read_bytes())
    return root


def test_check_data_tells_people_and_machines(tmp_path):
    good = lightning("check-data", "--data.root", str(folder_of_classes(tmp_path / "good", False)), cwd=tmp_path)
    assert good.returncode == 0, good.stderr
    bad = lightning(
        "check-data",
        "--data.root",
        str(folder_of_classes(tmp_path / "bad", True)),
        "--json",
        "report.json",
        cwd=tmp_path,
    )
    assert bad.returncode == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert {"unreadable image", "duplicate"} <= {problem["kind"] for problem in report["problems"]}


def test_show_data_and_fit_on_a_users_folder(tmp_path):
    root = folder_of_classes(tmp_path / "mine", False)
    shown = lightning("show-data", "--data.root", str(root), "--data.size", "64", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert (tmp_path / "outputs" / "samples.png").stat().st_size > 1000
    small = [
        "--data.size",
        "64",
        "--data.batch_size",
        "4",
        "--trainer.max_epochs",
        "1",
        "--data.split",
        "[0.5,0.25,0.25]",
    ]
    fitted = lightning(
        "fit", "--config", str(ROOT / "configs" / "classification.yaml"), "--data.root", str(root), *small, cwd=tmp_path
    )
    assert fitted.returncode == 0, fitted.stderr[-2000:]


def test_a_store_that_is_down_fails_nothing(tmp_path):
    done = lightning("fit", *TINY, "--trainer.max_epochs", "1", cwd=tmp_path, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("cannot be reached") == 1
    record = [json.loads(line) for line in (tmp_path / "outputs" / "offline-run.jsonl").read_text().splitlines()]
    assert any(row["call"] == "log_batch" for row in record)
