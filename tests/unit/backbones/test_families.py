"""Inception, plain and residual pairs, Xception, EfficientNet, the block-wise network and dilation: figures, training, export."""

from __future__ import annotations

from math import prod

import onnx
import pytest
import torch

from pipeline.backbones.build import build_backbone
from pipeline.backbones.inception import TABLE, Inception, branch
from pipeline.backbones.residual import PairBlock
from pipeline.errors import ConfigError
from pipeline.labels import LabelSpace
from pipeline.records import ClassTarget
from tasks.network import build_network
from tests.unit.backbones.trial import built_in, exports, multiplications, on_meta, parameters, passes, shapes_of


def five_by_five(reduced, wanted, padded):
    """A 5x5 branch on 200 channels of 32 x 32 pixels, and its multiplications."""
    with torch.device("meta"):
        layers = branch(200, reduced, wanted, 5)
        last = [m for m in layers.modules() if isinstance(m, torch.nn.Conv2d)][-1]
        last.padding = (2, 2) if padded else (0, 0)
        return multiplications(layers, torch.zeros(1, 200, 32, 32))


@pytest.mark.parametrize(("wanted", "padded"), [(120, False), (92, True)])
def test_a_reduction_turns_470_million_multiplications_into_40(wanted, padded):
    """120 kernels on the 28 x 28 valid places, or 92 on all 32 x 32: both are the published figures."""
    assert five_by_five(None, wanted, padded) / 1e6 == pytest.approx(470, abs=1.1)
    assert five_by_five(16, wanted, padded) / 1e6 == pytest.approx(40.5, abs=0.6)
    assert five_by_five(None, 120, False) == 28 * 28 * 25 * 200 * 120


def test_inception_modules_have_the_parameters_of_table_1():
    thousands = [159, 380, 364, 437, 463, 580, 840, 1072, 1388]
    channels = [192, 256, 480, 512, 512, 512, 528, 832, 832]
    found = []
    with torch.device("meta"):
        for plan, width in zip([plan for group in TABLE for plan in group], channels, strict=True):
            module = Inception(width, plan, naive=False, norm=True)
            found.append(sum(p.numel() for n, p in module.named_parameters() if p.dim() == 4) / 1024)
    # The paper's thousands are of 1024; several of its rows do not quite follow from their own columns (4c: 463 for 497).
    assert found == [pytest.approx(value, rel=0.08) for value in thousands]
    assert sum(found) == pytest.approx(sum(thousands), rel=0.01)


def test_googlenet_counts_what_the_paper_counts():
    network = on_meta("googlenet")
    assert parameters(network) == pytest.approx(7.0e6, rel=0.01)
    assert network.backbone.channels == (64, 192, 480, 832, 1024)
    with torch.device("meta"):
        assert multiplications(network, torch.zeros(1, 3, 224, 224)) == pytest.approx(1.5e9, rel=0.06)
    assert parameters(on_meta("googlenet-naive")) > 13 * parameters(network)
    assert shapes_of("googlenet", (64, 96), width=0.125)[-1] == (128, 2, 3)


def test_googlenets_classifiers_along_the_way_are_the_papers():
    network = on_meta("googlenet", head={"auxiliary": 0.3})
    first, second = network.heads["label"].along
    # Section 5: 4 x 4 x 512 and 4 x 4 x 528 after the pooling, 128 1 x 1 kernels, 1,024 units, 1,000 classes.
    assert parameters(first) == 512 * 128 + 128 + 2048 * 1024 + 1024 + 1024 * 1000 + 1000
    assert parameters(second) == parameters(first) + 16 * 128
    pooled = []
    first.reduce.register_forward_hook(lambda module, given, out: pooled.append(given[0].shape[1:]))
    with torch.device("meta"):
        network.train()
        raw = network(torch.zeros(2, 3, 224, 224))["label"]
        assert pooled == [(512, 4, 4)]
        assert [logits.shape for logits in raw.along] == [(2, 1000)] * 2
        network.eval()
        assert network(torch.zeros(2, 3, 224, 224))["label"].along == []


def test_what_stands_along_the_way_counts_for_its_weight():
    spaces = {"label": LabelSpace("classes", ("a", "b", "c"))}
    network = build_network("googlenet", 3, None, {"label": {"auxiliary": 0.3}}, spaces, {"width": 0.0625}, (64, 64))
    target = ClassTarget(torch.eye(3), torch.tensor([True, True, False]))
    raw = network.train()(torch.rand(3, 3, 64, 64))["label"]
    losses = network.heads["label"].loss(raw, target)
    own = [torch.nn.functional.cross_entropy(logits[:2], torch.tensor([0, 1])) for logits in (raw.logits, *raw.along)]
    assert float(losses["label"]) == pytest.approx(float(own[0]), rel=1e-5)
    assert float(losses["auxiliary"]) == pytest.approx(0.3 * float(own[1] + own[2]), rel=1e-5)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in network.heads["label"].along.parameters())


def test_what_stands_along_the_way_trains_and_is_not_exported(tmp_path):
    options = {"width": 0.125, "batch_norm": True}
    network = passes(tmp_path, "googlenet", {"scene": {"auxiliary": 0.3}}, built_in(64), backbone_options=options)
    along = parameters(network.heads["scene"].along)
    assert along > 60_000
    held = sum(prod(tensor.dims) for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer)
    assert 0 < held < parameters(network) - along + 1000  # batch norms are folded; constants are few


def test_a_network_without_classifiers_along_the_way_says_so():
    told = r"head 'label' \(classification\): auxiliary: 0.3, but backbone 'resnet18' has no classifiers along the way"
    with pytest.raises(ConfigError, match=told):
        on_meta("resnet18", head={"auxiliary": 0.3})
    with pytest.raises(ConfigError, match="auxiliary must be 0 or more, not -1"):
        on_meta("googlenet", head={"auxiliary": -1.0})


def test_resnet152_has_60_million_parameters():
    assert round(parameters(on_meta("resnet152")) / 1e6) == 60


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_small_residual_networks_have_the_parameters_of_table_6_and_their_plain_ones_the_same(depth, millions):
    residual, plain = (on_meta(f"{kind}{depth}", 10, (32, 32)) for kind in ("resnet", "plain"))
    assert parameters(residual) / 1e6 == pytest.approx(millions, abs=0.03)
    assert parameters(plain) == parameters(residual)
    layers = [m for m in plain.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(layers) + 1 == depth


def test_plain34_counts_3_6_billion_and_has_resnet34s_layers():
    plain = on_meta("plain34")
    with torch.device("meta"):
        assert multiplications(plain, torch.zeros(1, 3, 224, 224)) / 1e9 == pytest.approx(3.6, abs=0.05)
    assert sum(isinstance(m, torch.nn.Conv2d) for m in plain.modules()) == 33
    assert shapes_of("plain18", (64, 64)) == [(64, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]


def test_a_shortcut_lets_the_input_through_and_a_plain_block_does_not():
    x = torch.rand(1, 4, 8, 8)
    for shortcut in (True, False):
        block = PairBlock(4, 6, 2, shortcut).eval()
        torch.nn.init.zeros_(block.second.weight)
        out = block(x)
        assert out.shape == (1, 6, 4, 4)
        assert torch.equal(out[:, :4], x[:, :, ::2, ::2] if shortcut else torch.zeros(1, 4, 4, 4))
        assert (out[:, 4:] == 0).all()


def test_xception_has_36_convolution_layers_34_of_them_separable():
    from torch.nn import Conv2d

    network = on_meta("xception")
    layers = [m for m in network.modules() if isinstance(m, Conv2d)]
    depthwise = [m for m in layers if m.groups > 1]
    shortcuts = [n for n, m in network.named_modules() if isinstance(m, Conv2d) and "skip" in n]
    # A separable layer is a depthwise and a 1x1 convolution; the shortcuts' projections are not counted.
    assert len(depthwise) == 34
    assert len(layers) - len(depthwise) - len(shortcuts) == 36
    assert parameters(network) == pytest.approx(22.9e6, rel=0.005)


def test_efficientnet_b0_is_timms_of_5_3_million_parameters():
    import timm

    with torch.device("meta"):
        theirs = timm.create_model("efficientnet_b0")
    assert parameters(theirs) / 1e6 == pytest.approx(5.3, abs=0.05)
    # Its maps end before the last 1x1 convolution, which is part of the classifier.
    kept = parameters(theirs) - sum(parameters(m) for m in (theirs.conv_head, theirs.bn2, theirs.classifier))
    assert parameters(build_backbone("tu-efficientnet_b0")) == kept


def test_the_block_wise_network_is_as_configured():
    plain = build_backbone("convnet", options={"blocks": 3, "width": 8})
    assert plain.channels == (8, 16, 32, 0, 0)
    assert plain.traits.pooled == (8, 16, 32)
    assert shapes_of("convnet", (32, 64), blocks=3, width=8) == [(8, 16, 32), (16, 8, 16), (32, 4, 8)]
    for down, pools, strided in (("pooled", 3, 0), ("strided", 0, 3), ("convolution", 0, 3)):
        network = build_backbone("convnet", options={"blocks": 3, "down": down})
        modules = list(network.modules())
        assert sum(isinstance(m, torch.nn.MaxPool2d) for m in modules) == pools
        convolutions = [m for m in modules if isinstance(m, torch.nn.Conv2d)]
        assert sum(m.stride == (2, 2) for m in convolutions) == strided
        assert len(convolutions) == (9 if down == "convolution" else 6)


def test_two_3x3_layers_see_what_one_5x5_does_with_fewer_weights():
    one = build_backbone(
        "convnet", options={"blocks": 1, "convolutions": 1, "kernel": 5, "norm": False}, in_channels=16
    )
    two = build_backbone(
        "convnet", options={"blocks": 1, "convolutions": 2, "kernel": 3, "norm": False}, in_channels=16
    )
    assert parameters(one) == 16 * 16 * 25 + 16
    assert parameters(two) == 2 * (16 * 16 * 9 + 16)


def test_separable_layers_multiply_less():
    images = torch.zeros(1, 3, 32, 32)
    dense, apart = (build_backbone("convnet", options={"separable": s}).eval() for s in (False, True))
    assert multiplications(apart, images) < 0.3 * multiplications(dense, images)


@pytest.mark.parametrize(
    ("stride", "sides"), [(8, [32, 16, 8, 8, 8]), (16, [32, 16, 8, 4, 4]), (32, [32, 16, 8, 4, 2])]
)
@pytest.mark.parametrize("name", ["resnet18", "tu-resnet18", "light", "light-deep", "light-nano"])
def test_dilation_keeps_the_coarse_maps_fine_and_the_weights_as_they_were(name, stride, sides):
    dilated = build_backbone(name, options={"output_stride": stride}).eval()
    with torch.no_grad():
        assert [m.shape[-1] for m in dilated(torch.zeros(1, 3, 64, 64))] == sides
    assert dilated.traits.strides == tuple(64 // side for side in sides)
    assert {k: v.shape for k, v in dilated.state_dict().items()} == {
        k: v.shape for k, v in build_backbone(name).state_dict().items()
    }


@pytest.mark.parametrize("stride", [8, 16])
def test_a_dilated_light_network_answers_as_before_at_the_coarse_places(stride):
    """The algorithm with holes of Chen et al. 2015: the same weights, more places."""
    plain = build_backbone("light-deep").eval()
    dilated = build_backbone("light-deep", options={"output_stride": stride}).eval()
    dilated.load_state_dict(plain.state_dict())
    with torch.no_grad():
        images = torch.rand(1, 3, 64, 96)
        for fine, coarse in zip(dilated(images), plain(images), strict=True):
            step = fine.shape[-1] // coarse.shape[-1]
            torch.testing.assert_close(fine[:, :, ::step, ::step], coarse, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("backbone", "side", "options"),
    [
        ("googlenet", 64, {"width": 0.125, "batch_norm": True}),
        ("googlenet-naive", 64, {"width": 0.0625}),
        ("resnet20", 32, {}),
        ("plain20", 32, {}),
        ("convnet", 32, {"down": "strided", "separable": True}),
    ],
)
def test_they_train_and_export(tmp_path, backbone, side, options):
    passes(tmp_path, backbone, {"scene": {}}, built_in(side), backbone_options=options)


def test_a_plain_network_carries_all_three_tasks(tmp_path):
    heads = {
        "scene": {},
        "objects": {"width": 16},
        "surface": {"decoder": "smp-unet", "decoder_channels": [16, 16, 8, 8]},
    }
    passes(tmp_path, "plain18", heads)


@pytest.mark.parametrize("backbone", ["xception", "tu-efficientnet_b0"])
def test_the_libraries_networks_export(tmp_path, backbone):
    spaces = {"scene": LabelSpace("classes", ("a", "b"))}
    network = build_network(backbone, 3, None, {"scene": {}}, spaces, None, (64, 64)).eval().requires_grad_(False)
    exports(tmp_path, network, (64, 64))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("convnet", {"blocks": 6}, "takes 1 to 5 blocks"),
        ("convnet", {"kernel": 4}, "an odd kernel"),
        ("resnet18", {"output_stride": 4}, "output_stride is 8, 16 or 32, not 4"),
        ("light", {"output_stride": "8"}, "'light': output_stride is 8, 16 or 32, not '8'"),
        ("vgg16", {"output_stride": 8}, "output_stride 8 cannot be built"),
        ("resnet18", {"stride": 8}, "unknown option 'stride'"),
        (
            "torchvision/resnet18",
            {"output_stride": 8},
            "unknown option 'output_stride'; smp's and timm's residual networks",
        ),
    ],
)
def test_options_that_do_not_fit_are_told(name, options, message):
    with pytest.raises(ConfigError, match=message):
        build_backbone(name, options=options)


def test_strides_a_backbone_lacks_are_told_with_what_would_fit():
    boxes, mask = LabelSpace("boxes", ("a",)), LabelSpace("mask", ("a", "b"))
    with pytest.raises(
        ConfigError,
        match=r"head 'o' \(detection\): the pyramid needs maps at strides \[8, 16, 32\]; backbone 'resnet20' has maps at strides \[2, 4\]",
    ):
        build_network("resnet20", 3, None, {"o": {}}, {"o": boxes})
    with pytest.raises(
        ConfigError,
        match=r"'smp-unet' needs maps at strides \[4, 8, 16, 32\].*take decoder: light-unet, fcn, hourglass or unet",
    ):
        build_network("resnet18", 3, None, {"s": {"decoder": "smp-unet"}}, {"s": mask}, {"output_stride": 8})
    build_network("resnet18", 3, None, {"s": {}}, {"s": mask}, {"output_stride": 8})  # the default takes what there is
    with pytest.raises(
        ConfigError, match=r"data.size \[100, 64\].*multiples of 32; the nearest that fits is \[96, 64\]"
    ):
        build_network("resnet18", 3, None, {"s": {}}, {"s": mask}, None, (100, 64))
