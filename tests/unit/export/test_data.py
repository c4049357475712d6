"""The data that an export is measured on: its settings travel in the checkpoint, its labels meet the heads' classes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline.data.module import VisionData
from pipeline.errors import DataError
from tests.unit.export.trial import SHAPES


@pytest.fixture(scope="module")
def data():
    """Scenes that have been read, so that their classes are known."""
    found = VisionData(size=64, batch_size=4, shapes=SHAPES)
    assert found.label_spaces
    return found


def test_the_datas_settings_travel_in_the_checkpoint(tmp_path):
    data = VisionData(size=(64, 96), shapes=SHAPES, split=(0.7, 0.2, 0.1))
    torch.save(data.state_dict(), tmp_path / "settings.pt")
    again = VisionData.from_settings(torch.load(tmp_path / "settings.pt", weights_only=True))
    assert again.size == (64, 96)
    assert again.digest() == data.digest()


def test_data_is_aligned_to_the_heads_classes(data):
    spaces = {name: space for name, space in data._spaces.items() if name != "surface"}
    turned = {
        name: replace(space, names=space.names[::-1], counts=space.counts[::-1]) for name, space in spaces.items()
    }
    other = VisionData(size=64, shapes=SHAPES)
    assert other.align(turned) == ("labels 'surface' do not count: they are no head's",)
    assert set(other._spaces) == {"scene", "daytime", "objects"}
    for mine, theirs in zip(data.records("val"), other.records("val"), strict=True):
        assert data._spaces["scene"].names[mine.labels["scene"]] == turned["scene"].names[theirs.labels["scene"]]
        assert set(theirs.labels) <= set(turned)
    with pytest.raises(DataError, match="no label field of the data"):
        VisionData(size=64, shapes=SHAPES).align({})


def test_a_field_of_another_name_is_the_only_head_of_its_kind_where_the_classes_fit(data):
    spaces = data._spaces
    other = VisionData(size=64, shapes=SHAPES)
    told = other.align(
        {
            "things": replace(spaces["objects"], names=spaces["objects"].names[::-1], counts=()),
            "ground": replace(spaces["surface"], names=("background", "rock"), counts=()),
        }
    )
    assert set(other._spaces) == {"things"}
    for mine, theirs in zip(data.records("val"), other.records("val"), strict=True):
        assert (theirs.labels["things"].classes == 4 - mine.labels["objects"].classes).all()
    assert told == (
        "labels 'surface' do not count at head 'ground': unknown class 'disc'; known: background, rock",
        "labels 'scene' do not count: they are no head's",
        "labels 'daytime' do not count: they are no head's",
        "head 'ground' is not scored: the data has no labels for it",
    )
