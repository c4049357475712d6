"""Mixup, cutmix and mosaic by hand: image labels by share, boxes and masks where the pixels are."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.data.mix import cutmix, mixup
from pipeline.data.mosaic import mosaic
from pipeline.labels import IGNORE_INDEX
from pipeline.records import Boxes


def view(value, kind, size=(60, 80), box=(10, 10, 30, 30)):
    """A plain picture with one box, whose mask is 1 in the box, and its image label."""
    image = np.full((*size, 3), value, np.uint8)
    mask = np.zeros(size, np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 1
    scene = np.eye(2, dtype=np.float32)[kind]
    return image, {"objects": Boxes.of([list(box)], [kind]), "surface": mask, "scene": scene}


def test_mixup_blends_pixels_and_image_labels_by_one_weight():
    first, second = view(200, 0), view(100, 1)
    only = [{"scene": labels["scene"]} for _, labels in (first, second)]
    for seed in range(20):
        image, labels = mixup((first[0], only[0]), (second[0], only[1]), np.random.default_rng(seed))
        weight = (float(image.mean()) - 100) / 100
        assert labels["scene"] == pytest.approx([weight, 1 - weight], abs=0.01)


def test_mixup_keeps_both_boxes_and_ignores_where_masks_differ_evenly():
    first, second = view(200, 0), view(100, 1, box=(20, 10, 40, 30))
    seen = set()
    for seed in range(40):
        image, labels = mixup(first, second, np.random.default_rng(seed))
        weight = (float(image.mean()) - 100) / 100
        assert labels["objects"].xyxy.tolist() == [[10, 10, 30, 30], [20, 10, 40, 30]]
        assert labels["objects"].classes.tolist() == [0, 1]
        plane = labels["surface"]
        assert (plane[10:30, 20:30] == 1).all()
        assert (plane[40:] == 0).all()
        expected = 1 if weight > 2 / 3 else 0 if weight < 1 / 3 else IGNORE_INDEX
        if min(abs(weight - 1 / 3), abs(weight - 2 / 3)) > 0.01:
            assert (plane[10:30, 10:20] == expected).all()
            seen.add(expected)
    assert IGNORE_INDEX in seen


def test_cutmix_sets_pixels_masks_and_boxes_in_alike():
    for seed in range(60):
        first, second = view(200, 0), view(100, 1, box=(40, 20, 70, 50))
        image, labels = cutmix(first, second, np.random.default_rng(seed))
        inside = image[:, :, 0] == 100
        assert labels["scene"] == pytest.approx([1 - inside.mean(), inside.mean()], abs=1e-5)
        assert np.array_equal(labels["surface"] == 1, np.where(inside, second[1]["surface"], first[1]["surface"]) == 1)
        boxes = labels["objects"]
        assert (0 in boxes.classes) == (inside[10:30, 10:30].mean() < 0.5)
        assert (1 in boxes.classes) == (inside[20:50, 40:70].mean() >= 0.5)
        for xyxy in boxes.xyxy[boxes.classes == 1]:
            left, top, right, bottom = xyxy.astype(int)
            assert inside[top:bottom, left:right].all()
        assert (first[0] == 200).all()  # the cached picture is left as it is


@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_what_only_one_is_labelled_for_is_left_out(mix):
    first, second = view(200, 0), view(100, 1)
    del second[1]["objects"]
    assert set(mix(first, second, np.random.default_rng(0))[1]) == {"surface", "scene"}


def test_mosaic_moves_boxes_and_masks_with_their_tiles():
    for seed in range(20):
        tiles = [view(40 * (n + 1), n % 2, size=(60 + 10 * n, 80)) for n in range(4)]
        for image, labels in tiles:
            image[labels["surface"] == 1] = 255
        image, labels = mosaic(tiles, (64, 64), np.random.default_rng(seed))
        assert image.shape == (128, 128, 3)
        assert (labels["surface"][image[:, :, 0] >= 254] == 1).all()
        assert "scene" not in labels  # the tiles disagree
        for left, top, right, bottom in labels["objects"].xyxy.round().astype(int):
            assert (image[top + 2 : bottom - 2, left + 2 : right - 2] > 250).all()


def test_mosaic_keeps_an_image_label_that_all_tiles_share():
    tiles = [view(60, 1) for _ in range(4)]
    assert mosaic(tiles, (64, 64), np.random.default_rng(0))[1]["scene"].tolist() == [0, 1]
