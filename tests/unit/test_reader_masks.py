"""Mask folders as read: index and colour PNGs, class lists, pairing with images; every fault names its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.formats.masks import read_masks
from pipeline.errors import DataError
from tests.unit.folders import only, picture, plane, text

SIZE = (20, 30)


def values(*rows: object, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Horizontal stripes of equal height, a value or a colour each."""
    stripes = np.array_split(np.arange(size[0]), len(rows))
    out = np.zeros((*size, *np.shape(rows[0])), np.uint8)
    for rows_of, value in zip(stripes, rows, strict=True):
        out[rows_of] = value
    return out


def data(root: Path, *masks: np.ndarray) -> Path:
    """Images a, b, … with a mask each."""
    for name, mask in zip("abcdef", masks, strict=False):
        picture(root / "images" / f"{name}.jpg", ord(name))
        plane(root / "masks" / f"{name}.png", mask)
    return root


def read(record) -> np.ndarray:
    return record.labels["mask"].read(SIZE)


def test_index_masks_without_a_list_number_the_values_that_occur(tmp_path):
    source = read_masks(data(tmp_path, values(0, 3), values(0, 7, 255)))
    assert source.spaces["mask"].names == ("class_0", "class_1", "class_2")
    assert source.unnamed == {"mask"}
    assert np.array_equal(read(source.records[0]), values(0, 1))
    assert np.array_equal(read(source.records[1]), values(0, 2, 255))


def test_black_and_white_is_background_and_foreground(tmp_path):
    source = read_masks(data(tmp_path, values(0, 255), values(0, 0)))
    assert source.spaces["mask"].names == ("background", "foreground")
    assert np.array_equal(read(source.records[0]), values(0, 1))


def test_one_bit_masks_are_two_classes(tmp_path):
    root = data(tmp_path, values(0, 1))
    Image.fromarray(values(0, 255)).convert("1").save(root / "masks" / "a.png")
    assert np.array_equal(read(read_masks(root).records[0]), values(0, 1))


def test_palette_masks_count_by_index_not_by_colour(tmp_path):
    root = data(tmp_path, values(0, 1))
    image = Image.fromarray(values(0, 1, 255)).convert("P")
    image.putdata(list(values(0, 1, 255).reshape(-1)))
    image.putpalette([0, 0, 0, 128, 0, 0, *[9] * 759, 224, 224, 192])
    image.save(root / "masks" / "a.png")
    assert np.array_equal(read(read_masks(root).records[0]), values(0, 1, 255))


def test_a_list_of_names_numbers_the_classes_in_order(tmp_path):
    text(tmp_path / "classes.txt", "# surfaces\nsky\nroad\ngrass\n")
    source = read_masks(data(tmp_path, values(0, 2)))
    assert source.spaces["mask"].names == ("sky", "road", "grass")
    assert source.unnamed == frozenset()
    assert np.array_equal(read(source.records[0]), values(0, 2))


def test_a_list_of_values_names_each(tmp_path):
    text(tmp_path / "classes.txt", "10 sky\n40: road\n")
    source = read_masks(data(tmp_path, values(40, 10)))
    assert source.spaces["mask"].names == ("sky", "road")
    assert np.array_equal(read(source.records[0]), values(1, 0))


def test_a_value_of_no_class_is_told_and_ignored(tmp_path):
    listing = text(tmp_path / "classes.txt", "0 sky\n1 road\n")
    source = read_masks(data(tmp_path, values(0, 1, 9)))
    problem = only(source.problems, "unknown mask value")
    assert problem.where == str(listing)
    assert "9 (a.png)" in problem.message
    assert np.array_equal(read(source.records[0]), values(0, 1, 255))


@pytest.mark.parametrize(
    "listing",
    ["sky 0 0 255\nroad 128 64 128\n", "0,0,255,sky\n128,64,128,road\n", "name,r,g,b\nsky,0,0,255\nroad,128,64,128\n"],
    ids=["name first", "colour first", "header"],
)
def test_colour_masks_take_their_classes_from_a_list(tmp_path, listing):
    text(tmp_path / "label_colors.txt", listing)
    source = read_masks(data(tmp_path, values((128, 64, 128), (0, 0, 255), (1, 2, 3))))
    assert source.spaces["mask"].names == ("sky", "road")
    assert np.array_equal(read(source.records[0]), values(1, 0, 255))
    assert "(1, 2, 3)" in only(source.problems, "unknown mask value").message


def test_colour_masks_without_a_list_number_the_colours(tmp_path):
    source = read_masks(data(tmp_path, values((0, 0, 0), (255, 0, 0)), values((0, 0, 0), (0, 255, 0))))
    assert len(source.spaces["mask"].names) == 3
    # Colours count in ascending order: black, green, red.
    assert np.array_equal(read(source.records[0]), values(0, 2))
    assert np.array_equal(read(source.records[1]), values(0, 1))


@pytest.mark.parametrize(
    ("listing", "mask", "told"),
    [
        ("", values(0, 1), r"classes\.txt: no class in it"),
        ("sky\nsky\n", values(0, 1), r"the name 'sky' stands there twice"),
        ("0 sky\n0 road\n", values(0, 1), r"the value 0 stands there twice"),
        ("sky 0 0 255\nroad 128\ngrass 1 2 3\n", values((0, 0, 255), (1, 2, 3)), r"classes\.txt:2: 'road 128' has no"),
        ("sky 0 0 255\n", values(0, 1), r"lists colours, but the masks hold pixel values"),
        ("0 sky\n", values((0, 0, 255), (9, 9, 9)), r"lists pixel values, but the masks hold colours"),
        (
            "sky\nroad\n",
            values(0, 5, 9),
            r"2 names, but the masks have 3 values: 0 \(a\.png\), 5 \(a\.png\), 9 \(a\.png\); give each name its value",
        ),
        ("sky\n", values((1, 2, 3), (4, 5, 6)), r"give each name its colour: `name r g b`"),
    ],
)
def test_a_list_that_does_not_fit_is_named_with_the_remedy(tmp_path, listing, mask, told):
    text(tmp_path / "classes.txt", listing)
    with pytest.raises(DataError, match=told) as raised:
        read_masks(data(tmp_path, mask))
    assert str(tmp_path / "classes.txt") in str(raised.value)


def test_photographs_are_no_masks(tmp_path):
    root = data(tmp_path, values(0, 1))
    picture(root / "masks" / "a.png", 3)
    with pytest.raises(DataError, match="colours; are these pictures masks"):
        read_masks(root)


def test_masks_of_nothing_but_ignored_pixels_are_refused(tmp_path):
    with pytest.raises(DataError, match="every pixel of the masks is 255"):
        read_masks(data(tmp_path, values(255, 255)))


@pytest.mark.parametrize("broken", ["no picture", "sixteen bits"])
def test_a_mask_that_cannot_be_read_is_an_error_with_its_name(tmp_path, broken):
    root = data(tmp_path, values(0, 1), values(0, 1))
    bad = root / "masks" / "b.png"
    if broken == "no picture":
        bad.write_bytes(b"no picture")
    else:
        Image.fromarray(values(0, 1).astype(np.uint16) * 300).save(bad)
    source = read_masks(root)
    problem = only(source.problems, "bad mask")
    assert (problem.severity, problem.where) == ("error", str(bad))
    # Nor is it read as something else later.
    with pytest.raises(DataError, match=r"b\.png"):
        read(source.records[1])


def test_a_mask_of_another_size_names_both(tmp_path):
    root = data(tmp_path, values(0, 1, size=(10, 15)))
    with pytest.raises(DataError, match=r"a\.png is 15 x 10 pixels, its image 30 x 20"):
        read(read_masks(root).records[0])


@pytest.mark.parametrize("ending", ["_mask", "-label", "_gt", "_labelIds"])
def test_masks_may_say_so_in_their_name(tmp_path, ending):
    picture(tmp_path / "images" / "a.jpg")
    plane(tmp_path / "masks" / f"a{ending}.png", values(0, 1))
    (record,) = read_masks(tmp_path).records
    assert record.image.name == str(tmp_path / "images" / "a.jpg")


@pytest.mark.parametrize("layout", ["images/{split}/{name}", "{split}/images/{name}", "{split}/{name}"])
def test_equal_names_in_several_splits_are_paired_by_split(tmp_path, layout):
    for seed, split in enumerate(("train", "val")):
        picture(tmp_path / layout.format(split=split, name="a.jpg"), seed)
        folder = {"images/": "masks/{split}", "{split}/": "{split}/masks"}[layout[: layout.index("/") + 1]]
        plane(tmp_path / folder.format(split=split) / "a.png", values(0, seed + 1))
    source = read_masks(tmp_path)
    assert source.problems == []
    found = {record.split: read(record).max() for record in source.records}
    assert found == {"train": 1, "val": 2}


def test_camvid_folders_beside_their_splits_are_paired(tmp_path):
    for seed, split in enumerate(("train", "val")):
        picture(tmp_path / split / "a.png", seed)
        plane(tmp_path / f"{split}annot" / "a.png", values(0, 1))
    source = read_masks(tmp_path)
    assert [record.split for record in source.records] == ["train", "val"]
    assert source.problems == []


def test_voc_image_sets_decide_the_split_of_masks(tmp_path):
    for name in "ab":
        picture(tmp_path / "JPEGImages" / f"{name}.jpg", ord(name))
        plane(tmp_path / "SegmentationClass" / f"{name}.png", values(0, 1))
        plane(tmp_path / "SegmentationObject" / f"{name}.png", values(0, 1))
    text(tmp_path / "ImageSets" / "Segmentation" / "train.txt", "a\n")
    text(tmp_path / "ImageSets" / "Segmentation" / "val.txt", "b\n")
    source = read_masks(tmp_path)
    assert [(Path(record.image.name).stem, record.split) for record in source.records] == [("a", "train"), ("b", "val")]


def test_masks_without_image_and_of_two_images_are_errors(tmp_path):
    root = data(tmp_path, values(0, 1), values(0, 1))
    (root / "images" / "b.jpg").unlink()
    twin = plane(root / "masks" / "a_mask.png", values(0, 1))
    source = read_masks(root)
    assert len(source.records) == 1
    assert only(source.problems, "label without image").where == str(root / "masks" / "b.png")
    ambiguous = only(source.problems, "ambiguous mask")
    assert ambiguous.where == str(twin)
    assert str(root / "masks" / "a.png") in ambiguous.message


def test_a_folder_without_masks_or_without_their_images_is_refused(tmp_path):
    picture(tmp_path / "images" / "z.jpg")
    with pytest.raises(DataError, match="no folder `masks`"):
        read_masks(tmp_path)
    plane(tmp_path / "masks" / "a.png", values(0, 1))
    with pytest.raises(DataError, match="has the name of an image"):
        read_masks(tmp_path)
