"""Task-aligned assignment against the plain definition over all pairs of boxes and points."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.detection.assignment import assign, pair_iou
from tasks.detection.decode import anchor_points


def by_definition(scores, boxes, points, strides, wanted, classes, topk, alpha=0.5, beta=6.0):
    """Loops over images, boxes and points; returns {(image, point): (box, strength)}."""
    out = {}
    for image in range(len(scores)):
        chosen = []
        for number, box in enumerate(wanted[image]):
            kind = int(classes[image, number])
            if kind < 0:
                continue
            rows = []
            for at, (point, stride) in enumerate(zip(points, strides, strict=True)):
                inside = bool((point > box[:2]).all() and (point < box[2:]).all())
                small = float((box[2:] - box[:2]).min()) < 2 * float(stride)
                near = float((point - (box[:2] + box[2:]) / 2).abs().max()) < float(stride)
                if inside or (small and near):
                    iou = float(pair_iou(box[None], boxes[image, at][None]))
                    own = float(scores[image, at, kind])
                    rows.append((own**alpha * iou**beta + 1e-9 * (1 + own), at, iou, own**alpha * iou**beta))
            rows.sort(reverse=True)
            chosen += [(at, number, iou, align) for _, at, iou, align in rows[:topk]]
        best = {}
        for at, number, iou, align in chosen:
            if at not in best or iou > best[at][1]:
                best[at] = (number, iou, align)
        for number in {row[0] for row in best.values()}:
            mine = [row for row in best.values() if row[0] == number]
            scale = max(row[1] for row in mine) / max(1e-9, *(row[2] for row in mine))
            for at, row in best.items():
                if row[0] == number:
                    out[image, at] = (number, row[2] * scale)
    return out


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 4]))
def test_it_agrees_with_the_definition(seed, topk):
    torch.manual_seed(seed)
    points, strides = anchor_points([(8, 6), (4, 3)], [8, 16], torch.device("cpu"))
    corner = torch.rand(2, 5, 2) * torch.tensor([40.0, 56.0])
    wanted = torch.cat([corner, corner + 1 + torch.rand(2, 5, 2) * 30], -1)
    classes = torch.randint(-1, 3, (2, 5))
    boxes = torch.cat([points - torch.rand(2, 60, 2) * 12, points + torch.rand(2, 60, 2) * 12], -1)
    scores = torch.rand(2, 60, 3)
    given_ = assign(scores, boxes, points, strides, wanted, classes, topk)
    expected = by_definition(scores, boxes, points, strides, wanted, classes, topk)
    assert {tuple(pair) for pair in given_.taken.nonzero().tolist()} == set(expected)
    for (image, at), (number, strength) in expected.items():
        assert torch.equal(given_.boxes[image, at], wanted[image, number])
        found = given_.scores[image, at]
        assert float(found[classes[image, number]]) == float(found.sum())
        assert abs(float(found.sum()) - strength) < 1e-4 * max(1.0, strength)


def test_every_box_that_holds_a_point_is_answered_for_however_bad_the_guess():
    points, strides = anchor_points([(4, 4)], [8], torch.device("cpu"))
    wanted = torch.tensor([[[1.0, 1.0, 30.0, 30.0], [12.5, 12.5, 13.5, 13.5]]])
    boxes = torch.full((1, 16, 4), 100.0)
    given_ = assign(torch.full((1, 16, 1), 0.01), boxes, points, strides, wanted, torch.zeros(1, 2).long(), 1)
    assert int(given_.taken.sum()) == 2


def test_images_without_boxes_have_no_targets():
    points, strides = anchor_points([(4, 4)], [8], torch.device("cpu"))
    for wanted in (torch.zeros(2, 0, 4), torch.zeros(2, 3, 4)):
        classes = torch.full(wanted.shape[:2], -1)
        given_ = assign(torch.rand(2, 16, 3), torch.rand(2, 16, 4), points, strides, wanted, classes, 10)
        assert not given_.taken.any()
        assert not given_.scores.any()
