"""`data.balance`: rare classes come more often, sources keep their weights, and a wrong field is told."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from pipeline.data.balance import group_records
from pipeline.data.module import VisionData
from pipeline.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    """64 pictures of cats, 4 of dogs, in a folder per class."""
    rng = np.random.default_rng(0)
    for name, count in (("cat", 64), ("dog", 4)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / name / f"{number}.png")
    return tmp_path


def test_a_class_comes_in_proportion_to_the_root_of_its_images(folder):
    data = VisionData(str(folder), size=32, batch_size=10, workers=0, split=(1.0, 0.0, 0.0), balance="label")
    kinds = [data.label_spaces["label"]["names"][record.labels["label"]] for record in data.records("train")]
    seen = Counter()
    for batch in data.train_dataloader().batch_sampler:
        here = Counter(kinds[index] for _, index in batch)
        assert here["dog"] in {1, 2, 3}  # 2 of 10 in every batch, to within one
        seen += here
    assert seen["dog"] / seen["cat"] == pytest.approx(2 / 8, abs=0.05)


def test_sources_keep_their_weights(folder, tmp_path):
    data = VisionData(str(folder), size=32, split=(1.0, 0.0, 0.0))
    records = data.records("train")
    groups, shares = group_records(records, [i % 2 for i in range(len(records))], [3.0, 1.0], "label")
    by_source = Counter()
    for group, source in set(zip(groups, (i % 2 for i in range(len(records))), strict=True)):
        by_source[source] += shares[group]
    assert by_source == pytest.approx({0: 3.0, 1: 1.0})
    assert group_records(records, [0] * len(records), None, None) == ([0] * len(records), None)


def test_a_field_without_one_class_per_image_is_refused(folder):
    with pytest.raises(ConfigError, match=r"data\.balance: 'lable' .*it has label; did you mean 'label'"):
        VisionData(str(folder), size=32, balance="lable").records("train")
    with pytest.raises(ConfigError, match=r"'objects' is no field .*it has scene, daytime"):
        VisionData(shapes={"images": 10, "size": 64}, size=64, balance="objects").records("train")
