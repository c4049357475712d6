"""YOLO txt with data.yaml as read: boxes, polygons, splits; every fault names the file and the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.data.formats.detect import read_source
from pipeline.data.formats.yolo import read_yolo
from pipeline.errors import DataError
from tests.unit.folders import boxes_of, of_kind, only, picture, text, turned


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    """Ultralytics' layout: a.png and b.png to train, c.png to validate."""
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        picture(tmp_path / "images" / split / f"{name}.png", ord(name))
        text(tmp_path / "labels" / split / f"{name}.txt", "1 0.5 0.5 0.2 0.4\n")
    text(tmp_path / "data.yaml", "path: .\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n")
    return tmp_path


def test_yolo_fractions_become_pixels_and_folders_splits(yolo):
    source = read_yolo(yolo)
    assert source.spaces["boxes"].names == ("cat", "dog")
    assert [(Path(r.image.name).stem, r.split) for r in source.records] == [
        ("a", "train"),
        ("b", "train"),
        ("c", "val"),
    ]
    assert boxes_of(source.records[0]) == [(1, 12, 6, 18, 14)]
    assert source.problems == []


def test_yolo_fractions_are_of_the_upright_image(yolo):
    (yolo / "images" / "train" / "a.png").unlink()
    turned(yolo / "images" / "train" / "a.jpg")  # stored 30 wide and 20 high, upright 20 wide and 30 high
    (xyxy,) = boxes_of(read_yolo(yolo).records[0])
    assert xyxy == pytest.approx((1, 8, 9, 12, 21))


def test_yolo_empty_and_missing_label_files_mean_nothing_there(yolo):
    text(yolo / "labels" / "train" / "a.txt", "")
    (yolo / "labels" / "train" / "b.txt").unlink()
    source = read_yolo(yolo)
    assert [len(record.labels["boxes"]) for record in source.records] == [0, 0, 1]
    problem = only(source.problems, "image without label")
    assert problem.where == str(yolo / "images" / "train" / "b.png")
    assert str(yolo / "labels" / "train" / "b.txt") in problem.message


def test_yolo_label_files_of_no_image_are_errors(yolo):
    orphan = text(yolo / "labels" / "val" / "gone.txt", "0 0.5 0.5 0.1 0.1\n")
    problem = only(read_yolo(yolo).problems, "label without image")
    assert (problem.severity, problem.where) == ("error", str(orphan))


def test_yolo_polygons_give_boxes_and_a_mask(yolo):
    text(yolo / "labels" / "train" / "a.txt", "0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n")
    source = read_yolo(yolo)
    assert boxes_of(source.records[0]) == [(0, 3, 2, 15, 10)]
    mask = source.records[0].labels["mask"].read((20, 30))
    assert mask[5, 8] == 1
    assert mask[15, 20] == 0
    # A box alone says nothing of the pixels.
    assert "mask" not in source.records[1].labels


@pytest.mark.parametrize(
    ("line", "kind", "told"),
    [
        ("2 0.5 0.5 0.1 0.1", "unknown class", "class 2 is not in the list of 2"),
        ("-1 0.5 0.5 0.1 0.1", "unknown class", "class -1"),
        ("0.5 0.5 0.5 0.1 0.1", "unknown class", "class 0.5"),
        ("0 0.5 0.5 0.1", "broken label", "3 values behind the class"),
        ("0 0.5 0.5 x 0.1", "broken label", "not numbers"),
        ("0 0.5 0.5 nan 0.1", "broken label", "not finite numbers"),
        ("0 15 10 6 8", "broken label", "values above 2"),
        ("0 0.5 0.5 0 0.1", "zero-size box", "no area"),
        ("0 1.4 0.5 0.2 0.1", "box out of image", "lies outside: dropped"),
        ("0 0.9 0.5 0.4 0.1", "box out of image", "reaches out: cut"),
        ("1 0.5 0.5 0.2 0.4", "double box", "stands there twice"),
    ],
)
def test_yolo_faults_name_file_and_line(yolo, line, kind, told):
    file = text(yolo / "labels" / "train" / "a.txt", f"1 0.5 0.5 0.2 0.4\n{line}\n")
    problem = only(read_yolo(yolo).problems, kind)
    assert problem.where == f"{file}:2"
    assert told in problem.message


def test_yolo_bytes_that_are_no_text_name_the_file(yolo):
    file = yolo / "labels" / "train" / "a.txt"
    file.write_bytes(b"0 0.5 0.5 0.1 0.1\n\xff\xfe")
    problem = only(read_yolo(yolo).problems, "broken label")
    assert f"{file}:2" in problem.message


def test_yolo_unreadable_and_listed_but_missing_images_are_errors(yolo):
    (yolo / "images" / "val" / "c.png").write_bytes(b"no picture")
    text(yolo / "train.txt", "images/train/a.png\nimages/train/gone.png\n")
    text(yolo / "data.yaml", "train: train.txt\nval: images/val\nnames: [cat, dog]\n")
    text(yolo / "labels" / "val" / "d.txt", "")
    picture(yolo / "images" / "val" / "d.png", 9)
    source = read_yolo(yolo)
    assert [Path(record.image.name).name for record in source.records] == ["a.png", "d.png"]
    assert "c.png" in only(source.problems, "unreadable image").where
    assert only(source.problems, "label without image").where == str(yolo / "images" / "train" / "gone.png")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("train: images/train\nval: images/val\nnames: cat\n", "`names` must be a list"),
        ("train: images/train\nval: images/val\nnames: [cat, cat]\n", "several classes have the name cat"),
        ("train: images/train\nval: images/val\nnc: 3\nnames: [cat, dog]\n", "nc is 3, but `names` has 2"),
        ("train: images/train\nval: images/vall\nnames: [cat, dog]\n", "`val`: 'images/vall' exists neither"),
        ("train: images/train\nnames: {cat: 0}\n", "keys of `names` must be class numbers"),
        ("train: images/train\nnames: [cat, dog]\nkpt_shape: [x, 3]\n", "`kpt_shape` must be two whole numbers"),
        ("names: [cat, dog]\ntrain: [images\n", r"data\.yaml:3: not valid YAML"),
    ],
)
def test_yolo_data_yaml_faults_name_the_file(yolo, content, told):
    text(yolo / "data.yaml", content)
    with pytest.raises(DataError, match=told) as raised:
        read_yolo(yolo)
    assert str(yolo / "data.yaml") in str(raised.value)
    assert "\n" not in str(raised.value)


def test_yolo_exports_with_paths_one_folder_up_and_no_test_folder(yolo):
    text(yolo / "data.yaml", "train: ../images/train\nval: ../images/val\ntest: ../images/test\nnames: [cat, dog]\n")
    source = read_yolo(yolo)
    assert len(source.records) == 3
    assert "images/test" in only(source.problems, "missing split").message


def test_yolo_same_images_to_train_and_to_validate_are_told_once(yolo):
    text(yolo / "data.yaml", "train: images/train\nval: images/train\nnames: [cat, dog]\n")
    source = read_source(yolo)
    assert {record.split for record in source.records} == {"train", "val"}
    assert "same images" in only(source.problems, "same images in splits").message
    assert of_kind(source.problems, "in two splits") == []


def test_yolo_training_images_without_any_label_file_are_an_error(yolo):
    for name in "ab":
        (yolo / "labels" / "train" / f"{name}.txt").unlink()
    problem = only(read_yolo(yolo).problems, "no label files")
    assert problem.severity == "error"
    assert "none of the 2 images has a label file" in problem.message


def test_yolo_key_points_behind_boxes_are_passed_over(yolo):
    text(yolo / "data.yaml", "train: images/train\nval: images/val\nnames: [cat, dog]\nkpt_shape: [2, 3]\n")
    text(yolo / "labels" / "train" / "a.txt", "0 0.5 0.5 0.2 0.4 0.1 0.1 2 0.2 0.2 1\n")
    source = read_yolo(yolo)
    assert boxes_of(source.records[0]) == [(0, 12, 6, 18, 14)]
    assert "mask" not in source.spaces


def test_yolo_without_data_yaml_takes_folders_and_classes_txt(yolo):
    (yolo / "data.yaml").unlink()
    made_up = read_yolo(yolo)
    assert made_up.spaces["boxes"].names == ("class_0", "class_1")
    assert made_up.unnamed == {"boxes"}
    text(yolo / "classes.txt", "cat\ndog\n")
    source = read_yolo(yolo)
    assert source.spaces["boxes"].names == ("cat", "dog")
    assert [record.split for record in source.records] == ["train", "train", "val"]
    text(yolo / "labels" / "train" / "a.txt", "1234567890 0.5 0.5 0.1 0.1\n")
    (yolo / "classes.txt").unlink()
    with pytest.raises(DataError, match="class number 1234567890"):
        read_yolo(yolo)
