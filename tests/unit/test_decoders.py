"""FCN, U-Net, SegNet, DeconvNet, hourglass: published figures, training, export, and backbones that do not fit."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pipeline.backbones.unet import tile_side
from pipeline.errors import ConfigError
from pipeline.labels import IGNORE_INDEX, LabelSpace
from pipeline.records import MaskTarget
from tasks.decoders.fcn import Enlarge
from tasks.decoders.unpooling import maximum_positions, unpool
from tasks.network import build_network
from tests.unit.backbones.trial import built_in, parameters, passes


def with_decoder(backbone, decoder, classes=21, size=(224, 224), in_channels=3, backbone_options=None, **options):
    space = LabelSpace("mask", tuple(map(str, range(classes))))
    head = {"decoder": decoder, "decoder_options": options}
    return build_network(backbone, in_channels, None, {"s": head}, {"s": space}, backbone_options, size)


def counted(*arguments, **options):
    with torch.device("meta"):
        return with_decoder(*arguments, **options)


def test_unet_as_published_answers_for_388_of_572_pixels_with_31_million_parameters():
    network = counted("unet", "unet", 2, (388, 388), 1)
    assert parameters(network) == 31_030_658
    small = with_decoder("unet", "unet", 2, (388, 388), 1, {"width": 0.0625}).eval()
    with torch.no_grad():
        tile = small.backbone.body.mirrored(torch.zeros(1, 1, 388, 388))
        assert tile.shape[2:] == (572, 572)
        features = small.backbone(torch.zeros(1, 1, 388, 388))
        assert [m.shape[-1] for m in features.pooled] == [568, 280, 136, 64]
        assert [m.shape[-1] for m in features if m.shape[1]] == [280, 136, 64, 28]
        assert small.heads["s"].decoder.tile(features).shape == (1, 2, 388, 388)
    assert network.backbone.traits.pooled == (64, 128, 256, 512)
    assert network.backbone.channels[:4] == (128, 256, 512, 1024)


def test_the_valid_network_looks_at_the_pixels_it_answers_for():
    """A pixel changes the answers around its own place: mirror, crop and answer are aligned."""
    torch.manual_seed(0)
    network = with_decoder("unet", "unet", 2, (70, 64), 1, {"width": 0.125, "depth": 2}).eval()
    images = torch.rand(1, 1, 70, 64) * 255
    changed = images.clone()
    changed[0, 0, 40, 20] += 200
    with torch.no_grad():
        moved = (network(changed)["s"].logits - network(images)["s"].logits).abs().sum(1)[0]
    centre = moved[:, :, None] * torch.stack(torch.meshgrid(torch.arange(70.0), torch.arange(64.0), indexing="ij"), -1)
    assert (centre.sum((0, 1)) / moved.sum()).round().tolist() == pytest.approx([40, 20], abs=2)


@pytest.mark.parametrize("side", [22, 64, 100, 388])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_every_pooling_of_a_tile_meets_an_even_side(side, depth):
    tile = tile_side(side, depth)
    x = tile
    for _ in range(depth):
        x -= 4
        assert x % 2 == 0
        x //= 2
    x -= 4
    for _ in range(depth):
        x = 2 * x - 4
    assert side <= x < side + 2**depth
    assert tile - x == 12 * 2**depth - 8
    assert (tile_side(388, 4), tile_side(388, 4) - 388) == (572, 184)


@pytest.mark.parametrize(("stride", "skips"), [(32, 0), (16, 1), (8, 2)])
def test_fcn_on_vgg_d_has_134_million_parameters_and_its_skips(stride, skips):
    network = counted("vgg-d", "fcn", stride=stride, hidden=4096)
    decoder = network.heads["s"].decoder
    # The paper counts without the enlargement, whose last step it does not learn.
    assert (parameters(network) - parameters(decoder.enlarge)) / 1e6 == pytest.approx(134.35, abs=0.05)
    assert [network.backbone.traits.strides[i] for i in decoder.skips] == [16, 8][:skips]
    assert [e.factor for e in decoder.enlarge] == [*[2] * skips, stride]


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_learned_upsampling_begins_as_bilinear(factor):
    x = torch.rand(1, 3, 5, 6)
    learned, fixed = Enlarge(3, factor, learned=True), Enlarge(3, factor, learned=False)
    inside = (..., slice(factor, -factor), slice(factor, -factor))  # at the border one sees zeros, the other repeats
    torch.testing.assert_close(learned(x)[inside], fixed(x)[inside])
    assert learned.layer.weight.requires_grad
    assert not list(fixed.parameters())


def test_a_dilated_backbone_needs_no_skip_to_reach_stride_8():
    decoder = counted("resnet18", "fcn", backbone_options={"output_stride": 8}, stride=8).heads["s"].decoder
    assert decoder.skips == []
    assert [e.factor for e in decoder.enlarge] == [8]
    assert [
        e.factor for e in counted("resnet18", "fcn", backbone_options={"output_stride": 16}).heads["s"].decoder.enlarge
    ] == [2, 8]


def test_segnet_mirrors_13_layers_and_deconvnet_has_252_million_parameters():
    options = {"batch_norm": True}
    segnet = counted("vgg-d", "segnet", backbone_options=options)
    decoder = [m for m in segnet.heads["s"].decoder.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(decoder) == 13
    assert parameters(segnet) / 1e6 == pytest.approx(29.5, abs=0.1)
    assert parameters(counted("vgg-d", "deconvnet", backbone_options=options)) / 1e6 == pytest.approx(252, abs=1)


@pytest.mark.parametrize(("stride", "fine"), [(4, 1), (4, 2), (4, 4), (8, 2), (2, 2)])
def test_a_light_unet_tells_the_pixels_of_a_cell_apart(stride, fine):
    """Each cell of the last map answers for its own pixels: where one cell changes, only those logits do."""
    network = with_decoder("resnet18", "light-unet", 3, (64, 96), width=16, stride=stride, fine=fine).eval()
    decoder = network.heads["s"].decoder
    with torch.no_grad():
        assert decoder(network.backbone(torch.rand(2, 3, 64, 96)), (64, 96))[0].shape == (2, 3, 64 // fine, 96 // fine)
        cells = torch.zeros(1, 16, 64 // stride, 96 // stride)
        cells[0, :, 2, 5] = 1
        answer = decoder.apart(decoder.score(cells)) - decoder.score.bias.reshape(3, -1)[:, :1, None].expand(3, 1, 1)
    side = stride // fine
    assert answer[0].abs().sum(0).nonzero().amin(0).tolist() == [2 * side, 5 * side]
    assert answer[0].abs().sum(0).nonzero().amax(0).tolist() == [3 * side - 1, 6 * side - 1]


@pytest.mark.parametrize("level", [0, 1, 2, 3, 4])
def test_every_map_of_the_backbone_reaches_a_light_unets_masks(level):
    """Its skips are joined, the one finer than the last step too; no map is left out."""
    network = with_decoder("resnet18", "light-unet", 3, (64, 96)).eval()
    decoder = network.heads["s"].decoder
    with torch.no_grad():
        maps = list(network.backbone(torch.rand(1, 3, 64, 96)))
        before = decoder(maps, (64, 96))[0]
        level += len(maps) - 5
        maps[level] = maps[level] + torch.rand_like(maps[level])
        assert not torch.allclose(decoder(maps, (64, 96))[0], before)


def test_unpooling_puts_maxima_back_where_torch_does():
    x = torch.randn(2, 3, 8, 12)
    pooled, places = F.max_pool2d(x, 2, return_indices=True)
    assert torch.equal(unpool(pooled, maximum_positions(x)), F.max_unpool2d(pooled, places, 2))


def test_eight_hourglasses_have_25_million_parameters_and_each_is_trained():
    assert parameters(counted("hourglass", "hourglass", 16, (256, 256), stacks=8)) / 1e6 == pytest.approx(
        25.1, rel=0.03
    )
    network = with_decoder("hourglass", "hourglass", 3, (64, 64), 3, {"width": 0.125}, stacks=3, width=16).train()
    raw = network(torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8))["s"]
    assert len(raw.beside) == 2
    mask = torch.randint(0, 3, (2, 64, 64), dtype=torch.uint8)
    mask[0, :4] = IGNORE_INDEX
    head = network.heads["s"]
    target = MaskTarget(mask, torch.tensor([True, True]))
    together = head.loss(raw, target)
    alone = [head.loss(raw._replace(logits=logits, beside=[]), target)["pixel"] for logits in (raw.logits, *raw.beside)]
    assert float(together["pixel"]) == pytest.approx(sum(value.item() for value in alone))
    network.eval()
    assert network(torch.zeros(1, 3, 64, 64))["s"].beside == []


SMALL = {"width": 0.125}


@pytest.mark.parametrize(
    ("backbone", "backbone_options", "decoder", "options", "side"),
    [
        ("vgg-a", SMALL, "fcn", {"hidden": 32}, 64),
        ("resnet18", {"output_stride": 8}, "fcn", {"upsampling": "bilinear"}, 64),
        ("light", {}, "light-unet", {"width": 16}, 64),
        ("resnet18", {"output_stride": 8}, "light-unet", {"stride": 8, "fine": 8}, 64),
        ("resnet18", {}, "smp-unet", {}, 64),
        ("unet", {**SMALL, "depth": 2, "dropout": 0.0}, "unet", {}, 60),
        ("unet", {**SMALL, "padding": "same", "batch_norm": True}, "unet", {"upsampling": "bilinear", "batch_norm": True}, 64),
        ("convnet", {"blocks": 3}, "unet", {"upsampling": "unpooling", "skips": False}, 64),
        ("vgg-a", SMALL, "segnet", {"layers": [1, 1, 2, 2, 2]}, 64),
        ("vgg-a", SMALL, "deconvnet", {"hidden": 32, "kernel": 2, "layers": [1, 1, 1, 1, 1]}, 64),
        ("hourglass", SMALL, "hourglass", {"width": 16}, 64),
    ],
)  # fmt: skip
def test_they_train_and_export(tmp_path, backbone, backbone_options, decoder, options, side):
    head = {"decoder": decoder, "decoder_options": options}
    passes(tmp_path, backbone, {"surface": head}, built_in(side), backbone_options=backbone_options)


@pytest.mark.parametrize("upsampling", ["transposed", "nearest", "bilinear", "unpooling"])
@pytest.mark.parametrize("skips", [True, False])
def test_unets_ways_up_keep_the_size(upsampling, skips):
    network = with_decoder(
        "unet", "unet", 3, (40, 36), 3, {"width": 0.0625, "depth": 1}, upsampling=upsampling, skips=skips
    )
    assert network(torch.zeros(2, 3, 40, 36))["s"].logits.shape == (2, 3, 40, 36)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("resnet18", "segnet"), {}, r"'segnet' needs the maps before each 2x2 pooling; backbone 'resnet18' keeps none: take 'vgg-a'"),
        (("resnet18", "unet"), {}, r"'unet' needs the maps before each"),
        (("unet", "segnet", 3, (96, 96)), {}, r"valid convolutions: take decoder: unet"),
        (("unet", "fcn", 3, (96, 96)), {}, r"valid convolutions: take decoder: unet"),
        (("unet", "unet", 3, (64, 64)), {}, r"backbone 'unet': it needs at least \[96, 96\]"),
        (("resnet20", "segnet", 3, (64, 64)), {}, r"keeps none"),
        (("vgg-d", "deconvnet", 3, (64, 64)), {}, r"at least \[224, 224\]; a kernel of 2 would fit"),
        (("vgg-d", "deconvnet", 3, (100, 100)), {}, r"backbone 'vgg-d': .* the nearest that fits is \[224, 224\]$"),
        (("resnet18", "hourglass", 3, (100, 64)), {}, r"backbone 'resnet18': .* the nearest that fits is \[128, 64\]$"),
        (("hourglass", "hourglass"), {"width": 1}, r"width of 2 or more, not 2, 4 and 1"),
        (("resnet18", "hourglass", 3, (96, 64)), {}, r"multiples of 64; the nearest that fits is \[128, 64\]"),
        (("convnet", "hourglass", 3, (64, 64), 3, {"blocks": 1}), {}, r"needs a map at stride 4; backbone 'convnet' has them at \[2\]"),
        (("vgg-d", "segnet"), {"layers": [1]}, r"takes 5 counts"),
        (("vgg-d", "segnt"), {}, r"unknown decoder 'segnt'; did you mean 'segnet'"),
        (("vgg-d", "fcn"), {"strde": 8}, r"decoder 'fcn': unknown option 'strde'; did you mean 'stride'"),
        (("vgg-d", "fcn"), {"hidden": "many"}, r"decoder 'fcn' cannot be built with \{'hidden': 'many'\}"),
        (("vgg-d", "fcn"), {"stride": 4}, r"takes stride 8, 16 or 32"),
        (("resnet18", "light-unet"), {"stride": 4, "fine": 3}, r"a fine that divides it.* not stride 4, fine 3 and width 32"),
        (("resnet18", "light-unet"), {"width": 0}, r"a width of 1 or more; not stride 4, fine 2 and width 0"),
        (("vgg-d", "fcn"), {"hidden": -1}, r"a hidden of 0 or more; not 8, 'learned', 7 and -1"),
        (("convnet", "light-unet", 3, (64, 64), 3, {"blocks": 1}), {}, r"'light-unet' with stride 4 needs a map there; backbone 'convnet' has maps at 2"),
        (("lenet5", "smp-unet", 3, (32, 32)), {}, r"backbone 'lenet5' has maps for image labels only"),
        (("vgg-d", "smp-unet"), {"stride": 8}, r"'smp-unet' has no decoder_options"),
        (("lenet5", "light-unet", 3, (32, 32)), {}, r"decoder 'light-unet' needs maps on the grid of their strides"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_at_construction(arguments, options, message):
    with pytest.raises(ConfigError, match=message):
        counted(*arguments, **options)
