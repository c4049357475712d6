"""Every backbone written here is listed by its name alone, at the size it was published for."""

from __future__ import annotations

import json

import pytest
import torch

from pipeline.backbones.build import natural_input, registered
from pipeline.backbones.traits import fitting_size
from pipeline.errors import ConfigError
from pipeline.inspect.command import main
from pipeline.inspect.subject import named_backbone

FIGURES = {
    "lenet5": ([32, 32], 61_706),
    "alexnet": ([227, 227], 60_965_224),
    "vgg-d": ([224, 224], 138_357_544),
    "conv1d": ([1, 40], 2_050),
    "mlp": ([1, 40], 150_185),
    "resnet56": ([32, 32], 853_018 - 650),
    "unet": ([388, 388], None),
    "yolo-v1": ([448, 448], None),
}
"""Sizes and parameters: of the classifiers they were published with, where they had one; resnet56's is less its last layer."""

assert FIGURES.keys() <= set(registered())


@pytest.mark.parametrize("name", registered())
def test_it_is_listed_by_its_name_alone(name, capsys, monkeypatch):
    # The sums are of shapes: no numbers are drawn for the large ones.
    monkeypatch.setattr(torch.nn.init, "kaiming_normal_", lambda tensor, **given: tensor)
    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", lambda tensor, **given: tensor)
    assert main(["--backbone", name, "--json", "-", "--repeats", "0"]) == 0
    out, said = capsys.readouterr()
    assert said == "looking: parameters, multiply-adds, memory and time, layer by layer\n"
    told = json.loads(out)
    costs = told["costs"]
    size, parameters = FIGURES.get(name, (costs["size"], None))
    assert told["name"] == name
    assert costs["size"] == size
    assert costs["parameters"] == parameters or parameters is None
    assert sum(layer["parameters"] for layer in costs["layers"]) == costs["parameters"]
    assert sum(layer["multiply_adds"] for layer in costs["layers"]) == costs["multiply_adds"] > 0
    assert all(layer["output"] for layer in costs["layers"])


def test_a_signals_layers_have_a_field_along_it(capsys):
    """Kernels of 3 and strides of 2: 3, 7 and 15 samples, 2, 4 and 8 apart."""
    assert main(["--backbone", "conv1d", "--looks", "costs,fields", "--json", "-", "--repeats", "0"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(f["theory"], f["stride"], f["nan_check"]) for f in told["fields"].values()] == [
        ([1, 3], [1, 2], "agrees"), ([1, 7], [1, 4], "agrees"), ([1, 15], [1, 8], "agrees"),
    ]  # fmt: skip
    layers = [layer for layer in told["costs"]["layers"] if layer["kind"] == "Conv2d"]
    assert [layer["receptive_field"] for layer in layers] == [[1, 3], [1, 7], [1, 15]]


def test_what_is_given_goes_before_what_was_published():
    assert natural_input("lenet5").channels == 1
    subject = named_backbone("lenet5", 3, (40, 40), classes=5)
    assert (subject.channels, subject.size) == (3, (40, 40))
    assert subject.network.backbone.body.first[0].in_channels == 3
    assert subject.module(torch.zeros(1, 3, 40, 40)).shape == (1, 5)
    assert named_backbone("mlp", size=(2, 8)).network.backbone.body.layers[0].in_features == 16


@pytest.mark.parametrize(
    ("name", "size", "classes", "message"),
    [
        (
            "vgg-a",
            (64, 64),
            3,
            r"--size \[64, 64\] .* classifier of 'vgg-a', which --classes 0 leaves out.* \[224, 224\]$",
        ),
        ("vgg-a", (16, 16), 3, r"--size \[16, 16\] .*backbone 'vgg-a'.* nearest that fits is \[224, 224\]$"),
        ("vgg-a", (16, 16), 0, r"--size \[16, 16\] .*backbone 'vgg-a'.* nearest that fits is \[32, 32\]$"),
        ("conv1d", (40, 40), 3, r"\[40, 40\] does not fit backbone 'conv1d'.* \[1, 40\]$"),
    ],
)
def test_a_size_that_is_given_and_does_not_fit_is_told(name, size, classes, message):
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        named_backbone(name, size=size, classes=classes)


def test_a_size_that_does_not_fit_becomes_the_nearest():
    """timm's Inception was published for 299 pixels, which 32 does not divide."""
    assert natural_input("tu-inception_v3").size == (299, 299)
    assert fitting_size((299, 299), (1, 1), 32) == (288, 288)
    assert fitting_size((40, 10), (16, 16), 1) == (40, 16)
    assert natural_input("resnet18").size == (224, 224)
