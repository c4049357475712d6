"""Heads: losses fall, missing labels are left out, decoding has fixed shapes, and a network learns one batch."""

from __future__ import annotations

import pytest
import torch

import tasks.multitask  # noqa: F401  # registers the heads
from pipeline.errors import ConfigError
from pipeline.labels import LabelSpace
from pipeline.records import Batch, BoxTarget, ClassTarget, MaskTarget
from tasks.detection.decode import distances_to_boxes, expected_distances
from tasks.detection.head import BranchOutput, RawBoxes
from tasks.head import labelled
from tasks.network import build_network, select_heads
from tasks.segmentation import pixel_softmax

SPACES = {
    "scene": LabelSpace("classes", ("a", "b", "c")),
    "tags": LabelSpace("multilabel", ("x", "y")),
    "objects": LabelSpace("boxes", ("disc", "square")),
    "surface": LabelSpace("mask", ("ground", "disc", "square")),
}


def make_batch(present: bool = True) -> Batch:
    """Two images with a bright square each, labelled for every head, or for none."""
    images = torch.full((2, 3, 64, 64), 60, dtype=torch.uint8)
    images[0, :, 8:40, 8:40] = 220
    images[1, 0, 16:56, 24:60] = 250
    mask = torch.zeros(2, 64, 64, dtype=torch.uint8)
    mask[0, 8:40, 8:40] = 1
    mask[1, 16:56, 24:60] = 2
    flags = torch.full((2,), present)
    boxes = torch.tensor([[[8.0, 8, 40, 40]], [[24.0, 16, 60, 56]]])
    targets = {
        "scene": ClassTarget(torch.eye(3)[:2], flags),
        "tags": ClassTarget(torch.tensor([[1.0, 0], [1, 1]]), flags),
        "objects": BoxTarget(boxes, torch.tensor([[0], [1]]), torch.zeros(2, 1, dtype=torch.bool), flags),
        "surface": MaskTarget(mask, flags),
    }
    return Batch(images, targets, ["one.png", "two.png"], [None, None])


def make_network():
    return build_network(
        "resnet18", 3, None, select_heads(None, SPACES, ("classes", "multilabel", "boxes", "mask")), SPACES
    )


@pytest.mark.parametrize("nms", [False, True])
def test_boxes_of_the_best_points_alone_are_the_best_of_all(nms):
    torch.manual_seed(0)
    head = make_network().heads["objects"].eval()
    head.nms, head.max_boxes, head.nms_iou = nms, 20, 1.0  # nothing is suppressed
    points, strides = torch.rand(150, 2) * 64, torch.tensor([8.0, 16.0]).repeat(75)
    branch = BranchOutput(torch.randn(3, 150, 2), torch.randn(3, 150, 4, 16))
    found = head.decode(RawBoxes(branch, branch, points, strides))
    boxes = distances_to_boxes(expected_distances(branch.sides), points, strides)
    scores, pairs = branch.logits.sigmoid().flatten(1).topk(20)
    torch.testing.assert_close(found.scores, scores)
    assert torch.equal(found.classes, pairs % 2)
    for image in range(3):
        torch.testing.assert_close(found.boxes[image], boxes[image, pairs[image] // 2])


def test_given_one_batch_when_trained_then_every_head_learns_it():
    torch.manual_seed(0)
    network, batch = make_network(), make_batch()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    network.train()
    for _ in range(60):
        raw = network(batch.images)
        loss = sum(sum(head.loss(raw[n], batch.targets[n]).values()) for n, head in network.named_heads().items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Batch statistics of two images: evaluate with them, as running averages lag behind.
    with torch.no_grad():
        network.train()
        network.heads["scene"].dropout.eval()
        raw = network(batch.images)
        predictions = network.decode(raw)
    assert predictions["scene"].probabilities.argmax(1).tolist() == [0, 1]
    assert (predictions["tags"].probabilities > 0.5).tolist() == [[True, False], [True, True]]
    assert (predictions["surface"].mask == batch.targets["surface"].mask).float().mean() > 0.97
    best = predictions["objects"]
    assert best.classes[:, 0].tolist() == [0, 1]
    assert (best.boxes[:, 0] - batch.targets["objects"].xyxy[:, 0]).abs().max() < 4
    metrics = network.heads["objects"].metrics()
    metrics.update(best, batch.targets["objects"], batch.frames)
    assert metrics.compute()["AP50"] > 0.99


def test_given_no_label_when_asked_then_the_head_is_left_out():
    batch = make_batch(present=False)
    assert not any(labelled(target) for target in batch.targets.values())
    for name, head in make_network().named_heads().items():
        metrics = head.metrics()
        metrics.update(head.decode(make_network().eval()(batch.images)[name]), batch.targets[name], batch.frames)
        assert all(value != value for value in metrics.compute().values())


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_decoded_answers_have_fixed_shapes(batch_size):
    network = make_network().eval()
    with torch.no_grad():
        out = network.decode(network(torch.zeros(batch_size, 3, 64, 96, dtype=torch.uint8)))
    assert out["scene"].probabilities.shape == (batch_size, 3)
    assert out["surface"].mask.shape == (batch_size, 64, 96)
    assert out["surface"].mask.dtype == torch.uint8
    assert out["objects"].boxes.shape == (batch_size, 100, 4)


def test_unknown_names_are_told_with_the_nearest():
    kinds = ("classes", "boxes", "mask")
    with pytest.raises(ConfigError, match="did you mean 'objects'"):
        select_heads({"object": {}}, SPACES, kinds)
    with pytest.raises(ConfigError, match="did you mean 'width'"):
        build_network("resnet18", 3, None, {"objects": {"widht": 3}}, SPACES)
    with pytest.raises(ConfigError, match="did you mean 'resnet18'"):
        build_network("resnet81", 3, None, {"objects": {}}, SPACES)
    with pytest.raises(ConfigError, match="objects"):
        build_network("resnet18", 3, None, {"objects": {"width": "wide"}}, SPACES)


@pytest.mark.parametrize(
    ("head", "options", "told"),
    [
        ("scene", {"dropout": 1.5}, "dropout must be from 0 to 1"),
        ("scene", {"label_smoothing": 2}, "label_smoothing must be from 0 to 1"),
        ("scene", {"loss": "focl"}, "loss cannot be 'focl'; did you mean 'focal'"),
        ("scene", {"class_weights": [1, 2]}, "class_weights has 2 weights for 3 classes"),
        ("surface", {"class_weights": [1, -2]}, "class_weights must be 0 or more"),
        ("surface", {"decoder": "smp-unet", "decoder_channels": [0, 1, 2, 3]}, "decoder_channels must be 1 or more"),
        (
            "surface",
            {"decoder_channels": [8, 8, 8, 8]},
            "decoder_channels are .*'smp-unet', not of 'light-unet': add decoder",
        ),
        ("surface", {"dice": -1}, "dice must be 0 or more"),
        ("objects", {"bins": 1}, "bins must be 2 or more"),
        ("objects", {"max_boxes": 0}, "max_boxes must be 1 or more"),
        ("objects", {"box_weight": -1.0}, "box_weight must be 0 or more"),
    ],
)
def test_an_option_that_cannot_train_is_told_with_its_head(head, options, told):
    with pytest.raises(ConfigError, match=rf"head '{head}' \(\w+\): {told}"):
        build_network("light", 3, None, {head: options}, SPACES)


def test_a_field_may_have_any_name():
    """Also those that a torch module cannot take: the names of its attributes, and dots."""
    names = ("type", "items", "training", "is.cell", "is_cell", "indoor/outdoor", "scene type")
    spaces = {name: LabelSpace("classes", ("a", "b")) for name in names}
    network = build_network("light", 3, None, {name: {} for name in names}, spaces).train()
    assert set(network(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))) == set(names) == set(network.named_heads())
    again = build_network("light", 3, None, {name: {} for name in names}, spaces)
    again.load_state_dict(network.state_dict())


@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_softmax_of_pixels_is_torchs(scale):
    logits = scale * torch.randn(2, 5, 8, 6)
    torch.testing.assert_close(pixel_softmax(logits), logits.softmax(1))
