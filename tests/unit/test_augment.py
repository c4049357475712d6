"""The albumentations adapter and the presets: arguments checked, everything moved alike, every effect seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.data.augment import Albumentations
from pipeline.data.fused import augment
from pipeline.data.presets import NAMES, PRESETS, Preset, find_preset
from pipeline.errors import ConfigError
from pipeline.records import Boxes

EXACT = (
    [{"class_name": "HorizontalFlip", "p": 1}],
    [{"class_name": "D4", "p": 1}],
    [{"class_name": "Affine", "scale": [0.7, 1.3], "translate_percent": [-0.2, 0.2], "p": 1}],
    [{"class_name": "RandomCrop", "height": 80, "width": 100, "p": 1}],
)


def labelled():
    """A dark picture with a bright block, its box and its mask; two fields of boxes, one of them empty."""
    image = np.full((120, 160, 3), 20, np.uint8)
    mask = np.zeros((120, 160), np.uint8)
    image[40:80, 50:110] = 250
    mask[40:80, 50:110] = 1
    labels = {
        "objects": Boxes.of([[50, 40, 110, 80]], [2]),
        "none": Boxes.of([], []),
        "surface": mask,
        "scene": np.ones(1, np.float32),
    }
    return image, labels


@pytest.mark.parametrize("described", EXACT, ids=lambda entry: entry[0]["class_name"])
def test_albumentations_moves_boxes_masks_and_pixels_alike(described):
    view = Albumentations(described, (96, 128))
    seen = 0
    for seed in range(12):
        image, labels = view(*labelled(), np.random.default_rng(seed))
        assert image.shape == (96, 128, 3)
        assert labels["surface"].shape == (96, 128)
        assert labels["scene"].tolist() == [1]
        assert len(labels["none"]) == 0
        ys, xs = np.nonzero(labels["surface"] == 1)
        if len(labels["objects"]) == 0:
            continue
        hull = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert labels["objects"].xyxy[0] == pytest.approx(hull, abs=2)
        assert labels["objects"].classes.tolist() == [2]
        assert image[labels["surface"] == 1].mean() > 200
        seen += 1
    assert seen


@pytest.mark.parametrize("way", ["preset", "albumentations"])
def test_a_smaller_view_is_cut_out_at_the_inputs_scale(way):
    views, whole = set(), 0
    for seed in range(24):
        rng = np.random.default_rng(seed)
        if way == "preset":
            image, labels = augment(*labelled(), (160, 224), Preset(flip=0.0), rng, (240, 320))
        else:
            image, labels = Albumentations([], (240, 320), (160, 224))(*labelled(), rng)
        assert image.shape == (160, 224, 3)
        assert labels["surface"].shape == (160, 224)
        ys, xs = np.nonzero(labels["surface"] == 1)
        if len(labels["objects"]) == 0:
            continue
        hull = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert labels["objects"].xyxy[0] == pytest.approx(hull, abs=2)
        views.add(tuple(hull))
        if hull[0] > 0 and hull[1] > 0 and hull[2] < 224 and hull[3] < 160:
            # 40 x 60 pixels of a picture of 120 x 160 are twice that at the input's scale.
            assert (hull[3] - hull[1], hull[2] - hull[0]) == (80, 120)
            whole += 1
    assert len(views) > 3
    assert whole


def test_the_same_draw_gives_the_same_view():
    view = Albumentations([{"class_name": "Affine", "rotate": [-90, 90], "p": 1}], (96, 128))
    first, _ = view(*labelled(), np.random.default_rng(3))
    again, _ = view(*labelled(), np.random.default_rng(3))
    other, _ = view(*labelled(), np.random.default_rng(4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"class_name": "HorizontalFlop"}, "HorizontalFlip"),
        ({"class_name": "Affine", "rotat": 5}, "no argument 'rotat'; did you mean 'rotate'"),
        ({"class_name": "Affine", "scale": "big"}, "Affine"),
        ({"class_name": "GaussNoise", "std_range": [2, 3]}, "GaussNoise"),
        ({"p": 1}, "unknown transform None"),
        ({"class_name": "HorizontalFlip", "p": 7}, r"HorizontalFlip: p Input should be .* \(not 7\)$"),
        ({"class_name": "Normalize"}, "Normalize gives float32 .* the network normalises by itself"),
        ({"class_name": "ToGray", "num_output_channels": 1, "p": 0.1}, "ToGray gives uint8"),
        ({"class_name": "ToTensorV2"}, "ToTensorV2 gives"),
        ({"class_name": "RandomCrop", "height": 97, "width": 20}, "RandomCrop: Crop size"),
        ({"class_name": "OneOf", "transforms": [{"class_name": "Blurr"}]}, "did you mean 'Blur'"),
        ({"class_name": "OneOf", "transforms": ["Blur"]}, "transforms of OneOf are mappings"),
    ],
)
def test_a_mistake_names_the_transform_and_the_remedy(entry, message):
    with pytest.raises(ConfigError, match=message):
        Albumentations([entry], (64, 64))


def test_a_transform_that_fails_on_a_small_picture_names_its_size():
    view = Albumentations([{"class_name": "RandomCrop", "height": 90, "width": 90}], (64, 64))
    with pytest.raises(ConfigError, match=r"data\.augment: on a picture of 60 x 50: Crop size"):
        view(np.zeros((50, 60, 3), np.uint8), {}, np.random.default_rng(0))


def test_one_of_several_transforms_is_drawn():
    entry = {
        "class_name": "OneOf",
        "p": 1.0,
        "transforms": [{"class_name": n} for n in ("HorizontalFlip", "Transpose")],
    }
    view = Albumentations([entry], (160, 160))
    found = {view(*labelled(), np.random.default_rng(seed))[1]["objects"].xyxy.round().tobytes() for seed in range(12)}
    assert len(found) == 2


def test_presets_by_task():
    assert find_preset("standard", {"boxes", "mask", "classes"}) is PRESETS["boxes"]["standard"]
    assert find_preset("standard", {"mask", "classes"}) is PRESETS["mask"]["standard"]
    assert find_preset("standard", {"multilabel"}) is PRESETS["labels"]["standard"]
    assert find_preset("light", {"classes"}, flip=0.0).flip == 0
    assert all(set(table) == set(NAMES) for table in PRESETS.values())
    assert all(table["none"] == Preset(flip=0.0) for table in PRESETS.values())
    # A rectangle that hides an object would leave its box.
    assert all(preset.erase == 0 for task in ("boxes", "mask") for preset in PRESETS[task].values())
    with pytest.raises(ConfigError, match="standart'; did you mean 'standard'"):
        find_preset("standart", {"boxes"})


def test_no_augmentation_is_the_letterbox():
    image, labels = labelled()
    view, moved = augment(image, labels, (120, 160), Preset(flip=0.0), np.random.default_rng(0))
    assert np.array_equal(view, image)
    assert np.array_equal(moved["surface"], labels["surface"])
    assert moved["objects"].xyxy.tolist() == labels["objects"].xyxy.tolist()


@pytest.mark.parametrize("effect", ["flip", "flip_vertical", "blur", "vignette", "lens", "erase"])
def test_every_effect_changes_the_view(effect):
    image, labels = labelled()
    image = (image + np.arange(160)[None, :, None] // 4 - np.arange(120)[:, None, None] // 8).astype(np.uint8)
    plain = Preset(flip=0.0)
    view, moved = augment(image, labels, (120, 160), replace(plain, **{effect: 1.0}), np.random.default_rng(1))
    assert not np.array_equal(view, image)
    if effect in {"blur", "vignette", "erase"}:
        assert np.array_equal(moved["surface"], labels["surface"])
    ys, xs = np.nonzero(moved["surface"] == 1)
    hull = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert moved["objects"].xyxy[0] == pytest.approx(hull, abs=3)
