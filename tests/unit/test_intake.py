"""What a run asks of its data before it starts: what it refuses, what it drops and says, what it replaces on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.module import VisionData
from pipeline.errors import ConfigError, DataError
from tests.unit.folders import coco, picture, plane, text, turned, voc

MASK = np.repeat(np.arange(2, dtype=np.uint8), 10)[:, None].repeat(30, 1)


def data(root: Path, **options) -> VisionData:
    return VisionData(str(root), size=32, batch_size=4, workers=0, augment="none", **options)


def kinds(root: Path, *names: str, count: int = 6) -> Path:
    for seed, name in enumerate(names):
        for number in range(count):
            picture(root / name / f"{number}.png", 100 * seed + number)
    return root


def boxed(root: Path, count: int = 20) -> Path:
    for number in range(count):
        picture(root / "JPEGImages" / f"{number:02}.png", number)
        voc(root / "Annotations" / f"{number:02}.xml", [("cat", (5, 4, 15, 12))])
    return root


def masked(root: Path, count: int = 10) -> Path:
    for number in range(count):
        picture(root / "images" / f"{number}.png", number)
        plane(root / "masks" / f"{number}.png", MASK)
    return root


def refusal(module: VisionData) -> str:
    """What stops the run where the model asks for the classes."""
    with pytest.raises(DataError) as raised:
        _ = module.label_spaces
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_one_class_has_nothing_to_tell_apart(tmp_path):
    assert "'label' has only one class ('cat')" in refusal(data(kinds(tmp_path, "cat")))


def test_one_class_in_training_is_refused_though_the_others_are_tested(tmp_path):
    kinds(tmp_path / "train", "cat")
    kinds(tmp_path / "test", "cat", "dog")
    assert "only one class ('cat') in the training split, though the data set knows 2" in refusal(data(tmp_path))


def test_masks_of_one_value_are_refused(tmp_path):
    masked(tmp_path)
    for file in (tmp_path / "masks").iterdir():
        plane(file, MASK * 0)
    assert "'mask' has only one class" in refusal(data(tmp_path))


def test_one_class_of_boxes_is_enough(tmp_path):
    assert data(boxed(tmp_path)).label_spaces["boxes"]["names"] == ["cat"]


def test_boxes_nowhere_are_refused(tmp_path):
    for number in range(4):
        picture(tmp_path / f"{number}.png", number)
    coco(tmp_path / "labels.json", [f"{number}.png" for number in range(4)], [])
    assert "'boxes' has no label in the training split" in refusal(data(tmp_path))


def test_a_field_that_only_test_images_are_labelled_for_is_refused(tmp_path):
    rows = ["file,split,scene,time"]
    for number in range(8):
        picture(tmp_path / f"{number}.png", number)
        train = number < 6
        rows.append(
            f"{number}.png,{'train' if train else 'test'},{'ab'[number % 2]},{'' if train else 'xy'[number % 2]}"
        )
    text(tmp_path / "labels.csv", "\n".join(rows))
    assert "'time' has no label in the training split" in refusal(data(tmp_path))


def test_without_training_images_nothing_is_trained_but_all_can_be_measured(tmp_path):
    kinds(tmp_path / "test", "cat", "dog")
    assert "no training images" in refusal(data(tmp_path))
    assert len(data(tmp_path).records("test")) == 12


def test_errors_in_labels_are_refused_with_the_first_of_them(tmp_path):
    boxed(tmp_path)
    for number in range(5):
        text(tmp_path / "Annotations" / f"{number:02}.xml", "<annotation>\n<object>")
    message = refusal(data(tmp_path))
    assert message.startswith("5 errors in the data (broken label: ")
    assert "00.xml:2" in message
    assert message.endswith("`lightning check-data` lists them all")
    assert message.count(".xml") == 3


def test_pictures_of_another_size_than_their_labels_are_refused(tmp_path):
    boxed(tmp_path)
    (tmp_path / "JPEGImages" / "00.png").unlink()
    turned(tmp_path / "JPEGImages" / "00.jpg")
    assert "the labels say 30 x 20, the upright image is 20 x 30" in refusal(data(tmp_path))


def test_masks_of_another_size_are_refused(tmp_path):
    masked(tmp_path)
    plane(tmp_path / "masks" / "3.png", MASK[:, :12])
    assert "masks/3.png is 12 x 20 pixels, its image 30 x 20" in refusal(data(tmp_path))


def test_a_few_labels_without_image_are_left_out_and_said(tmp_path, capsys):
    boxed(tmp_path)
    (tmp_path / "JPEGImages" / "00.png").unlink()
    voc(tmp_path / "Annotations" / "01.xml", [("cat", (5, 4, 15, 12)), ("cat", (7, 7, 7, 7))])
    module = data(tmp_path)
    module.setup("fit")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "data: voc; boxes (boxes: cat); train 15, val 2, test 2 images"
    assert lines[1:] == [
        "data: 1 x label without image (00.xml: no image of this name: left out)",
        "data: 1 x zero-size box (01.xml:3: box 2 [7.0, 7.0, 7.0, 7.0] has no area: dropped)",
    ]
    module.setup("fit")
    assert capsys.readouterr().out == ""


def test_many_labels_without_image_mean_that_the_folder_is_wrong(tmp_path):
    boxed(tmp_path)
    for number in range(5):
        (tmp_path / "JPEGImages" / f"{number:02}.png").unlink()
    message = refusal(data(tmp_path))
    assert message.startswith("5 of 20 images would be left out (label without image: ")
    assert "is data.root right?" in message


def test_no_labels_and_no_folder_are_told(tmp_path):
    assert "no known labels found" in refusal(data(tmp_path))
    assert f"data.root {tmp_path / 'gone'} is not a folder" in refusal(data(tmp_path / "gone"))


def test_a_split_that_is_none_is_told(tmp_path):
    with pytest.raises(
        ConfigError, match=r"data\.split must be three fractions that sum to 1, not \[0\.8, 0\.1, 0\.2\]"
    ):
        data(kinds(tmp_path, "cat", "dog"), split=(0.8, 0.1, 0.2)).records("train")


def test_a_val_split_that_the_fractions_rule_out_is_told(tmp_path):
    module = data(kinds(tmp_path, "cat", "dog"), split=(1.0, 0.0, 0.0))
    assert len(module.records("train")) == 12
    with pytest.raises(DataError, match=r"no val images; set data\.split"):
        module.val_dataloader()


@pytest.mark.parametrize("part", ["images", "masks"])
def test_what_breaks_after_the_start_is_replaced_and_named(tmp_path, part):
    module = data(masked(tmp_path), split=(0.6, 0.4, 0.0))
    broken = [Path(module.records(split)[0].image.name).stem for split in ("train", "val")]
    for stem in broken:
        file = tmp_path / part / f"{stem}.png"
        if part == "images":
            file.write_bytes(b"no picture")
        else:
            Image.fromarray(MASK[:5]).save(file)
    (batch, *rest) = list(module.train_dataloader())
    failures = [failure for found in (batch, *rest) for failure in found.failures]
    assert len(failures) >= 1
    assert all(f"{part}/{broken[0]}.png" in failure for failure in failures)
    # What is measured is not replaced: a grey image, labelled for nothing.
    (batch,) = module.val_dataloader()
    at = batch.names.index(str(tmp_path / "images" / f"{broken[1]}.png"))
    assert len(batch.names) == 4
    assert torch.equal(batch.targets["mask"].present, torch.arange(4) != at)
    assert len(batch.failures) == 1


def test_a_data_set_that_cannot_be_read_at_all_stops_at_once(tmp_path):
    module = data(masked(tmp_path))
    module.records("train")
    for file in (tmp_path / "images").iterdir():
        file.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"twenty images in a row cannot be read, among them .*check-data"):
        next(iter(module.train_dataloader()))
