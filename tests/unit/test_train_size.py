"""`data.train_size` that a network of fixed size cannot take is one line when the network is built."""

from __future__ import annotations

import pytest
import torch

import tasks.multitask  # noqa: F401  # registers the heads
from pipeline.errors import ConfigError
from pipeline.labels import LabelSpace
from tasks.network import build_network

SPACES = {
    "scene": LabelSpace("classes", ("a", "b")),
    "objects": LabelSpace("boxes", ("a", "b")),
    "surface": LabelSpace("mask", ("a", "b")),
}


def built(backbone, head, options, size, train_size, **more):
    with torch.device("meta"):
        return build_network(
            backbone, 3, None, {head: options}, {head: SPACES[head]}, more, size, train_size=train_size
        )


DECONVNET = {"decoder": "deconvnet", "decoder_options": {"hidden": 16}}


@pytest.mark.parametrize(
    ("backbone", "head", "options", "size", "train_size", "message"),
    [
        (
            "yolo-v1", "objects", {"kind": "yolo-v1"}, (448, 448), (320, 320),
            r"head 'objects': data.train_size \[320, 320\] does not fit YOLO v1's head .*built for \[448, 448\]",
        ),
        (
            "alexnet", "scene", {"classifier": "published"}, (256, 256), (192, 192),
            r"head 'scene': data.train_size \[192, 192\] .*published classifier of 'alexnet'.*at least \[227, 227\]",
        ),
        ("alexnet", "scene", {}, (256, 256), (64, 64), r"data.train_size \[64, 64\] .*'alexnet'.*at least \[67, 67\]"),
        (
            "vgg-a", "surface", DECONVNET, (256, 256), (192, 192),
            r"head 'surface': data.train_size \[192, 192\] .*'deconvnet' with kernel 7.*\[224, 224\]",
        ),
        ("mlp", "scene", {}, (64, 64), (32, 32), r"data.train_size \[32, 32\] .*'mlp': it needs at least \[64, 64\]"),
        (
            "hourglass", "surface", {"decoder": "hourglass"}, (256, 256), (224, 224),
            r"head 'surface': data.train_size \[224, 224\] .*'hourglass' of depth 4.*multiples of 64",
        ),
        ("unet", "surface", {"decoder": "unet"}, (388, 388), (64, 64), r"data.train_size \[64, 64\] .*'unet'"),
    ],
)  # fmt: skip
def test_it_is_told_at_construction(backbone, head, options, size, train_size, message):
    with pytest.raises(ConfigError, match=message) as told:
        built(backbone, head, options, size, train_size)
    assert "\n" not in str(told.value)
    assert built(backbone, head, options, size, size).size == size


def test_what_takes_any_size_takes_it():
    assert built("vgg-a", "surface", DECONVNET, (320, 320), (224, 224)).size == (320, 320)
    assert built("alexnet", "scene", {"classifier": "published"}, (320, 320), (256, 256)).size == (320, 320)
    assert built("resnet18", "objects", {}, (320, 320), (64, 64)).size == (320, 320)
