"""Faster R-CNN keeps the same boxes whatever the last digits of their scores are."""

from __future__ import annotations

import pytest
import torch

import tasks.multitask  # noqa: F401  # registers the heads
from pipeline.labels import LabelSpace
from tasks.detection.decode import BoxPrediction, logit, steady_order, suppress, surviving
from tasks.network import build_network


def test_logits_that_are_alike_keep_their_places():
    logits = torch.tensor([[0.5, 0.9, 0.5 + 1e-6, -3.0, 0.5 - 1e-6, 99.0, -99.0]])
    assert steady_order(logits, 9).tolist() == [[5, 1, 0, 2, 4, 3, 6]]
    assert steady_order(logits, 3).tolist() == [[5, 1, 0]]
    level = 1e-6 * torch.randn(2, 3000)
    assert steady_order(level, 100).tolist() == [list(range(100))] * 2


def test_logits_that_are_not_alike_are_ordered_as_by_topk():
    torch.manual_seed(0)
    logits = torch.linspace(-8, 8, 5000)[torch.randperm(5000)][None]
    assert torch.equal(steady_order(logits, 800), logits.topk(800).indices)
    assert torch.equal(steady_order(logit(logits.sigmoid()), 800), logits.topk(800).indices)


def test_more_places_than_are_told_apart_still_give_the_best():
    logits = torch.zeros(1, 200_000)
    logits[0, [150_000, 199_999]] = torch.tensor([0.5, 0.7])
    assert steady_order(logits, 2).tolist() == [[199_999, 150_000]]


def test_survivors_are_those_of_suppression_by_scores():
    torch.manual_seed(0)
    low = torch.rand(3, 50, 2) * 40
    boxes = torch.cat([low, low + 5 + torch.rand(3, 50, 2) * 30], 2)
    scores = torch.rand(3, 50).sort(dim=1, descending=True).values
    classes = torch.randint(0, 2, (3, 50))
    alive = surviving(boxes, classes, 0.5)
    wanted = suppress(BoxPrediction(boxes, scores, classes), 0.5)
    assert torch.equal((scores * alive).sort(dim=1, descending=True).values, wanted.scores)
    assert 0 < alive.sum() < alive.numel()


@pytest.fixture(scope="module")
def head():
    torch.manual_seed(0)
    space = LabelSpace("boxes", ("a", "b"))
    options = {"kind": "faster-rcnn", "width": 32, "anchors": [16, 32], "proposals": 40, "max_boxes": 20}
    return build_network("plain18", 3, None, {"o": options}, {"o": space}, None, (96, 128)).heads["o"].eval()


def test_another_engines_last_digits_change_no_box(head):
    """An untrained head on a flat picture: all places of a kind score alike but for rounding."""
    torch.manual_seed(1)
    maps = torch.rand(1, 256, 1, 1).expand(2, 256, 6, 8).contiguous()
    with torch.no_grad():
        raw = head(([torch.zeros(2, 1, 1, 1)] * 3) + [maps, torch.zeros(2, 1, 1, 1)], (96, 128))
        plain = head.decode(raw)
        for seed in range(5):
            torch.manual_seed(seed)
            noise = 1e-6 * torch.randn_like(raw.objectness)
            other = head.decode(raw._replace(objectness=raw.objectness + noise))
            torch.testing.assert_close(other.scores, plain.scores)
            found = {tuple(box) for box in other.boxes.reshape(-1, 4).round(decimals=2).tolist()}
            assert found == {tuple(box) for box in plain.boxes.reshape(-1, 4).round(decimals=2).tolist()}
