"""A folder per class as read: classes, split folders, hidden and nested ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.data.formats.detect import read_source
from pipeline.data.formats.folders import read_folders
from pipeline.errors import DataError
from tests.unit.folders import of_kind, only, picture, plane, text


def pictures(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        picture(root / name, seed)
    return root


def found(source) -> list[tuple[str, str, str | None]]:
    names = source.spaces["label"].names
    return sorted((Path(r.image.name).name, names[r.labels["label"]], r.split) for r in source.records)


def test_every_folder_is_a_class(tmp_path):
    pictures(tmp_path, "dog/b.png", "cat/a.png", "dog/c.jpg")
    source = read_folders(tmp_path)
    assert source.spaces["label"].names == ("cat", "dog")
    assert found(source) == [("a.png", "cat", None), ("b.png", "dog", None), ("c.jpg", "dog", None)]
    assert source.problems == []


def test_split_folders_hold_the_class_folders(tmp_path):
    pictures(tmp_path, "train/cat/a.png", "train/dog/b.png", "valid/cat/c.png", "Test/dog/d.png")
    assert found(read_folders(tmp_path)) == [
        ("a.png", "cat", "train"),
        ("b.png", "dog", "train"),
        ("c.png", "cat", "val"),
        ("d.png", "dog", "test"),
    ]


def test_a_class_may_be_called_train(tmp_path):
    pictures(tmp_path, "train/a.png", "car/b.png")
    assert found(read_folders(tmp_path)) == [("a.png", "train", None), ("b.png", "car", None)]


def test_a_class_may_be_called_mask(tmp_path):
    pictures(tmp_path, "mask/a.png", "no_mask/b.png")
    assert found(read_source(tmp_path)) == [("a.png", "mask", None), ("b.png", "no_mask", None)]


def test_pictures_deeper_down_belong_to_the_outer_folder(tmp_path):
    pictures(tmp_path, "cat/indoor/a.png", "cat/outdoor/b.png", "dog/c.png")
    assert [name for _, name, _ in found(read_folders(tmp_path))] == ["cat", "cat", "dog"]


def test_hidden_folders_and_folders_without_pictures_are_no_classes(tmp_path):
    pictures(tmp_path, "cat/a.png", "dog/b.png", ".cache/c.png", "cat/.thumb.png")
    text(tmp_path / "notes" / "read.me", "nothing")
    assert read_folders(tmp_path).spaces["label"].names == ("cat", "dog")
    assert len(read_folders(tmp_path).records) == 2


def test_a_class_without_training_images_is_told(tmp_path):
    pictures(tmp_path, "train/cat/a.png", "train/dog/b.png", "val/bird/c.png")
    problem = only(read_folders(tmp_path).problems, "class not in train")
    assert "bird" in problem.message
    assert problem.severity == "warning"


def test_pictures_in_a_split_but_in_no_class_are_no_class(tmp_path):
    pictures(tmp_path, "train/cat/a.png", "train/dog/b.png", "val/cat/c.png")
    source = read_folders(tmp_path)
    assert source.spaces["label"].names == ("cat", "dog")
    assert of_kind(source.problems, "class not in train") == []


def test_pictures_without_a_folder_are_refused(tmp_path):
    pictures(tmp_path, "a.png")
    with pytest.raises(DataError, match="no images in folders named for their class"):
        read_folders(tmp_path)


def test_a_data_set_one_folder_deeper_is_named(tmp_path):
    pictures(tmp_path, "data/cat/a.png", "data/dog/b.png")
    with pytest.raises(
        DataError, match=r"only one folder with images, so only one class; do you mean data\.root .*/data"
    ):
        read_source(tmp_path)


def test_one_class_alone_is_read_and_left_to_the_run_to_refuse(tmp_path):
    pictures(tmp_path, "cat/a.png", "cat/b.png")
    assert read_source(tmp_path).spaces["label"].names == ("cat",)


def test_mask_folders_beside_class_folders_are_no_classes(tmp_path):
    pictures(tmp_path, "cat/images/a.png", "dog/images/b.png")
    plane(tmp_path / "cat" / "masks" / "a.png", [[0, 1]] * 4)
    assert [name for name, _, _ in found(read_folders(tmp_path))] == ["a.png", "b.png"]
