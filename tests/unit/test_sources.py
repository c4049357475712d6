"""Several data sets for one network: mixed by weight in every batch, united class lists, what cannot be united."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.module import Source, VisionData
from pipeline.data.sampling import TrainBatches
from pipeline.errors import ConfigError, DataError
from tests.unit.folders import coco, picture, plane, text

OPTIONS = {"size": 32, "batch_size": 8, "workers": 0, "augment": "none"}


def labelled(root: Path, names: list[str], count: int = 8, seed: int = 0, splits: tuple[str, ...] = ()) -> Path:
    """A folder per class; with splits, `count` images of each class for each."""
    for split in splits or ("",):
        for kind in names:
            for number in range(count):
                seed += 1
                picture(root / split / kind / f"{number}.png", seed)
    return root


def masked(root: Path, names: list[str], seed: int = 0, count: int = 6) -> Path:
    """Images whose upper half is the first class and whose lower half is the last."""
    text(root / "classes.txt", "\n".join(names))
    mask = np.zeros((20, 30), np.uint8)
    mask[10:] = len(names) - 1
    for number in range(count):
        picture(root / "images" / f"{number}.png", seed + number)
        plane(root / "masks" / f"{number}.png", mask)
    return root


def mixes(sources: list[int], weights: list[float], size: int, **place: int) -> list[Counter[int]]:
    """The sources' images in each batch."""
    return [Counter(sources[i] for _, i in batch) for batch in TrainBatches(sources, weights, size, 3, **place)]


@pytest.mark.parametrize("epoch", range(3))
def test_every_batch_holds_the_sources_by_weight(epoch):
    batches = TrainBatches([0] * 300 + [1] * 20, [3.0, 1.0], 8, 0)
    batches.set_epoch(epoch)
    for batch in batches:
        assert abs(sum(index >= 300 for _, index in batch) - 2) <= 1


def test_every_process_gets_the_mix():
    for rank in range(2):
        assert all(abs(mix[1] - 2) <= 1 for mix in mixes([0] * 300 + [1] * 20, [1.0, 1.0], 4, rank=rank, world=2))


def test_a_rare_source_comes_round_though_no_batch_has_room_for_it():
    found = sum(mixes([0] * 400 + [1] * 5, [24.0, 1.0], 4), Counter())
    assert found[1] == pytest.approx(405 / 25, abs=1)


def test_a_source_is_gone_through_before_it_repeats():
    sources = [0] * 90 + [1] * 10
    order = TrainBatches(sources, [1.0, 1.0], 4, 0).order()
    small = [index for index in order if sources[index]]
    assert len(order) == 100
    assert all(sorted(small[at : at + 10]) == list(range(90, 100)) for at in range(0, 40, 10))


def test_a_source_without_training_images_is_passed_over(tmp_path):
    held = labelled(tmp_path / "held", ["cat", "dog"], 3, 100, splits=("test",))
    main = labelled(tmp_path / "main", ["cat", "dog"])
    data = VisionData(sources=[Source(str(held), weight=9.0), Source(str(main))], **OPTIONS)
    names = [name for batch in data.train_dataloader() for name in batch.names]
    assert len(names) >= 8
    assert all("/main/" in name for name in names)
    assert sum("/held/" in record.image.name for record in data.records("test")) == 6


def test_masks_of_two_class_lists_are_numbered_as_one(tmp_path):
    first = masked(tmp_path / "town", ["sky", "road"])
    second = masked(tmp_path / "field", ["sky", "grass"], 100)
    data = VisionData(sources=[Source(str(first)), Source(str(second))], **OPTIONS)
    assert data.label_spaces["mask"]["names"] == ["sky", "road", "grass"]
    seen = set()
    for batch in data.train_dataloader():
        for name, mask in zip(batch.names, batch.targets["mask"].mask, strict=True):
            wanted = {0, 1} if "/town/" in name else {0, 2}
            assert set(mask.unique().tolist()) - {255} == wanted
            seen |= wanted
    assert seen == {0, 1, 2}


def test_an_image_trains_only_what_its_source_labels(tmp_path):
    boxed = tmp_path / "boxed"
    for number in range(6):
        picture(boxed / "images" / f"{number}.png", number)
    rows = [{"image_id": i, "category_id": 10, "bbox": [5, 4, 10, 8]} for i in range(1, 7)]
    coco(boxed / "labels.json", [f"{number}.png" for number in range(6)], rows)
    data = VisionData(
        sources=[Source(str(boxed)), Source(str(masked(tmp_path / "town", ["sky", "road"], 50)))], **OPTIONS
    )
    for batch in data.train_dataloader():
        of_boxes = ["/boxed/" in name for name in batch.names]
        assert batch.targets["boxes"].present.tolist() == of_boxes
        assert batch.targets["mask"].present.tolist() == [not flag for flag in of_boxes]
        assert 3 <= sum(of_boxes) <= 5


def test_one_image_in_two_sources_is_refused(tmp_path):
    root = masked(tmp_path / "town", ["sky", "road"])
    rows = "\n".join(f"{number}.png,{'xy'[number % 2]}" for number in range(6))
    text(root / "labels.csv", f"file,label\n{rows}")
    data = VisionData(sources=[Source(str(root), "masks"), Source(f"{root}/../town", "table")], **OPTIONS)
    with pytest.raises(ConfigError, match=r"data\.sources\[0\] and data\.sources\[1\] both hold .*as one source"):
        data.records("train")


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_told(weight):
    with pytest.raises(ConfigError, match=r"data\.sources\[1\]\.weight must be a number above 0"):
        VisionData(sources=[Source("a"), Source("b", weight=weight)])


def test_fields_that_cannot_be_united_name_their_source(tmp_path):
    pets = labelled(tmp_path / "pets", ["cat", "dog"])
    town = masked(tmp_path / "town", ["sky", "road"], 50)
    fields = [Source(str(pets)), Source(str(town), fields={"mask": "label"})]
    with pytest.raises(DataError, match=r"holds classes in one source and mask in data\.sources\[1\]; give it another"):
        VisionData(sources=fields, **OPTIONS).records("train")
    rows = "\n".join(f"{number}.png,{'xy'[number % 2]}" for number in range(6))
    text(town / "labels.csv", f"file,time\n{rows}")
    fields = [Source(str(pets)), Source(str(town), fields={"mask": "label", "time": "label"})]
    with pytest.raises(ConfigError, match=r"data\.sources\[1\]\.fields: two fields would be called label"):
        VisionData(sources=fields, **OPTIONS).records("train")
