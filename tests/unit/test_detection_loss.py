"""The detection head's loss: crowd regions and unlabelled images count for nothing; every taken point gets a gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline.labels import LabelSpace
from pipeline.records import BoxTarget
from tasks.detection.decode import anchor_points
from tasks.detection.head import BranchOutput, DetectionHead, RawBoxes


@pytest.fixture
def head():
    torch.manual_seed(0)
    return DetectionHead(LabelSpace("boxes", ("disc",)), (8, 8, 8, 8, 8), strides=[8], width=32)


def raw_boxes(images, seed=1):
    """Raw outputs of both branches for pictures of 64 x 64 at stride 8, and the leaves that get the gradients."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, 64, 1, generator=generator).requires_grad_()
    sides = torch.randn(images, 64, 4, 16, generator=generator).requires_grad_()
    points, strides = anchor_points([(8, 8)], [8], torch.device("cpu"))
    branch = BranchOutput(logits, sides)
    return RawBoxes(branch, branch, points, strides), logits, sides


def target(boxes, crowd, present):
    xyxy = torch.tensor(boxes, dtype=torch.float32)
    return BoxTarget(xyxy, torch.zeros(xyxy.shape[:2], dtype=torch.long), torch.tensor(crowd), torch.tensor(present))


def test_points_in_a_crowd_region_are_neither_object_nor_background(head):
    raw, logits, sides = raw_boxes(1)
    given = target([[[4.0, 4, 20, 20], [32.0, 32, 64, 64]]], [[False, True]], [True])
    sum(head.loss(raw, given).values()).backward()
    inside = (raw.points > 32).all(1)
    assert int(inside.sum()) == 16
    assert logits.grad[0, inside].abs().max() == 0
    assert (logits.grad[0, ~inside] != 0).all()
    assert sides.grad[0, inside].abs().max() == 0
    # The same region as an object is learnt.
    raw, logits, sides = raw_boxes(1)
    sum(head.loss(raw, replace(given, crowd=torch.zeros(1, 2, dtype=torch.bool))).values()).backward()
    assert (logits.grad[0, inside] != 0).all()
    assert sides.grad[0, inside].abs().max() > 0


def test_an_unlabelled_image_changes_nothing(head):
    box, nothing = [[4.0, 4, 28, 28]], [[0.0, 0, 0, 0]]
    raw, logits, _ = raw_boxes(2)
    both = head.loss(raw, target([box, nothing], [[False], [False]], [True, False]))
    sum(both.values()).backward()
    assert logits.grad[1].abs().max() == 0
    alone = RawBoxes(*(BranchOutput(b.logits[:1], b.sides[:1]) for b in raw[:2]), *raw[2:])
    single = head.loss(alone, target([box], [[False]], [True]))
    assert {name: v.item() for name, v in both.items()} == pytest.approx({n: v.item() for n, v in single.items()})


def test_only_the_points_that_answer_for_a_box_get_a_gradient_of_its_sides(head):
    raw, _, sides = raw_boxes(1)
    sum(head.loss(raw, target([[[8.0, 8, 40, 40]]], [[False]], [True])).values()).backward()
    touched = sides.grad[0].abs().sum((1, 2)) > 0
    inside = ((raw.points > 8) & (raw.points < 40)).all(1)
    assert 1 <= int(touched.sum()) <= head.topk
    assert (touched & ~inside).sum() == 0
