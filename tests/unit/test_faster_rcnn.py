"""Faster R-CNN: torchvision's own network beside ours with the same weights, training, export, and what does not fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tasks.multitask  # noqa: F401  # registers the heads
from pipeline.errors import ConfigError
from pipeline.labels import LabelSpace
from pipeline.records import BoxTarget
from tasks.detection import decode
from tasks.network import build_network
from tests.unit.backbones.trial import built_in, passes

SPACE = LabelSpace("boxes", ("a", "b", "c"))
SMALL = {"kind": "faster-rcnn", "width": 32, "anchors": [16, 32], "proposals": 40, "max_boxes": 20}


def built(backbone="plain18", **head):
    return build_network(backbone, 3, None, {"o": {**SMALL, **head}}, {"o": SPACE}, None, (96, 128))


def theirs(head, images, targets=None):
    """torchvision's FasterRCNN of the head's own parts on the same map: boxes, or losses where targets are given."""
    from torchvision.models.detection import FasterRCNN

    class Given(nn.Module):
        out_channels = 256

        def forward(self, x):
            torch.manual_seed(1)  # its transform has drawn a size before
            return images

    network = FasterRCNN(
        Given(), num_classes=None, rpn_anchor_generator=head.rpn.anchor_generator, rpn_head=head.rpn.head,
        box_roi_pool=head.roi.box_roi_pool, box_head=head.roi.box_head, box_predictor=head.roi.box_predictor,
        min_size=96, max_size=128, image_mean=[0.0] * 3, image_std=[1.0] * 3, rpn_pre_nms_top_n_test=400,
        rpn_post_nms_top_n_test=head.proposals, box_score_thresh=0.0, box_detections_per_img=20,
    )  # fmt: skip
    network.train(targets is not None)
    return network(list(torch.zeros(len(images), 3, 96, 128)), targets)


@pytest.fixture
def head():
    torch.manual_seed(0)
    made = built().heads["o"].eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.03)
    return made.requires_grad_(False)


def test_answers_are_torchvisions(head, monkeypatch):
    # Which of two scores that are alike goes first is ours to say: here none are.
    monkeypatch.setattr(decode, "LEVELS", 1 << 17)
    monkeypatch.setattr(decode, "PLACES", 1 << 9)
    maps = torch.rand(3, 256, 6, 8)
    features = [torch.zeros(3, 1, 1, 1)] * 3 + [maps, torch.zeros(3, 1, 1, 1)]
    ours = head.decode(head(features, (96, 128)))
    for image, wanted in enumerate(theirs(head, maps)):
        kept = ours.scores[image] > 0
        assert int(kept.sum()) == len(wanted["scores"])
        torch.testing.assert_close(ours.scores[image][kept], wanted["scores"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.boxes[image][kept], wanted["boxes"], rtol=1e-3, atol=1e-2)
        assert torch.equal(ours.classes[image][kept] + 1, wanted["labels"])


def test_losses_are_torchvisions(head):
    """Labelled images only, crowds left out; the same draws of samples."""
    maps = torch.rand(2, 256, 6, 8)
    xyxy = torch.tensor([[[8.0, 8, 60, 50], [70, 30, 120, 90]], [[1, 1, 20, 20], [30, 30, 90, 90]]])
    target = BoxTarget(
        xyxy, torch.tensor([[0, 2], [1, 1]]), torch.tensor([[False, False], [True, False]]), torch.tensor([True, True])
    )
    features = [torch.zeros(2, 1, 1, 1)] * 3 + [maps, torch.zeros(2, 1, 1, 1)]
    head.train()
    torch.manual_seed(1)
    found = head.loss(head(features, (96, 128)), target)
    wanted = theirs(head, maps, [
        {"boxes": xyxy[0], "labels": torch.tensor([1, 3])}, {"boxes": xyxy[1, 1:], "labels": torch.tensor([2])}
    ])  # fmt: skip
    named = {
        "objectness": "loss_objectness",
        "rpn_box": "loss_rpn_box_reg",
        "class": "loss_classifier",
        "box": "loss_box_reg",
    }
    for name, other in named.items():
        torch.testing.assert_close(found[name], wanted[other], rtol=1e-4, atol=1e-5)
    only = BoxTarget(target.xyxy, target.classes, target.crowd, torch.tensor([True, False]))
    torch.manual_seed(1)
    assert float(head.loss(head(features, (96, 128)), only)["class"]) != pytest.approx(float(found["class"]))


def test_on_vgg_it_sees_the_map_before_the_last_pooling():
    network = built("vgg-a", width=8)
    head, body = network.heads["o"], network.backbone.eval()
    assert head.rpn.head.cls_logits.in_channels == 512
    features = body(torch.rand(1, 3, 96, 128))
    raw = head(features, (96, 128))
    assert torch.equal(raw.features, features.pooled[4])
    assert raw.features.shape[2:] == (6, 8)


def test_it_runs_in_the_precision_of_its_weights():
    """`lightning inspect` checks receptive fields in float64."""
    with torch.no_grad():
        assert built().double()(torch.zeros(1, 3, 96, 128))["o"].objectness.dtype == torch.float64


def test_images_without_boxes_still_teach(head):
    empty = BoxTarget(
        torch.zeros(1, 0, 4),
        torch.zeros(1, 0, dtype=torch.int64),
        torch.zeros(1, 0, dtype=torch.bool),
        torch.tensor([True]),
    )
    maps = torch.rand(1, 256, 6, 8)
    found = head.loss(head([maps] * 5, (96, 128)), empty)
    assert all(torch.isfinite(value) for value in found.values())
    assert float(found["box"]) == 0


def test_it_trains_and_exports(tmp_path):
    passes(tmp_path, "plain18", {"objects": SMALL}, built_in(64), steps=8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"backbone": "resnet20"},
            r"Faster R-CNN needs maps at strides \[16\]; backbone 'resnet20' has maps at strides \[2, 4\]",
        ),
        ({"anchors": [0, 16]}, "are above 0"),
        ({"stride": 64}, r"needs maps at strides \[64\]"),
    ],
)
def test_what_does_not_fit_is_told_at_construction(arguments, message):
    with pytest.raises(ConfigError, match=message):
        built(**arguments)
