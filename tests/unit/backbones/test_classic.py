"""LeNet-5, AlexNet, VGG and the networks on signals: published figures, training, export, and what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.backbones.build import build_backbone
from pipeline.data.module import VisionData
from pipeline.data.signals import TEMPLATES, draw_signal, read_signals
from pipeline.errors import ConfigError
from tasks.network import grey
from tests.unit.backbones.trial import built_in, multiplications, on_meta, parameters, passes, shapes_of

PUBLISHED = {"classifier": "published"}


def test_lenet5_has_60_thousand_parameters_and_the_papers_maps():
    network = on_meta("lenet5", 10, (32, 32), 1, PUBLISHED)
    assert parameters(network) == 156 + 2416 + 48120 + 10164 + 850  # C1, C3 fully connected, C5, F6, output
    assert shapes_of("lenet5", (32, 32), 1) == [(6, 14, 14), (16, 5, 5)]
    assert [type(m).__name__ for m in network.backbone.body.first] == ["Conv2d", "Tanh", "AvgPool2d"]
    modern = on_meta("lenet5", 10, (32, 32), 1, PUBLISHED, activation="relu", pooling="max")
    assert [type(m).__name__ for m in modern.backbone.body.first] == ["Conv2d", "ReLU", "MaxPool2d"]


def test_alexnet_has_60_million_parameters_at_227_pixels():
    network = on_meta("alexnet", 1000, (227, 227), head=PUBLISHED)
    assert round(parameters(network) / 1e6) in {60, 61}
    assert parameters(network) == 60_965_224
    assert shapes_of("alexnet", (227, 227)) == [(96, 55, 55), (96, 27, 27), (256, 13, 13), (256, 6, 6)]


@pytest.mark.parametrize(
    ("name", "millions"), [("a", 133), ("a-lrn", 133), ("b", 133), ("c", 134), ("d", 138), ("e", 144)]
)
def test_vgg_has_the_parameters_of_table_2(name, millions):
    assert round(parameters(on_meta(f"vgg-{name}", head=PUBLISHED)) / 1e6) == millions


@pytest.mark.parametrize(("name", "theirs"), [("a", "vgg11"), ("b", "vgg13"), ("d", "vgg16_bn"), ("e", "vgg19")])
def test_vgg_has_torchvisions_layers(name, theirs):
    from torchvision import models

    with torch.device("meta"):
        wanted = models.get_model(theirs).features.state_dict().values()
        ours = build_backbone(f"vgg-{name}", options={"batch_norm": "bn" in theirs}).body.state_dict().values()
    assert [value.shape for value in ours] == [value.shape for value in wanted]


def test_vgg_answers_as_torchvisions_with_the_same_weights():
    from torchvision.models.vgg import make_layers

    torch.manual_seed(0)
    plan = [8, "M", 16, "M", 32, 32, "M", 64, 64, "M", 64, 64, "M"]
    ours, reference = build_backbone("vgg-a", options={"width": 0.125}).eval(), make_layers(plan)
    reference.load_state_dict(dict(zip(reference.state_dict(), ours.body.state_dict().values(), strict=True)))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images)[-1], reference(images))


def test_convolutions_are_the_fully_connected_classifier():
    head = on_meta("vgg-a", 10, head=PUBLISHED, width=0.125).heads["label"].to_empty(device="cpu").eval()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    first, second, third = head.linear.layers[0], head.linear.layers[3], head.linear.layers[6]
    maps = torch.randn(2, 64, 7, 7)
    hidden = torch.relu(torch.nn.functional.linear(maps.flatten(1), first.weight.flatten(1), first.bias))
    hidden = torch.relu(torch.nn.functional.linear(hidden, second.weight.flatten(1), second.bias))
    wanted = torch.nn.functional.linear(hidden, third.weight.flatten(1), third.bias)
    torch.testing.assert_close(head([maps] * 5, (224, 224)).logits, wanted, rtol=1e-4, atol=1e-4)


def test_signals_2050_parameters_against_150185():
    conv = on_meta("conv1d", 10, (1, 40), 1, PUBLISHED)
    assert parameters(conv) == 2050
    assert shapes_of("conv1d", (1, 40), 1) == [(15, 1, 19), (15, 1, 9), (15, 1, 4)]
    assert parameters(on_meta("mlp", 10, (1, 40), 1)) == 150_185
    assert parameters(on_meta("mlp", 10, (1, 40), 1, hidden=[285, 135, 60])) == 59_065
    assert (
        multiplications(conv.to_empty(device="cpu").eval(), torch.zeros(1, 1, 1, 40))
        == 15 * 19 * 3 + 45 * 15 * 13 + 600
    )


def test_the_built_in_signals_are_drawn_alike_each_time_and_unlike_each_other():
    assert (draw_signal(0, 5, 2) == draw_signal(0, 5, 2)).all()
    assert (draw_signal(0, 5, 2) != draw_signal(0, 6, 2)).any()
    source = read_signals(200)
    assert {record.split for record in source.records} == {"train", "val", "test"}
    pixels, size = source.records[0].image.read()
    assert pixels.shape == (1, 40, 3)
    assert pixels.dtype == np.uint8
    assert size == (1, 40)
    assert {record.labels["shape"] for record in source.records} == set(range(len(TEMPLATES)))
    with pytest.raises(ConfigError, match=r"give data.size \[1, 40\], not \[64, 64\]"):
        VisionData(signals={}, size=64)
    with pytest.raises(ConfigError, match="at least 100"):
        read_signals(3)


def test_grey_is_luma():
    pixels = torch.tensor([[255, 0, 0], [10, 20, 30]], dtype=torch.uint8)[:, :, None, None]
    assert grey(pixels).flatten().tolist() == pytest.approx(
        [0.299 * 255, 0.299 * 10 + 0.587 * 20 + 0.114 * 30], abs=1e-3
    )


@pytest.mark.parametrize(
    ("backbone", "side", "head", "options"),
    [
        ("lenet5", 32, PUBLISHED, {"in_channels": 1}),
        ("lenet5", 40, {}, {"backbone_options": {"activation": "relu", "pooling": "max"}}),
        # At a sixteenth of its width, so that the test needs little memory.
        ("alexnet", 227, PUBLISHED, {"backbone_options": {"width": 0.0625}}),
        ("vgg-a-lrn", 224, PUBLISHED, {"backbone_options": {"width": 0.0625}}),
        ("vgg-c", 64, {}, {"backbone_options": {"width": 0.125}}),
    ],
)
def test_they_train_and_export(tmp_path, backbone, side, head, options):
    passes(tmp_path, backbone, {"scene": head}, built_in(side), **options)


def test_vgg_carries_all_three_tasks(tmp_path):
    heads = {
        "scene": {},
        "objects": {"width": 16},
        "surface": {"decoder": "smp-unet", "decoder_channels": [16, 16, 8, 8]},
    }
    passes(tmp_path, "vgg-d", heads, backbone_options={"width": 0.125, "batch_norm": True})


@pytest.mark.parametrize(("backbone", "head"), [("conv1d", PUBLISHED), ("mlp", {})])
def test_signals_train_and_export(tmp_path, backbone, head):
    data = VisionData(size=(1, 40), signals={"images": 100}, batch_size=32, augment="none")
    passes(tmp_path, backbone, {"shape": head}, data, in_channels=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("vgg-d", 10, (64, 64), 3, PUBLISHED),
            r"\[64, 64\] does not fit the published classifier.*nearest .* \[224, 224\]",
        ),
        (("vgg-d", 10, (16, 16), 3, PUBLISHED), r"backbone 'vgg-d': .* the nearest that fits is \[224, 224\]$"),
        (("alexnet", 10, (40, 300), 3, PUBLISHED), r"'alexnet': .* the nearest that fits is \[227, 300\]$"),
        (("conv1d", 10, (4, 8), 1, PUBLISHED), r"'conv1d': it takes .* the nearest that fits is \[1, 15\]$"),
        (("vgg-d", 10, (100, 100)), r"backbone 'vgg-d'.*multiples of 32; the nearest that fits is \[96, 96\]"),
        (("lenet5", 10, (8, 40)), r"at least \[16, 16\]; the nearest that fits is \[16, 40\]"),
        (("alexnet", 10, (32, 32)), r"at least \[67, 67\]"),
        (("conv1d", 10, (64, 64), 1), r"it takes \[1, 15\] or longer"),
        (("mlp", 10, None), r"built for one input size"),
        (("resnet18", 10, (48, 64)), r"backbone 'resnet18'.*nearest that fits is \[64, 64\]"),
        (("resnet18", 10, (64, 64), 0), r"in_channels is 0"),
        (("resnet18", 10, (64, 64), 3, PUBLISHED), r"'resnet18' has no fully connected layers of its own"),
    ],
)
def test_what_does_not_fit_is_told_at_construction(arguments, message):
    with pytest.raises(ConfigError, match=message):
        on_meta(*arguments)


def test_options_that_do_not_exist_are_told():
    with pytest.raises(ConfigError, match=r"'vgg-d': unknown option 'widht'; did you mean 'width'"):
        build_backbone("vgg-d", options={"widht": 1})
    with pytest.raises(ConfigError, match="'plain18': unknown option 'width'; it has none"):
        build_backbone("plain18", options={"width": 1})
    with pytest.raises(ConfigError, match="activation is tanh or relu"):
        build_backbone("lenet5", options={"activation": "gelu"})
    with pytest.raises(ConfigError, match=r"'vgg-a' cannot be built with \{'width': 'wide'\}"):
        build_backbone("vgg-a", options={"width": "wide"})
    with pytest.raises(ConfigError, match="unknown option 'configuration'"):
        build_backbone("vgg-a", options={"configuration": "e"})
    with pytest.raises(ConfigError, match="width is 0"):
        build_backbone("vgg-a", options={"width": 0})
    with pytest.raises(ConfigError, match="'conv1d': width is a number of channels of 1 or more, not 0"):
        build_backbone("conv1d", 1, options={"width": 0}, size=(1, 40))


def test_a_network_for_labels_only_refuses_boxes_and_masks():
    from tasks.network import build_network
    from tests.unit.test_heads import SPACES

    told = r"head 'objects' \(detection\): .*'lenet5' has maps for image labels only: take another backbone \('vgg-d'"
    with pytest.raises(ConfigError, match=told):
        build_network("lenet5", 3, None, {"objects": {}}, SPACES)
