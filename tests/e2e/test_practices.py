"""The lectures' practices as overlays of ordinary configs, on the real command."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.e2e.commands import ROOT, runs_of

QUICK = [
    "--data.size", "32", "--model.backbone", "light", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu",
    "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false",
]  # fmt: skip
SHAPES = ["--data.shapes", "{images: 30, size: 32}"]


def configs(*names):
    return [word for name in names for word in ("--config", str(ROOT / "configs" / f"{name}.yaml"))]


def last(folder):
    (file,) = folder.glob("outputs/runs/*/last.ckpt")
    return torch.load(file, weights_only=True)


def test_the_old_recipe_trains_and_is_tested_on_ten_crops(command, tmp_path):
    overlays = [f"heritage/{name}" for name in ("momentum", "regularised", "he", "ten_crop")]
    given = [*configs("classification", *overlays), *QUICK, *SHAPES, "--data.batch_size", "6"]
    code, _, err = command("fit", *given)
    assert code == 0, err[-2000:]
    groups = last(tmp_path)["optimizer_states"][0]["param_groups"]
    assert {group["momentum"] for group in groups} == {0.9}
    assert {group["nesterov"] for group in groups} == {False}
    assert all(group["lr"] == pytest.approx(0.1 * 0.1**2) for group in groups)  # both steps are behind
    code, out, err = command("test", *given, "--ckpt_path", "last")
    assert code == 0, err[-2000:]
    assert "test/scene/top1_error" in out
    assert "test/scene/top5_error" in out


def test_the_plateau_overlay_trains(command, tmp_path):
    code, _, err = command("fit", *configs("classification", "heritage/plateau"), *QUICK, *SHAPES)
    assert code == 0, err[-2000:]
    (state,) = last(tmp_path)["lr_schedulers"]
    assert (state["factor"], state["patience"], state["mode"]) == (0.1, 3, "max")


def test_an_unsupervised_start_is_taken_over_in_part(command, tmp_path):
    """Denoising of pictures without labels, then segmentation that keeps the first stages of that backbone."""
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 255, (4, 4, 3), np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).resize((40, 32)).save(tmp_path / "photos" / f"{number}.png")
    code, out, err = command(
        "fit", *configs("heritage/denoising"), *QUICK, "--data.root", "photos", "--data.batch_size", "3"
    )
    assert code == 0, err[-2000:]
    assert "data: images; no labels; train 10" in out
    assert "val/denoising/removed" in runs_of(tmp_path)[1][0].data.metrics
    (start,) = (tmp_path / "outputs").glob("runs/*/best.ckpt")
    theirs = torch.load(start, weights_only=True)["state_dict"]
    code, _, err = command(
        "fit", *configs("segmentation", "heritage/transfer"), *QUICK, *SHAPES, "--model.weights", str(start),
        "--model.weights_stages", "2", "--trainer.default_root_dir", "transferred", "--ema.decay", "0",
    )  # fmt: skip
    assert code == 0, err[-2000:]
    (file,) = (tmp_path / "transferred").glob("runs/*/last.ckpt")
    own = torch.load(file, weights_only=True)["state_dict"]
    kept = {key for key, value in own.items() if key in theirs and torch.equal(value, theirs[key]) and value.ndim > 1}
    assert {"network.backbone.body.stem.0.weight", "network.backbone.body.stages.0.0.first.0.weight"} <= kept
    assert "network.backbone.body.stages.2.0.first.0.weight" not in kept


def test_denoising_beside_segmentation(command, tmp_path):
    code, _, err = command("fit", *configs("heritage/segment_denoise"), *QUICK, *SHAPES)
    assert code == 0, err[-2000:]
    metrics = runs_of(tmp_path)[1][0].data.metrics
    assert {"val/surface/mIoU", "val/denoising/removed", "val/denoising/PSNR", "train/denoising/loss"} <= set(metrics)
    assert metrics["val/score"] == pytest.approx(
        (metrics["val/surface/mIoU"] + metrics["val/denoising/removed"]) / 2, abs=1e-4
    )
