"""The data module: deterministic shapes, batches by seed, sources by weight, caches, and errors that name the key."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.cache import ImageCache
from pipeline.data.disk_cache import DiskCache
from pipeline.data.module import VisionData
from pipeline.data.sampling import EvalBatches, TrainBatches
from pipeline.data.shapes import read_shapes
from pipeline.data.unite import Source
from pipeline.errors import ConfigError, DataError
from pipeline.records import FileImage


def shapes(**options):
    return VisionData(shapes={"images": 24, "size": 64}, size=64, batch_size=4, workers=0, **options)


def folder(root, names, count=6, side=48, seed=0):
    """A folder per class of random pictures."""
    rng = np.random.default_rng(seed)
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (side, side + 16, 3), np.uint8)).save(root / name / f"{i}.png")
    return root


def test_shapes_are_the_same_for_the_same_seed_at_any_size():
    first, again = read_shapes(images=10, size=96, seed=4), read_shapes(images=10, size=96, seed=4)
    other = read_shapes(images=10, size=96, seed=5)
    for one, two, three in zip(first.records, again.records, other.records, strict=True):
        assert np.array_equal(one.image.read()[0], two.image.read()[0])
        assert not np.array_equal(one.image.read()[0], three.image.read()[0])
        assert np.array_equal(one.labels["objects"].xyxy, two.labels["objects"].xyxy)
        pixels, size = one.image.read()
        assert pixels.shape == (96, 96, 3)
        assert size == (96, 96)
        mask = one.labels["surface"].read(size)
        assert mask.max() < len(first.spaces["surface"].names)
        boxes = one.labels["objects"].xyxy
        assert (boxes >= 0).all()
        assert (boxes <= 96).all()
    assert {space.kind for space in first.spaces.values()} == {"classes", "boxes", "mask"}


def test_views_may_be_smaller_than_the_input():
    data = shapes(train_size=32)
    assert next(iter(data.train_dataloader())).images.shape == (4, 3, 32, 32)
    assert next(iter(data.val_dataloader())).images.shape[2:] == (64, 64)
    with pytest.raises(ConfigError, match=r"train_size \[96, 96\] is larger than data.size \[64, 64\]"):
        shapes(train_size=96)
    with pytest.raises(ConfigError, match=r"data\.train_size must be multiples of 32"):
        shapes(train_size=40)


def test_batches_hold_every_field_and_repeat_by_seed():
    data = shapes(mosaic=0.5, mixup=0.5, cutmix=0.5)
    first = list(data.train_dataloader())
    again = list(shapes(mosaic=0.5, mixup=0.5, cutmix=0.5).train_dataloader())
    assert len(first) == len(again) > 1
    for one, two in zip(first, again, strict=True):
        assert one.images.shape == (4, 3, 64, 64)
        assert one.images.dtype == torch.uint8
        assert torch.equal(one.images, two.images)
        assert set(one.targets) == set(data.label_spaces)
        assert torch.equal(one.targets["objects"].xyxy, two.targets["objects"].xyxy)
        assert one.targets["surface"].mask.shape == (4, 64, 64)


def test_mixing_ends_before_the_last_epochs():
    data = shapes(mosaic=1.0, mixup=1.0, close_mosaic=2, augment="none")
    data.trainer = type("T", (), {"max_epochs": 5, "global_rank": 0, "world_size": 1})()
    dataset = data.train_dataloader().dataset
    alone = shapes(augment="none").train_dataloader().dataset
    assert not np.array_equal(dataset[2, 0].image, alone[2, 0].image)
    assert np.array_equal(dataset[3, 0].image, alone[3, 0].image)


def test_evaluation_sees_every_image_once_with_its_frame():
    data = shapes()
    batches = list(data.test_dataloader())
    names = [name for batch in batches for name in batch.names]
    assert sorted(names) == sorted(record.image.name for record in data.records("test"))
    assert all(frame is not None for batch in batches for frame in batch.frames)


def test_processes_share_an_epoch_without_overlap_and_with_equal_steps():
    parts = [list(TrainBatches([0] * 37, None, 4, 0, rank, 3)) for rank in range(3)]
    assert {len(part) for part in parts} == {4}
    assert {index for part in parts for batch in part for _, index in batch} == set(range(37))
    held = [list(EvalBatches(11, 4, rank, 3)) for rank in range(3)]
    assert sorted(index for part in held for batch in part for _, index in batch) == list(range(11))


def test_epochs_differ_and_a_resumed_epoch_goes_on():
    batches = TrainBatches([0] * 20, None, 4, 0)
    first = list(batches)
    batches.set_epoch(1)
    second = list(batches)
    assert [i for batch in first for _, i in batch] != [i for batch in second for _, i in batch]
    batches.skip = 2
    assert list(batches) == second[2:]
    assert list(batches) == second


def test_sources_are_mixed_by_weight():
    sources = [0] * 90 + [1] * 10
    order = TrainBatches(sources, [1.0, 1.0], 4, 0).order()
    share = sum(sources[i] for i in order) / len(order)
    assert 0.35 < share < 0.65
    assert len({i for i in order if sources[i]}) == 10


def test_each_source_trains_the_fields_it_is_labelled_for(tmp_path):
    pets = folder(tmp_path / "pets", ["cat", "dog"])
    light = folder(tmp_path / "light", ["day", "night"], seed=1)
    data = VisionData(
        sources=[Source(str(pets), weight=3.0), Source(str(light), fields={"label": "light"})],
        size=32, batch_size=8, workers=0,
    )  # fmt: skip
    assert set(data.label_spaces) == {"label", "light"}
    for batch in data.train_dataloader():
        label, lit = batch.targets["label"].present, batch.targets["light"].present
        assert torch.equal(label, ~lit)
        assert label.tolist() == ["pets" in name for name in batch.names]
    united = VisionData(sources=[Source(str(pets)), Source(str(light))], size=32, workers=0)
    assert united.label_spaces["label"]["names"] == ["cat", "dog", "day", "night"]
    with pytest.raises(ConfigError, match=r"sources\[1\]\.fields: no field 'lable'"):
        _ = VisionData(sources=[Source(str(pets)), Source(str(light), fields={"lable": "x"})], size=32).label_spaces


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "1 or more"),
        ({"mixup": 1.5}, "data.mixup must be from 0 to 1, not 1.5"),
        ({"flip": -1}, "data.flip must be from 0 to 1, not -1"),
        ({"batch_size": 0}, "data.batch_size must be 1 or more, not 0"),
        ({"workers": -5}, "data.workers must be -1 or more"),
        ({"close_mosaic": -1}, "data.close_mosaic must be 0 or more"),
        ({"cache_gb": float("nan")}, "data.cache_gb must be 0 or more, not nan"),
        ({"augment": "strnog"}, "did you mean 'strong'"),
        ({"augment": [{"class_name": "Flp"}]}, "unknown transform 'Flp'"),
        ({"shapes": {"imags": 20}}, "data.shapes has no 'imags'; did you mean 'images'"),
        ({"root": "a", "sources": [Source("b")]}, "data.root or data.sources"),
    ],
)
def test_wrong_settings_are_told_at_once(options, message):
    with pytest.raises(ConfigError, match=message):
        VisionData(**options)


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_that_are_all_broken_stop_a_run_with_one_line(workers, tmp_path):
    root = folder(tmp_path / "data", ["a", "b"], 12)
    for file in root.rglob("*.png"):
        file.write_bytes(file.read_bytes()[:300])
    data = VisionData(str(root), size=32, batch_size=4, workers=workers)
    with pytest.raises(DataError) as told:
        next(iter(data.train_dataloader()))
    assert str(told.value).startswith("twenty images in a row cannot be read, among them ")
    assert "Traceback" not in str(told.value)


def test_a_missing_split_is_told(tmp_path):
    data = VisionData(str(folder(tmp_path, ["a", "b"])), size=32, split=(0.8, 0.2, 0.0), workers=0)
    assert len(data.val_dataloader()) == 1
    with pytest.raises(DataError, match=r"no test images; set data\.split"):
        data.test_dataloader()


def test_a_data_set_is_the_same_wherever_it_lies_until_it_changes(tmp_path, monkeypatch):
    root = folder(tmp_path / "here" / "data", ["a", "b"])
    masks = np.random.default_rng(0).integers(0, 2, (48, 64), np.uint8)
    (root / "masks").mkdir()
    for file in sorted(root.glob("[ab]/*.png")):
        named = file.rename(file.with_stem(f"{file.parent.name}{file.stem}"))
        Image.fromarray(masks).save(root / "masks" / named.name)

    def digest(place):
        return VisionData(str(place), "folders+masks", size=32).digest()

    first = digest(root)
    monkeypatch.chdir(root.parent)
    assert digest("data") == first
    root.rename(tmp_path / "there")
    assert digest(tmp_path / "there") == first
    file = next((tmp_path / "there" / "a").iterdir())
    file.write_bytes(file.read_bytes() + b"more")
    assert digest(tmp_path / "there") != first


def test_memory_cache_is_bounded_and_gives_the_same(tmp_path):
    root = folder(tmp_path, ["a"], count=4, side=200)
    images = [FileImage(path) for path in sorted((root / "a").iterdir())]
    cache = ImageCache(limit=2 * 100 * 100 * 3)
    first = [cache.read(image, 64) for image in images]
    assert 0 < cache.used <= cache.limit
    for image, (pixels, full) in zip(images, first, strict=True):
        assert max(pixels.shape) == 96
        assert full == (200, 216)
        again, size = cache.read(image, 64)
        assert np.array_equal(pixels, again)
        assert size == full


def test_disk_cache_survives_a_run_and_notices_changed_files(tmp_path):
    root = folder(tmp_path / "data", ["a"], count=3, side=200)
    images = [FileImage(path) for path in sorted((root / "a").iterdir())]
    store = tmp_path / "cache"
    first = [ImageCache(0, DiskCache(store, 1 << 20)).read(image, 64) for image in images]
    files = sorted(store.rglob("*.npy"))
    assert len(files) == 3
    assert not [path for path in store.rglob("*") if path.is_file() and path.suffix != ".npy"]
    stamps = [path.stat().st_mtime_ns for path in files]
    for image, (pixels, full) in zip(images, first, strict=True):
        again, size = ImageCache(0, DiskCache(store, 1 << 20)).read(image, 64)
        assert np.array_equal(pixels, again)
        assert size == full == (200, 216)
    assert [path.stat().st_mtime_ns for path in files] == stamps  # read, not written anew
    files[0].write_bytes(b"cut off")
    Image.fromarray(np.zeros((100, 100, 3), np.uint8)).save(images[1].path)
    for image in images:
        pixels, full = ImageCache(0, DiskCache(store, 1 << 20)).read(image, 64)
        assert np.array_equal(pixels, ImageCache(0).read(image, 64)[0])
    assert ImageCache(0, DiskCache(store, 1 << 20)).read(images[1], 64)[1] == (100, 100)


def test_disk_cache_stops_at_its_limit_and_fails_nothing(tmp_path):
    root = folder(tmp_path / "data", ["a"], count=4, side=200)
    images = [FileImage(path) for path in sorted((root / "a").iterdir())]
    cache = ImageCache(0, DiskCache(tmp_path / "cache", limit=60_000))
    for image in images:
        cache.read(image, 64)
    held = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.npy"))
    assert 0 < held <= 60_000
    (tmp_path / "file").write_text("in the way")
    pixels, _ = ImageCache(0, DiskCache(tmp_path / "file", 1 << 20)).read(images[0], 64)
    assert pixels.shape[2] == 3


def test_the_data_module_uses_its_disk_cache(tmp_path):
    root = folder(tmp_path / "data", ["a", "b"])
    data = VisionData(str(root), size=32, batch_size=4, workers=0, cache_dir=str(tmp_path / "cache"))
    plain = VisionData(str(root), size=32, batch_size=4, workers=0)
    for _ in range(2):
        for one, two in zip(data.train_dataloader(), plain.train_dataloader(), strict=True):
            assert torch.equal(one.images, two.images)
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == len(data.records("train"))
