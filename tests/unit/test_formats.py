"""Which formats a folder is found to hold, and several of them in one data set joined by image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.formats.detect import READERS, detect, read_source
from pipeline.errors import DataError
from pipeline.records import Boxes
from tests.unit.folders import boxes_of, coco, of_kind, only, picture, plane, text, voc

MASK = np.repeat(np.arange(2, dtype=np.uint8), 10)[:, None].repeat(30, 1)


def as_coco(root: Path) -> None:
    picture(root / "images" / "a.png", 1)
    coco(root / "labels.json", ["a.png"], [{"image_id": 1, "category_id": 10, "bbox": [5, 4, 10, 8]}])


def as_voc(root: Path) -> None:
    picture(root / "JPEGImages" / "a.png", 1)
    voc(root / "Annotations" / "a.xml", [("cat", (5, 4, 15, 12))])


def as_yolo(root: Path) -> None:
    picture(root / "images" / "a.png", 1)
    text(root / "labels" / "a.txt", "0 0.5 0.5 0.2 0.2\n")


def as_masks(root: Path) -> None:
    picture(root / "images" / "a.png", 1)
    plane(root / "masks" / "a.png", MASK)


def as_table(root: Path) -> None:
    picture(root / "images" / "a.png", 1)
    text(root / "labels.csv", "file,scene\na.png,indoor\n")


def as_folders(root: Path) -> None:
    picture(root / "cat" / "a.png", 1)
    picture(root / "dog" / "b.png", 2)


WRITERS = {f.__name__[3:]: f for f in (as_coco, as_voc, as_yolo, as_masks, as_table, as_folders)}


def test_every_format_is_written_by_these_tests():
    assert set(WRITERS) == set(READERS) - {"images"}  # pictures without labels: test_denoising.py


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_of_one_format_is_found_to_be_it(tmp_path, name):
    WRITERS[name](tmp_path)
    assert detect(tmp_path) == name
    found, named = read_source(tmp_path), read_source(tmp_path, name)
    assert found.format == named.format == name
    assert found.spaces == named.spaces
    assert [record.image for record in found.records] == [record.image for record in named.records]
    assert len(found.records) >= 1


@pytest.mark.parametrize(
    ("first", "second"), [("coco", "masks"), ("coco", "table"), ("yolo", "masks"), ("masks", "table"), ("voc", "table")]
)
def test_two_formats_of_one_folder_are_both_found_and_joined(tmp_path, first, second):
    WRITERS[first](tmp_path)
    WRITERS[second](tmp_path)
    if first == "voc":
        (tmp_path / "images" / "a.png").unlink()  # VOC's own folder has it
    assert detect(tmp_path) == f"{first}+{second}"
    (record,) = read_source(tmp_path).records
    alone = {name for part in (first, second) for name in read_source(tmp_path, part).spaces}
    assert set(record.labels) == alone
    assert len(alone) == 2


def test_boxes_masks_and_labels_of_three_splits_become_one_data_set(tmp_path):
    rows = ["split,file,scene"]
    for seed, split in enumerate(("train", "val", "test")):
        picture(tmp_path / "images" / split / "same.png", seed)
        plane(tmp_path / "masks" / split / "same.png", MASK * (seed != 1))
        annotation = {"image_id": 1, "category_id": 10, "bbox": [seed, 4, 10, 8]}
        coco(tmp_path / f"instances_{split}.json", ["same.png"], [annotation])
        rows.append(f"{split},same.png,{'in' if seed else 'out'}")
    text(tmp_path / "labels.csv", "\n".join(rows))
    source = read_source(tmp_path)
    assert source.format == "coco+masks+table"
    assert {name: space.kind for name, space in source.spaces.items()} == {
        "boxes": "boxes",
        "mask": "mask",
        "scene": "classes",
    }
    assert source.problems == []
    records = {record.split: record for record in source.records}
    assert len(source.records) == 3
    for seed, split in enumerate(("train", "val", "test")):
        record = records[split]
        assert f"/{split}/" in record.image.name
        assert boxes_of(record) == [(0, seed, 4, seed + 10, 12)]
        assert record.labels["scene"] == (0 if seed else 1)
        assert record.labels["mask"].read((20, 30)).any() == (seed != 1)


def test_an_image_that_one_format_alone_labels_has_that_label_alone(tmp_path):
    as_coco(tmp_path)
    picture(tmp_path / "images" / "b.png", 2)
    text(tmp_path / "labels.csv", "file,scene\nb.png,indoor\n")
    records = {Path(record.image.name).name: record.labels for record in read_source(tmp_path).records}
    assert {name: set(labels) for name, labels in records.items()} == {"a.png": {"boxes"}, "b.png": {"scene"}}


def test_the_table_splits_what_other_formats_do_not(tmp_path):
    as_coco(tmp_path)
    text(tmp_path / "labels.csv", "file,scene,split,group\na.png,indoor,val,house\n")
    (record,) = read_source(tmp_path).records
    assert (record.split, record.group) == ("val", "house")
    assert isinstance(record.labels["boxes"], Boxes)


def test_real_masks_win_over_drawn_outlines_and_take_their_names(tmp_path):
    as_masks(tmp_path)
    square = [[2, 2, 8, 2, 8, 8, 2, 8]]
    annotation = {"image_id": 1, "category_id": 10, "bbox": [2, 2, 6, 6], "segmentation": square}
    coco(tmp_path / "labels.json", ["a.png"], [annotation], names=("cat",))
    source = read_source(tmp_path)
    assert source.spaces["mask"].names == ("background", "cat")
    assert np.array_equal(source.records[0].labels["mask"].read((20, 30)), MASK)


def test_masks_with_names_of_their_own_do_not_mix_with_outlines(tmp_path):
    as_masks(tmp_path)
    text(tmp_path / "classes.txt", "sky\nroad\n")
    picture(tmp_path / "images" / "b.png", 2)
    square = [[2, 2, 8, 2, 8, 8, 2, 8]]
    annotations = [
        {"image_id": i, "category_id": 10, "bbox": [2, 2, 6, 6], "segmentation": square} for i in (1, 2)
    ]  # fmt: skip
    coco(tmp_path / "labels.json", ["a.png", "b.png"], annotations, names=("cat",))
    source = read_source(tmp_path)
    assert source.spaces["mask"].names == ("sky", "road")
    records = {Path(record.image.name).name: record.labels for record in source.records}
    # Class 1 of the outlines is no road.
    assert set(records["b.png"]) == {"boxes"}
    assert "only masks is used" in only(source.problems, "other class list").message


def test_two_formats_that_label_the_same_boxes_differently_are_refused(tmp_path):
    as_coco(tmp_path)
    text(tmp_path / "labels" / "a.txt", "0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DataError, match=r"coco and yolo both label 'boxes'.*choose one by data\.format"):
        read_source(tmp_path)
    assert len(read_source(tmp_path, "yolo").records) == 1


def test_formats_that_part_over_the_split_are_an_error(tmp_path):
    picture(tmp_path / "images" / "train" / "a.png", 1)
    plane(tmp_path / "masks" / "train" / "a.png", MASK)
    text(tmp_path / "labels.csv", "file,scene,split\na.png,indoor,test\n")
    problem = only(read_source(tmp_path).problems, "in two splits")
    assert problem.severity == "error"
    assert "masks says train, table says test" in problem.message


def test_an_image_listed_twice_is_told(tmp_path):
    for name in "abc":
        picture(tmp_path / f"{name}.png", ord(name))
    rows = ["a.png,x,train", "a.png,x,train", "b.png,x,train", "b.png,y,train", "c.png,y,train", "c.png,y,test"]
    text(tmp_path / "labels.csv", "\n".join(["file,label,split", *rows]))
    source = read_source(tmp_path)
    twice = {Path(p.where).name: p.severity for p in of_kind(source.problems, "listed twice")}
    assert twice == {"a.png": "warning", "b.png": "error"}
    parted = only(source.problems, "in two splits")
    assert (Path(parted.where).name, parted.severity) == ("c.png", "error")
    assert "listed for train and for test" in parted.message


def test_a_group_in_two_splits_is_told(tmp_path):
    for name in "ab":
        picture(tmp_path / f"{name}.png", ord(name))
    text(tmp_path / "labels.csv", "file,label,split,patient\na.png,x,train,p7\nb.png,y,test,p7\n")
    problem = only(read_source(tmp_path).problems, "group in two splits")
    assert problem.where == "p7"
    assert "test and train" in problem.message


@pytest.mark.parametrize(
    ("format_", "told"),
    [
        ("cocoo", "unknown format 'cocoo'; did you mean 'coco'"),
        ("coco+", "unknown format ''"),
        ("yolo", "no data.yaml with `names`"),
        ("voc", "no XML annotations"),
        ("masks", "no folder `masks`"),
        ("table", "no CSV or Parquet table"),
    ],
)
def test_a_format_that_is_not_there_is_told(tmp_path, format_, told):
    as_coco(tmp_path)
    with pytest.raises(DataError, match=told):
        read_source(tmp_path, format_)


def test_coco_that_is_not_there_is_told(tmp_path):
    as_folders(tmp_path)
    text(tmp_path / "settings.json", json.dumps({"images": 3}))
    with pytest.raises(DataError, match="no COCO JSON"):
        read_source(tmp_path, "coco")


def test_folders_that_hold_nothing_known_list_the_formats(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        read_source(tmp_path / "gone")
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match="no known labels found; formats: COCO JSON") as raised:
        read_source(tmp_path)
    assert all(word in str(raised.value) for word in ("VOC", "YOLO", "masks/", "CSV", "folder per class"))


def test_a_data_set_one_folder_down_is_named(tmp_path):
    as_voc(tmp_path / "VOC2012")
    with pytest.raises(DataError, match=r"do you mean data\.root .*/VOC2012\?"):
        read_source(tmp_path)


def test_data_sets_beside_each_other_are_no_classes(tmp_path):
    as_coco(tmp_path / "cats")
    as_folders(tmp_path / "dogs")
    with pytest.raises(DataError, match=r"/cats holds labels of its own; give that as data\.root"):
        read_source(tmp_path)
    assert read_source(tmp_path, "folders").spaces["label"].names == ("cats", "dogs")
