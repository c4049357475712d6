"""The layer table: what a layer costs and sees, against figures from papers, by hand, and by a NaN."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.feature_extraction import create_feature_extractor

from pipeline.backbones.build import build_backbone
from pipeline.errors import ConfigError
from pipeline.inspect.costs import costs_figures, measure_times
from pipeline.inspect.layers import fields_of, list_layers
from pipeline.inspect.receptive import compare, effective_side, gradient_map, nan_reach, theory_reach
from pipeline.inspect.subject import named_backbone


def by_name(listing):
    return {layer.name: layer for layer in listing.layers}


def sequence(*layers):
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize(
    ("name", "parameters", "billions", "last", "field"),
    [
        # 11.69, 138.36 and 7.98 million of the papers' networks less their fully connected layers
        ("resnet18", 11_689_512 - 513_000, 1.814, "layer4.1.conv2", 435),
        ("vgg16", 138_357_544 - 123_642_856, 15.347, "features.30", 212),
        ("densenet121", 7_978_856 - 1_025_000, 2.834, "features.norm5", 2071),
    ],
)
def test_known_networks_match_their_papers(name, parameters, billions, last, field):
    listing = list_layers(build_backbone(name), 3, (224, 224), "body.")
    assert listing.parameters == parameters
    assert listing.multiply_adds == pytest.approx(billions * 1e9, rel=1e-3)
    assert by_name(listing)[last].receptive_field == (field, field)
    assert by_name(listing)[last].stride == (32, 32)
    assert sum(layer.parameters for layer in listing.layers) == parameters


@pytest.mark.parametrize(
    ("name", "channels", "classes", "size", "parameters", "millions"),
    [
        ("lenet5", 1, 10, (32, 32), 61_706, 0.416520),
        ("alexnet", 3, 1000, (227, 227), 60_965_224, 724.406816),
    ],
)
def test_a_network_is_listed_with_the_classifier_it_was_published_with(
    name, channels, classes, size, parameters, millions
):
    subject = named_backbone(name, channels, None, classes=classes)
    assert subject.size == size
    listing = list_layers(subject.module, channels, size, subject.prefix)
    assert listing.parameters == parameters
    assert listing.multiply_adds == pytest.approx(millions * 1e6)
    assert subject.layer("first") is subject.network.backbone.body.get_submodule("first")
    assert listing.layers[-1].name.startswith("classifier.")
    bare = named_backbone(name, channels, None, classes=0)
    assert list_layers(bare.module, channels, size).parameters < parameters


def test_costs_by_hand():
    network = sequence(
        nn.Conv2d(3, 8, 5, 2, 2, bias=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    listing = list_layers(network, 3, (32, 48))
    first, relu, depthwise, _, _, linear = listing.layers
    assert first.multiply_adds == 16 * 24 * 8 * 3 * 25
    assert depthwise.multiply_adds == 16 * 24 * 8 * 9
    assert linear.multiply_adds == 8 * 10
    assert listing.multiply_adds == sum(layer.multiply_adds for layer in listing.layers)
    assert (first.parameters, depthwise.parameters, linear.parameters) == (600, 80, 90)
    assert (first.activation_bytes, relu.activation_bytes) == (4 * 8 * 16 * 24, 0)
    assert (first.output, linear.output) == ((8, 16, 24), (10,))
    assert linear.receptive_field is None


def test_a_convolution_with_layers_inside_is_one_layer():
    """smp's EfficientNet pads inside its convolutions."""
    listing = list_layers(build_backbone("efficientnet-b0"), 3, (64, 64), "body.")
    assert by_name(listing)["_conv_stem"].multiply_adds == 32 * 32 * 32 * 27
    assert by_name(listing)["_conv_stem"].receptive_field == (3, 3)
    assert by_name(listing)["_blocks.0._project_conv"].receptive_field is None  # behind a gate of the whole image


@pytest.mark.parametrize(
    ("layers", "field", "stride"),
    [
        ([nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3)], 5, 1),  # two 3 x 3 see what one 5 x 5 sees
        ([nn.Conv2d(1, 1, 3, stride=2), nn.MaxPool2d(2), nn.Conv2d(1, 1, 3)], 13, 4),
        ([nn.Conv2d(1, 1, 3, dilation=4)], 9, 1),
        ([nn.Conv2d(1, 1, 4, stride=4), nn.ConvTranspose2d(1, 1, 4, stride=4)], 4, 1),
        ([nn.AvgPool2d(3, 1, 1), nn.ZeroPad2d(2), nn.Conv2d(1, 1, 5)], 7, 1),
        ([nn.Conv2d(1, 1, 2, stride=2), nn.Upsample(scale_factor=2, mode="bilinear")], 4, 1),
        ([nn.Conv2d(1, 4, 2, stride=2), nn.PixelShuffle(2)], 2, 1),
    ],
)
def test_fields_by_hand(layers, field, stride):
    last = list_layers(sequence(*layers), 1, (64, 64)).layers[-1]
    assert last.receptive_field == (field, field)
    assert last.stride == (stride, stride)


class Branches(nn.Module):
    """Two kernels joined, a shortcut, a skip from before the pool."""

    def __init__(self):
        super().__init__()
        self.narrow, self.wide = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, (5, 3), padding=(2, 1))
        self.coarse, self.out = nn.Conv2d(2, 1, 3, 2, 1), nn.Conv2d(3, 1, 1)

    def forward(self, x):
        both = torch.cat([self.narrow(x), self.wide(x) + x], 1)
        return self.out(torch.cat([both, F.interpolate(self.coarse(both), scale_factor=2.0)], 1))


class Squeeze(nn.Module):
    """A gate of the whole image."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 1, 1)

    def forward(self, x):
        x = self.conv(x)
        return self.out(x * x.mean((2, 3), keepdim=True).sigmoid())


@pytest.mark.parametrize(
    ("network", "channels"),
    [
        (Branches(), 1),
        (Squeeze(), 1),
        (sequence(nn.Conv2d(1, 2, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(2, 1, 4, 2, 1)), 1),
        (sequence(nn.ReflectionPad2d((3, 9, 20, 1)), nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3, stride=2)), 1),
        (build_backbone("light"), 3),
        (build_backbone("tu-convnext_atto"), 3),
    ],
    ids=["branches", "gate", "transposed", "mirrored", "light", "convnext"],
)
@pytest.mark.parametrize("pixel", [(32, 32), (0, 5)])
def test_a_nan_comes_out_where_the_theory_says(network, channels, pixel):
    network.eval()
    modules = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    fields = fields_of(network, modules, channels, (64, 64))
    reached = nan_reach(network, modules, (channels, 64, 64), pixel)
    for name, field in fields.items():
        # a strided 1 x 1 shortcut sees only every other position of its field's hull
        allowed = {"agrees", "within"} if "shortcut" in name else {"agrees"}
        assert compare(reached[name], theory_reach(field, pixel)) in allowed, name


def test_a_traced_network_is_checked_in_evaluation_mode():
    """A copy of one forgets its mode, and a batch norm in training would spread the NaN over everything."""
    network = create_feature_extractor(sequence(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2)), ["1"]).eval()
    reached = nan_reach(network, {"norm": network.get_submodule("1")}, (1, 16, 16), (8, 8))
    assert reached["norm"].sum() == 9


def test_the_check_can_fail():
    theory = np.zeros((4, 4), bool)
    theory[1:3, 1:3] = True
    assert compare(theory, theory) == "agrees"
    assert compare(np.roll(theory, 1), theory) == "differs"
    inner = theory.copy()
    inner[1, 1] = False
    assert compare(inner, theory) == "within"


def test_the_gradient_stays_inside_the_field_and_is_smaller():
    torch.manual_seed(0)
    network = sequence(*[nn.Conv2d(1 if i == 0 else 4, 4, 5, padding=2) for i in range(6)])
    gradient = gradient_map(network, network[-1], torch.randn(4, 1, 64, 64))
    rows = np.flatnonzero(gradient.max(1))
    assert (rows.min(), rows.max()) == (32 - 12, 32 + 12)
    assert 5 < effective_side(gradient) < 25
    assert effective_side(np.zeros((4, 4), np.float32)) == 0


def test_times_are_of_each_layer_and_figures_are_plain():
    network = sequence(nn.Conv2d(1, 16, 5), nn.ReLU(), nn.Conv2d(16, 16, 5))
    listing = list_layers(network, 1, (64, 64))
    whole = measure_times(network, torch.zeros(1, 1, 64, 64), listing.layers, 3)
    assert all(layer.milliseconds > 0 for layer in listing.layers)
    assert sum(layer.milliseconds for layer in listing.layers) < 2 * whole
    assert costs_figures(listing, whole)["layers"][2]["receptive_field"] == [9, 9]


def test_a_size_the_network_cannot_take_is_told():
    network = sequence(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 2))
    assert list_layers(network, 3, (32, 32)).layers[0].receptive_field == (3, 3)  # also where no other size is taken
    with pytest.raises(ConfigError, match="does not take images of 40 x 40 pixels"):
        list_layers(network, 3, (40, 40))
