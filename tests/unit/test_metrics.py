"""Metrics against references: pycocotools, torchvision, and hand-computed cases."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import complete_box_iou_loss, sigmoid_focal_loss

import tasks.multitask  # noqa: F401  # registers the heads
from pipeline.average_precision import ImageBoxes, coco_evaluation, coco_rows
from pipeline.labels import LabelSpace
from pipeline.records import BoxTarget, ClassTarget, MaskTarget
from tasks.classification import (
    ClassMetrics,
    ClassPrediction,
    multilabel_loss,
    precision_over_recall,
    soft_cross_entropy,
)
from tasks.detection.decode import BoxPrediction
from tasks.detection.loss import complete_iou
from tasks.detection.metrics import BoxMetrics
from tasks.network import build_network
from tasks.segmentation import MaskMetrics, MaskPrediction, RawMask, dice_loss, pixel_loss


def random_images(seed: int) -> list[ImageBoxes]:
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(20):
        wanted = rng.uniform(0, 200, (rng.integers(0, 8), 4))
        wanted[:, 2:] = wanted[:, :2] + rng.uniform(5, 150, (len(wanted), 2))
        guesses = np.concatenate([wanted + rng.normal(0, 6, wanted.shape), rng.uniform(0, 100, (3, 4))])
        guesses[:, 2:] = np.maximum(guesses[:, 2:], guesses[:, :2] + 2)
        classes = rng.integers(0, 3, len(wanted))
        guessed = np.concatenate([classes, rng.integers(0, 3, 3)])
        crowd = rng.random(len(wanted)) < 0.15
        images.append(ImageBoxes(guesses, rng.random(len(guesses)), guessed, wanted, classes, crowd))
    return images


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_average_precision_equals_pycocotools(seed):
    images = random_images(seed)
    fast = coco_evaluation(images, 3)
    truth, guesses = coco_rows(images)
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = {
            "info": {},
            "images": [{"id": i + 1} for i in range(len(images))],
            "annotations": truth,
            "categories": [{"id": i + 1, "name": str(i)} for i in range(3)],
        }
        ground.createIndex()
        reference = COCOeval(ground, ground.loadRes(guesses), "bbox")
        reference.evaluate()
        reference.accumulate()
    assert np.abs(fast["precision"] - reference.eval["precision"]).max() < 1e-6
    assert np.abs(fast["recall"] - reference.eval["recall"]).max() < 1e-6


def make_boxes(wanted, guesses):
    """One image: lists of labelled and guessed boxes of class 0, scores descending."""
    target = BoxTarget(
        torch.tensor(wanted, dtype=torch.float32).reshape(1, -1, 4),
        torch.zeros(1, len(wanted), dtype=torch.long),
        torch.zeros(1, len(wanted), dtype=torch.bool),
        torch.tensor([True]),
    )
    scores = torch.linspace(0.9, 0.5, max(len(guesses), 1))[: len(guesses)][None]
    found = BoxPrediction(
        torch.tensor(guesses, dtype=torch.float32).reshape(1, -1, 4),
        scores,
        torch.zeros(1, len(guesses), dtype=torch.long),
    )
    return found, target


def test_boxes_on_an_empty_image_count_as_false_positives():
    metrics = BoxMetrics(LabelSpace("boxes", ("a",)))
    metrics.update(*make_boxes([[0, 0, 10, 10]], [[0, 0, 10, 10]]), [None])
    assert metrics.compute()["AP"] == pytest.approx(1.0)
    found, empty = make_boxes([], [[5, 5, 20, 20]])
    metrics.update(found._replace(scores=found.scores + 0.05), empty, [None])
    assert metrics.compute()["AP"] == pytest.approx(0.5)


def test_no_box_at_all_is_not_a_number_and_never_minus_one():
    metrics = BoxMetrics(LabelSpace("boxes", ("a",)))
    metrics.update(*make_boxes([], []), [None])
    assert all(math.isnan(value) for value in metrics.compute().values())
    assert "AP_large" not in metrics.compute()


def test_complete_iou_equals_torchvision():
    torch.manual_seed(0)
    boxes = torch.rand(30, 4) * 50
    boxes[:, 2:] += boxes[:, :2] + 1
    others = boxes.roll(1, 0) + 2
    assert torch.allclose(1 - complete_iou(boxes, others), complete_box_iou_loss(boxes, others), atol=1e-4)


def test_mask_metrics_by_hand():
    metrics = MaskMetrics(LabelSpace("mask", ("ground", "thing")))
    wanted = torch.tensor([[[0, 0, 1, 255]]], dtype=torch.uint8)
    guess = torch.tensor([[[0, 1, 1, 1]]], dtype=torch.uint8)
    prediction = MaskPrediction(guess, torch.zeros(1, 2, 1, 4))
    metrics.update(prediction, MaskTarget(wanted, torch.tensor([True])), [None])
    values = metrics.compute()
    assert values["IoU/ground"] == pytest.approx(0.5)
    assert values["IoU/thing"] == pytest.approx(0.5)
    assert values["accuracy"] == pytest.approx(2 / 3)


def test_class_metrics_by_hand():
    metrics = ClassMetrics(LabelSpace("classes", ("a", "b")))
    p = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.3, 0.7]])
    scores = torch.tensor([[1.0, 0], [0, 1], [0, 1], [0, 0]])
    metrics.update(ClassPrediction(p), ClassTarget(scores, torch.tensor([True, True, True, False])), [])
    values = metrics.compute()
    assert values["accuracy"] == pytest.approx(2 / 3)
    assert values["recall/b"] == pytest.approx(0.5)
    assert metrics.curves()["confusion"] == [[1, 0], [1, 1]]


def test_calibration_error_and_reliability_by_hand():
    """Four images at confidence 0.9, three of them right: the error is 0.15."""
    metrics = ClassMetrics(LabelSpace("classes", ("a", "b")))
    scores = torch.eye(2)[torch.tensor([0, 0, 0, 1])]
    metrics.update(
        ClassPrediction(torch.tensor([[0.9, 0.1]]).repeat(4, 1)), ClassTarget(scores, torch.ones(4).bool()), []
    )
    assert metrics.compute()["ECE"] == pytest.approx(0.15, abs=1e-6)
    ((confidence, accuracy, images),) = metrics.curves()["reliability"]
    assert (confidence, accuracy, images) == (pytest.approx(0.9), 0.75, 4)


def test_multi_label_figures_and_curves_by_hand():
    metrics = ClassMetrics(LabelSpace("multilabel", ("x", "y", "never")), threshold=0.5)
    p = torch.tensor([[0.9, 0.2, 0.1], [0.8, 0.7, 0.1], [0.6, 0.6, 0.1], [0.1, 0.4, 0.9]])
    wanted = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]])
    metrics.update(ClassPrediction(p), ClassTarget(wanted, torch.tensor([True, True, True, True])), [])
    values = metrics.compute()
    assert values["accuracy"] == pytest.approx(10 / 12)
    assert values["F1/x"] == pytest.approx(0.8)
    assert values["F1/y"] == pytest.approx(1.0)
    curves = metrics.curves()["precision_recall"]
    assert set(curves) == {"x", "y"}  # nothing can be drawn of a class that does not occur
    assert curves["y"] == [1.0] * 101
    assert curves["x"][:51] == [1.0] * 51
    assert curves["x"][51:] == pytest.approx([2 / 3] * 50)


def test_precision_over_recall_is_scikit_learns():
    from sklearn.metrics import precision_recall_curve

    torch.manual_seed(0)
    scores, wanted = torch.rand(80), torch.rand(80) < 0.3
    precision, recall, _ = precision_recall_curve(wanted.numpy(), scores.numpy())
    best = [precision[recall >= i / 100 - 1e-9].max() for i in range(101)]
    # scikit-learn adds the point of no answer at all, with precision 1.
    assert precision_over_recall(scores, wanted)[1:] == pytest.approx(best[1:], abs=1e-6)


def test_focal_losses_look_away_from_what_is_easy():
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.eye(2)
    p = logits.softmax(1).diagonal()
    wanted = float(-((1 - p) ** 2 * p.log()).mean())
    assert float(soft_cross_entropy(logits, labels, None, gamma=2.0)) == pytest.approx(wanted, rel=1e-5)
    planes, mask = logits.reshape(2, 2, 1, 1), torch.tensor([0, 1]).reshape(2, 1, 1)
    assert float(pixel_loss(planes, mask, None, 2.0)) == pytest.approx(wanted, rel=1e-5)
    raw, scores = torch.randn(5, 3), (torch.rand(5, 3) > 0.5).float()
    reference = sigmoid_focal_loss(raw, scores, alpha=-1, gamma=2.0, reduction="mean")
    assert float(multilabel_loss(raw, scores, None, gamma=2.0)) == pytest.approx(float(reference), rel=1e-4)


def test_the_mask_heads_lovasz_loss_is_one_minus_iou_of_a_sure_answer():
    spaces = {"surface": LabelSpace("mask", ("ground", "thing"))}
    heads = {"surface": {"lovasz": 2.0, "dice": 0.0}}
    head = build_network("light", 3, None, heads, spaces).heads["surface"]
    wanted = torch.tensor([[[0, 0, 1, 1, 255]]], dtype=torch.uint8)
    sure = torch.tensor([[0, 1, 1, 1, 0]])
    logits = torch.nn.functional.one_hot(sure, 2).float().movedim(-1, 1)[:, :, None] * 200 - 100
    terms = head.loss(RawMask(logits, []), MaskTarget(wanted, torch.tensor([True])))
    assert set(terms) == {"pixel", "lovasz"}
    assert float(terms["lovasz"]) == pytest.approx(2 * (1 - (1 / 2 + 2 / 3) / 2), abs=1e-3)


def test_losses_equal_torch():
    torch.manual_seed(1)
    logits, labels, weights = torch.randn(6, 4), torch.randint(0, 4, (6,)), torch.rand(4) + 0.5
    ours = soft_cross_entropy(logits, torch.eye(4)[labels], weights, smoothing=0.0)
    assert ours == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels, weights)), abs=1e-5)
    smooth = soft_cross_entropy(logits, torch.eye(4)[labels], None, smoothing=0.1)
    assert smooth == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)), abs=1e-5
    )
    mask = torch.randint(0, 4, (2, 5, 5))
    mask[0, 0] = 255
    planes = torch.randn(2, 4, 5, 5)
    assert pixel_loss(planes, mask, None) == pytest.approx(
        float(torch.nn.functional.cross_entropy(planes, mask, ignore_index=255)), abs=1e-5
    )
    perfect = torch.nn.functional.one_hot(mask.clamp(max=3), 4).movedim(-1, 1) * 50.0
    assert dice_loss(perfect, mask) < 1e-4
