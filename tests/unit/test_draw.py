"""Answers drawn over pictures: what is seen, at every size, and what is left as it was."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.imaging import draw
from pipeline.imaging.draw import draw_answer, draw_mask
from pipeline.labels import IGNORE_INDEX, LabelSpace

BOXES = LabelSpace("boxes", ("cat", "dog"))


def boxes(*rows):
    return {
        "boxes": np.asarray(rows, np.float32).reshape(-1, 4),
        "scores": np.full(len(rows), 0.9, np.float32),
        "classes": np.zeros(len(rows), np.int64),
    }


def test_a_mask_tints_its_classes_and_leaves_the_rest():
    space = LabelSpace("mask", ("ground", "road"))
    image = np.full((2, 2, 3), 100, np.uint8)
    drawn = draw_mask(image, np.asarray([[0, 1], [IGNORE_INDEX, 0]], np.uint8), space, 0.5)
    wanted = [round(0.5 * 100 + 0.5 * side) for side in space.colours[1]]
    assert np.abs(drawn[0, 1].astype(int) - wanted).max() <= 1
    assert (drawn[[0, 1, 1], [0, 0, 1]] == 100).all()


@pytest.mark.parametrize("side", [40, 400, 4000])
def test_lines_and_names_are_as_large_in_relation_on_every_picture(side):
    black = np.zeros((side, side, 3), np.uint8)
    drawn = draw_answer(black, {"a": boxes((0.4 * side, 0.5 * side, 0.9 * side, 0.9 * side))}, {"a": BOXES})
    height, width = drawn.shape[:2]
    row = drawn[round(0.7 * height)].any(1)
    assert 2 / 700 < row.sum() / width < 8 / 256  # both edges, on a picture of at least 256 pixels
    name = drawn[: round(0.5 * height) - 2].any(2)
    assert 0.01 < name.any(1).sum() / height < 0.08


@pytest.mark.parametrize("at", [(0, 0, 30, 30), (290, 0, 300, 20), (-50, -50, 500, 500), (295, 295, 300, 300)])
def test_names_stay_inside_the_picture(at):
    drawn = draw_answer(np.zeros((300, 300, 3), np.uint8), {"a": boxes(at)}, {"a": BOXES})
    tag = (drawn == BOXES.colours[0]).all(2)
    assert tag.any(1).sum() > 8  # the ground of the name, and not a line alone
    assert drawn.shape == (300, 300, 3)


def test_every_label_that_counts_is_written():
    image = np.full((300, 300, 3), 90, np.uint8)
    many = LabelSpace("multilabel", ("sun", "sea", "sand"))
    values = np.asarray([0.9, 0.2, 0.6], np.float32)

    def lines(answer, space):
        """Rows of the lower left corner that a label covers, in lines of text."""
        drawn = draw_answer(image, {"a": answer}, {"a": space})
        return round((drawn[:, 1] == 0).all(1).sum() / 14)

    assert lines({"probabilities": values}, many) == 2
    assert lines({"probabilities": values, "labels": [0, 1, 2]}, many) == 3
    assert lines({"probabilities": values, "labels": []}, many) == 0
    assert lines({"probabilities": values}, LabelSpace("classes", many.names)) == 1


def test_labels_have_no_scores_and_among_many_boxes_only_names_that_fit_are_written(monkeypatch):
    written = []
    monkeypatch.setattr(draw, "_tag", lambda image, text, *_: written.append(text) or 0)
    image, few = np.zeros((256, 256, 3), np.uint8), boxes((4, 4, 9, 9), (50, 50, 200, 90))
    draw_answer(image, {"a": few | {"scores": np.ones(2)}}, {"a": BOXES})
    assert written == ["cat", "cat"]
    written.clear()
    draw_answer(image, {"a": boxes(*[(4, 4, 9, 9)] * 20, (50, 50, 200, 90))}, {"a": BOXES})
    assert written == ["cat 0.90"]
