"""`lightning evaluate --tta`: metrics of averaged answers beside the plain ones."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.export.cli import evaluate_command
from pipeline.imaging.draw import write_png
from tests.unit.bundles import known_bundle


@pytest.fixture
def labelled(tmp_path):
    """Red pictures in a blue frame of one pixel: the frame outweighs the rest, but most crops cut much of it off."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[..., 2] = 255
    pixels[1:-1, 1:-1] = (30, 0, 0)
    lines = ["file,colour,split"]
    for number in range(4):
        write_png(tmp_path / "data" / f"{number}.png", pixels)
        lines.append(f"{number}.png,{'red' if number else 'blue'},test")
    (tmp_path / "data" / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "data"


@pytest.fixture
def bundle(tmp_path):
    return known_bundle(tmp_path / "known")


def evaluated(bundle, labelled, tmp_path, tta):
    file = tmp_path / "scores.json"
    given = [str(bundle), "--data.root", str(labelled), "--engine", "onnxruntime", "--json", str(file)]
    assert evaluate_command([*given, *(["--tta", tta] if tta else [])]) == 0
    return json.loads(file.read_text())


def test_ten_crops_change_the_metric_they_should(bundle, labelled, tmp_path, capsys):
    found = evaluated(bundle, labelled, tmp_path, "ten-crop")
    assert found["metrics"]["colour"]["accuracy"] == 0.25
    assert found["averaged"]["colour"]["accuracy"] == 0.75
    assert (found["tta"], found["images"], found["split"]) == ("ten-crop", 4, "test")
    header, first = (line.split() for line in capsys.readouterr().out.splitlines()[2:4])
    assert header == ["head", "metric", "test", "ten-crop"]
    assert first == ["colour", "accuracy", "0.2500", "0.7500"]


def test_a_mirror_image_has_the_same_mean_colour(bundle, labelled, tmp_path):
    found = evaluated(bundle, labelled, tmp_path, "flip")
    assert found["averaged"]["colour"] == pytest.approx(found["metrics"]["colour"])


def test_without_it_the_figures_stand_alone(bundle, labelled, tmp_path):
    assert set(evaluated(bundle, labelled, tmp_path, None)) == {"split", "images", "metrics"}


def test_pictures_that_cannot_be_read_are_counted_and_named(bundle, labelled, tmp_path, capsys):
    (labelled / "3.png").write_bytes((labelled / "3.png").read_bytes()[:60])
    found = evaluated(bundle, labelled, tmp_path, None)
    name = str(labelled / "3.png")
    assert (found["images"], found["unread"]) == (3, [name])
    assert f"1 of 4 images cannot be read and do not count: {name}" in capsys.readouterr().err


def test_ten_crops_of_boxes_alone_are_refused():
    from pipeline.bundle import HeadSpec
    from pipeline.errors import ConfigError
    from serving.batch.views import check_ten_crop

    with pytest.raises(ConfigError, match="--tta ten-crop averages image labels"):
        check_ten_crop({"things": HeadSpec("boxes", ("thing",), (), 0.4)})
