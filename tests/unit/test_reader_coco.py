"""COCO JSON as read: boxes, polygons and RLE, a file per split; every fault names the file and the annotation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pipeline.data.formats.coco import read_coco
from pipeline.errors import DataError
from pipeline.imaging.masks import ShapeMask
from tests.unit.folders import boxes_of, coco, of_kind, only, picture, text

SQUARE = [[2, 2, 8, 2, 8, 8, 2, 8]]


def row(image: int = 1, category: int = 10, bbox: object = (5, 4, 10, 8), **more: object) -> dict[str, object]:
    return {"image_id": image, "category_id": category, "bbox": bbox, **more}


@pytest.fixture
def two(tmp_path: Path) -> Path:
    picture(tmp_path / "images" / "a.png", 1)
    picture(tmp_path / "images" / "b.png", 2)
    return tmp_path


def test_coco_boxes_become_corners_and_ids_class_indices(two):
    coco(two / "boxes.json", ["a.png", "b.png"], [row(), row(category=20, bbox=[0, 0, 3, 2], iscrowd=1)])
    source = read_coco(two)
    assert source.spaces["boxes"].names == ("cat", "dog")
    assert [record.image.name for record in source.records] == [str(two / "images" / n) for n in ("a.png", "b.png")]
    assert boxes_of(source.records[0]) == [(0, 5, 4, 15, 12), (1, 0, 0, 3, 2)]
    assert source.records[0].labels["boxes"].crowd.tolist() == [False, True]
    assert source.problems == []


def test_coco_image_without_annotations_is_labelled_with_nothing(two):
    coco(two / "boxes.json", ["a.png", "b.png"], [row()])
    record = read_coco(two).records[1]
    assert len(record.labels["boxes"]) == 0
    assert "mask" not in record.labels


def test_coco_polygons_are_boxes_and_masks(two):
    coco(two / "boxes.json", ["a.png", "b.png"], [row(category=20, bbox=None, segmentation=SQUARE)])
    source = read_coco(two)
    assert source.spaces["mask"].names == ("background", "cat", "dog")
    assert boxes_of(source.records[0]) == [(1, 2, 2, 8, 8)]
    mask = source.records[0].labels["mask"].read((20, 30))
    wanted = np.zeros((20, 30), np.uint8)
    wanted[2:9, 2:9] = 2
    assert np.array_equal(mask, wanted)
    # Nothing in the other image, and the file has outlines: all of it is background.
    assert not source.records[1].labels["mask"].read((20, 30)).any()


@pytest.mark.parametrize("packed", [True, False], ids=["compressed", "run lengths"])
def test_coco_rle_is_mask_and_box(two, packed):
    shape = np.random.default_rng(0).random((20, 30)) > 0.6
    rle = coco_mask.encode(np.asfortranarray(shape.astype(np.uint8)))
    counts = rle["counts"].decode()
    if not packed:
        flat = shape.reshape(-1, order="F")
        changes = np.flatnonzero(np.diff(np.concatenate([[False], flat])))
        counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    coco(two / "boxes.json", ["a.png", "b.png"], [row(bbox=None, segmentation={"size": [20, 30], "counts": counts})])
    source = read_coco(two)
    assert source.problems == []
    assert np.array_equal(source.records[0].labels["mask"].read((20, 30)), shape.astype(np.uint8))
    ys, xs = np.nonzero(shape)
    assert boxes_of(source.records[0]) == [(0, xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)]


def test_coco_compressed_run_lengths_of_any_size_are_understood(tmp_path):
    picture(tmp_path / "a.png", size=(300, 400))
    rng = np.random.default_rng(1)
    rows = []
    for density in (0.0, 0.01, 0.5, 0.999, 1.0):
        rle = coco_mask.encode(np.asfortranarray((rng.random((300, 400)) < density).astype(np.uint8)))
        rows.append(row(bbox=[1, 1, 5, 5], segmentation={"size": [300, 400], "counts": rle["counts"].decode()}))
    coco(tmp_path / "boxes.json", ["a.png"], rows, size=(300, 400))
    assert of_kind(read_coco(tmp_path).problems, "broken label") == []


def test_coco_objects_without_outline_leave_the_image_without_mask(two):
    coco(
        two / "boxes.json",
        ["a.png", "b.png"],
        [row(segmentation=SQUARE), row(category=20), row(2, segmentation=SQUARE)],
    )
    source = read_coco(two)
    assert "mask" not in source.records[0].labels
    assert isinstance(source.records[1].labels["mask"], ShapeMask)
    problem = only(source.problems, "incomplete mask")
    assert "a.png" in problem.message
    assert "boxes.json" in problem.where


@pytest.mark.parametrize(
    ("annotation", "kind", "told"),
    [
        (row(category=99), "unknown class", "category 99 of a.png"),
        (row(bbox=[1, 2, 3]), "broken label", "[1, 2, 3] is not four numbers"),
        (row(bbox=[1, 2, "wide", 3]), "broken label", "is not four numbers"),
        (row(bbox=[1, 2, float("nan"), 3]), "broken label", "is not four numbers"),
        (row(segmentation=[[1, 1, 2, 2]]), "broken label", "segmentation of a.png: a polygon needs three"),
        (row(segmentation="outline"), "broken label", "neither a list of polygons nor an RLE"),
        (row(segmentation={"counts": "abc"}), "broken label", "an RLE needs `size` and `counts`"),
        (row(segmentation={"size": [20], "counts": [600]}), "broken label", "`size` is height and width"),
        (row(segmentation={"size": [9, 9], "counts": [81]}), "broken label", "an RLE of [9, 9]"),
        (row(segmentation={"size": [20, 30], "counts": [10, 10]}), "broken label", "add up to 20 pixels"),
        (row(segmentation={"size": [20, 30], "counts": "04"}), "broken label", "add up to 4 pixels"),
        (row(segmentation={"size": [20, 30], "counts": "~é"}), "broken label", "not whole numbers"),
        (row(segmentation={"size": [20, 30], "counts": [-5, 605]}), "broken label", "not whole numbers"),
        (row(bbox=[5, 5, 0, 3]), "zero-size box", "no area"),
        (row(bbox=[40, 5, 4, 3]), "box out of image", "lies outside: dropped"),
        (row(bbox=[25, 5, 20, 3]), "box out of image", "reaches out: cut"),
    ],
)
def test_coco_faults_name_file_and_annotation(two, annotation, kind, told):
    coco(two / "boxes.json", ["a.png", "b.png"], [row(2), annotation])
    problem = only(read_coco(two).problems, kind)
    assert problem.where == f"{two / 'boxes.json'}: annotations[1]"
    assert told in problem.message


def test_coco_boxes_out_of_the_image_are_found_where_the_json_states_no_size(two):
    coco(two / "boxes.json", ["a.png", "b.png"], [row(bbox=[25, 5, 20, 3])], size=None)
    source = read_coco(two)
    assert boxes_of(source.records[0]) == [(0, 25, 5, 30, 8)]
    assert only(source.problems, "box out of image").where.endswith("annotations[0]")


def test_coco_double_boxes_are_dropped_and_told(two):
    coco(two / "boxes.json", ["a.png", "b.png"], [row(), row()])
    source = read_coco(two)
    assert len(source.records[0].labels["boxes"]) == 1
    assert only(source.problems, "double box").where.endswith("annotations[1]")


def test_coco_labels_of_no_image_are_told(two):
    coco(two / "boxes.json", ["a.png", "gone.png"], [row(), row(7)])
    source = read_coco(two)
    gone = only(source.problems, "label without image")
    assert (gone.severity, gone.where) == ("error", f"{two / 'boxes.json'}: images[1]")
    assert "gone.png" in gone.message
    assert "1 annotations" in only(source.problems, "label of no image").message


def test_coco_names_of_several_images_are_told_with_the_candidates(tmp_path):
    picture(tmp_path / "left" / "a.png", 1)
    picture(tmp_path / "right" / "a.png", 2)
    coco(tmp_path / "boxes.json", ["a.png"], [row()])
    problem = only(read_coco(tmp_path).problems, "ambiguous image")
    assert problem.where == f"{tmp_path / 'boxes.json'}: images[0]"
    assert "left/a.png, right/a.png" in problem.message


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"images": [\n{"id": 1,}], "categories": []}', r"boxes\.json:2: not valid JSON"),
        ('{"images": 3, "annotations": [], "categories": []}', r"boxes\.json: `images` must be a list"),
        ('{"images": [7], "annotations": [], "categories": []}', r"boxes\.json: images\[0\] must be an object"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', r"images\[0\] has no `file_name`"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', r"categories\[0\] has no `id` or no `name`"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}',
            r"boxes\.json: several categories have the name a",
        ),
        (
            '{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], "annotations": [], "categories": []}',
            r"boxes\.json: images\[0\] and images\[1\] have the same `id` 1",
        ),
    ],
)
def test_coco_files_that_cannot_be_used_are_errors_with_their_place(two, content, told):
    text(two / "boxes.json", content)
    with pytest.raises(DataError, match=told):
        read_coco(two)


def test_coco_one_file_per_split_gives_splits_and_one_class_list(tmp_path):
    for number, split in enumerate(("train", "val")):
        picture(tmp_path / f"{split}2017" / "a.png", number)
        coco(tmp_path / "annotations" / f"instances_{split}2017.json", ["a.png"], [row()], names=("cat", split))
    # Captions stand beside the instances, and a test list without annotations is not an empty one.
    text(tmp_path / "annotations" / "captions_train2017.json", json.dumps({"images": [], "annotations": []}))
    text(tmp_path / "annotations" / "instances_test2017.json", json.dumps({"images": [], "categories": []}))
    source = read_coco(tmp_path)
    assert [(r.split, Path(r.image.name).parent.name) for r in source.records] == [
        ("train", "train2017"),
        ("val", "val2017"),
    ]
    assert source.spaces["boxes"].names == ("cat", "train", "val")
    assert "instances_test2017.json" in only(source.problems, "no labels").where
