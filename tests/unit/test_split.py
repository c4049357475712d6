"""Who trains and who tests: the data set's own word, a seeded stratified draw, groups that stay together."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pipeline.data.split import split_records
from pipeline.errors import ConfigError
from pipeline.records import Boxes, FileImage, Record

FRACTIONS = (0.7, 0.2, 0.1)


def record(number: int, label: object = 0, split: str | None = None, group: str | None = None) -> Record:
    labels = {"boxes": label} if isinstance(label, Boxes) else {"label": label} if label is not None else {}
    return Record(FileImage(Path(f"{number:04}.png")), labels, split, group)


def names(splits) -> dict[str, set[str]]:
    return {split: {r.image.name for r in members} for split, members in splits.items()}


def test_every_image_goes_to_one_split_in_the_fractions_asked_for():
    splits = split_records([record(i) for i in range(100)], FRACTIONS, 0)
    assert {split: len(members) for split, members in splits.items()} == {"train": 70, "val": 20, "test": 10}
    assert len(set.union(*names(splits).values())) == 100


def test_the_seed_alone_decides():
    records = [record(i, i % 3) for i in range(60)]
    again = split_records(records[::-1], FRACTIONS, 0)
    assert names(split_records(records, FRACTIONS, 0)) == names(again)
    assert names(split_records(records, FRACTIONS, 1)) != names(again)


@pytest.mark.parametrize("seed", range(5))
def test_every_class_is_drawn_in_proportion(seed):
    records = [record(i, 0 if i < 80 else 1 if i < 100 else 2) for i in range(110)]
    splits = split_records(records, FRACTIONS, seed)
    counts = {split: Counter(r.labels["label"] for r in members) for split, members in splits.items()}
    for kind, total in ((0, 80), (1, 20), (2, 10)):
        for split, share in zip(("train", "val", "test"), FRACTIONS, strict=True):
            assert abs(counts[split][kind] - total * share) <= 1


def test_boxes_are_drawn_by_the_kinds_in_the_image():
    def boxes(*kinds: int) -> Boxes:
        return Boxes.of([[0, 0, 5, 5]] * len(kinds), list(kinds))

    records = [record(i, boxes(0, 0)) for i in range(40)] + [record(40 + i, boxes(1)) for i in range(10)]
    splits = split_records(records, (0.8, 0.2, 0.0), 0)
    assert sum(1 in r.labels["boxes"].classes for r in splits["val"]) == 2
    assert len(splits["val"]) == 10


def test_several_labels_are_drawn_together():
    records = [record(i, (0,) if i % 2 else (0, 1)) for i in range(40)]
    splits = split_records(records, (0.5, 0.5, 0.0), 0)
    assert Counter(r.labels["label"] for r in splits["val"]) == {(0,): 10, (0, 1): 10}


def test_a_group_never_parts():
    records = [record(i, i % 2, group=f"patient {i // 7}") for i in range(140)]
    splits = split_records(records, FRACTIONS, 0)
    homes: dict[str, set[str]] = {}
    for split, members in splits.items():
        for r in members:
            homes.setdefault(r.group, set()).add(split)
    assert all(len(found) == 1 for found in homes.values())
    assert abs(len(splits["train"]) - 98) <= 7
    assert abs(len(splits["val"]) - 28) <= 7


def test_images_without_a_group_are_groups_of_their_own():
    records = [record(i, group="one video" if i < 30 else None) for i in range(60)]
    splits = split_records(records, (0.5, 0.25, 0.25), 0)
    assert [split for split, members in splits.items() if any(r.group for r in members)] == ["train"]
    assert {split: len(members) for split, members in splits.items()} == {"train": 30, "val": 15, "test": 15}


def test_the_data_sets_own_word_holds():
    own = ["train"] * 6 + ["val"] * 3 + ["test"]
    splits = split_records([record(i, split=split) for i, split in enumerate(own)], FRACTIONS, 0)
    assert {split: len(members) for split, members in splits.items()} == {"train": 6, "val": 3, "test": 1}
    assert names(splits)["test"] == {"0009.png"}


def test_a_validation_split_that_is_missing_is_taken_from_train_and_test_is_left_alone():
    records = [record(i, i % 2, "train" if i < 90 else "test") for i in range(100)]
    splits = split_records(records, (0.8, 0.1, 0.1), 0)
    assert {split: len(members) for split, members in splits.items()} == {"train": 80, "val": 10, "test": 10}
    assert names(splits)["test"] == {f"{i:04}.png" for i in range(90, 100)}
    assert Counter(r.labels["label"] for r in splits["val"]) == {0: 5, 1: 5}


def test_a_test_split_that_is_missing_stays_empty():
    records = [record(i, split="train" if i % 2 else "val") for i in range(20)]
    assert split_records(records, FRACTIONS, 0)["test"] == []


def test_images_the_data_set_says_nothing_of_train_unless_their_group_is_elsewhere():
    records = [
        record(0, split="train", group="a"),
        record(1, split="val", group="b"),
        record(2, group="b"),
        record(3, group="c"),
        record(4),
    ]
    splits = split_records(records, FRACTIONS, 0)
    assert names(splits) == {
        "train": {"0000.png", "0003.png", "0004.png"},
        "val": {"0001.png", "0002.png"},
        "test": set(),
    }


@pytest.mark.parametrize("fractions", [(0.8, 0.1), (0.8, 0.3, 0.1), (1.2, -0.2, 0.0), (float("nan"), 0.5, 0.5)])
def test_fractions_that_are_none_are_told(fractions):
    with pytest.raises(ConfigError, match=r"data\.split must be three fractions that sum to 1"):
        split_records([record(0)], fractions, 0)
