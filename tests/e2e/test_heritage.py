"""The historical networks by the ordinary commands: a config trains and exports; what does not fit is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

HERITAGE = Path(__file__).parents[2] / "configs" / "heritage"
QUICK = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=2")


def fit(command, name, *more):
    return command("fit", "--config", str(HERITAGE / f"{name}.yaml"), *QUICK, *more)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("conv1d", ("--data.signals={images: 200}",)),
        ("unet-padded", ("--data.shapes={images: 30, size: 64}", "--data.size=64", "--data.batch_size=4")),
    ],
)
def test_a_config_trains_and_exports(command, tmp_path, name, more):
    code, _, error = fit(command, name, *more)
    assert code == 0, error
    (checkpoint,) = tmp_path.glob("outputs/runs/*/best.ckpt")
    code, out, error = command("export", "--ckpt", str(checkpoint), "--out", "bundle", "--no-torchscript")
    assert code == 0, error
    assert "onnxruntime:fp32  passed" in out


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("vgg-d", "--data.size=64", "data.size [64, 64] does not fit the published classifier of 'vgg-d'"),
        ("segnet", "--model.backbone=resnet18", "'resnet18': unknown option 'batch_norm'"),
        ("resnet56", "--model.in_channels=4", "in_channels is 4, but the data gives RGB: take 3, or 1 for grey"),
        ("fcn-resnet", "--data.size=100", "data.size [100, 100] does not fit backbone 'resnet18'"),
    ],
)
def test_what_does_not_fit_is_one_line(command, name, option, message):
    code, _, error = fit(command, name, option)
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1
