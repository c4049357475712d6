"""Tiles and averaged views: what the pieces say together is what the whole says."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.imaging import decode
from pipeline.imaging.runs import MaskRuns
from serving.answers import BoxAnswer, LabelAnswer
from serving.batch.failures import StoppedError
from serving.batch.merge import average_boxes, merge_tiles, overlaps
from serving.batch.picture import Picture
from serving.batch.plan import Item
from serving.batch.regions import InMemory, on_disk, thumbnail
from serving.batch.sources import LocalFiles
from serving.batch.tiles import cut, empty_mask, merge_labels, starts
from serving.batch.tta import MirroredEngine
from serving.batch.work import Worker, read_item
from serving.predictor import Predictor
from tests.unit.batch.helpers import content, predict, settings_for
from tests.unit.bundles import HEADS, known_bundle


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return known_bundle(tmp_path_factory.mktemp("model") / "known")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One picture of 100 x 75, noise that is bluer to the right, and a small one."""
    place = tmp_path_factory.mktemp("pictures") / "in"
    place.mkdir()
    pixels = np.random.default_rng(0).integers(0, 200, (75, 100, 3)).astype(np.uint8)
    pixels[:, 60:, 0] += 50  # BGR
    cv2.imwrite(str(place / "large.png"), pixels)
    cv2.imwrite(str(place / "small.png"), pixels[:20, :25])
    return place


def rows_of(out):
    return {(row["image"], row["head"]): row for row in pq.read_table(out / "predictions.parquet").to_pylist()}


@given(st.integers(1, 300), st.integers(1, 300), st.integers(16, 200), st.floats(0, 0.8))
@settings(max_examples=40, deadline=None)
def test_tiles_cover_the_picture_with_the_overlap_asked_for(height, width, tile, overlap):
    tiles = cut((height, width), tile, overlap)
    seen = np.zeros((height, width), int)
    for left, top, right, bottom in tiles:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert right - left == min(tile, width)
        assert bottom - top == min(tile, height)
        seen[top:bottom, left:right] += 1
    assert seen.all()
    begins = starts(width, tile, overlap)
    assert all(b - a <= max(1, tile * (1 - overlap)) + 1 for a, b in pairwise(begins))


@st.composite
def scattered(draw):
    """Boxes on a grid of places, so that no two touch, of sizes from small to longer than a tile."""
    boxes = []
    for row in range(3):
        for column in range(3):
            if draw(st.booleans()):
                x, y = column * 160 + draw(st.integers(2, 20)), row * 160 + draw(st.integers(2, 20))
                boxes.append([x, y, x + draw(st.integers(12, 130)), y + draw(st.integers(12, 130))])
    return boxes, draw(st.integers(0, 2**31))


@given(scattered())
@settings(max_examples=60, deadline=None)
def test_objects_cut_by_tiles_are_put_together_again(case):
    objects, seed = np.asarray(case[0], np.float32).reshape(-1, 4), case[1]
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 3, len(objects))
    tiles, found = cut((480, 480), 100, 0.25), []
    for left, top, right, bottom in tiles:
        pieces, names = [], []
        for box, kind in zip(objects, kinds, strict=True):
            piece = np.clip(box, [left, top] * 2, [right, bottom] * 2)
            if min(piece[2] - piece[0], piece[3] - piece[1]) > 0:
                pieces.append(piece)
                names.append(kind)
        order = rng.permutation(len(pieces))
        scores = np.sort(rng.uniform(0.3, 1, len(pieces)))[::-1].astype(np.float32)
        boxes = np.asarray(pieces, np.float32).reshape(-1, 4)[order]
        found.append(BoxAnswer(boxes, scores, np.asarray(names, np.int64)[order]))
    merged = merge_tiles(tiles, found, (480, 480))
    assert len(merged.boxes) == len(objects)
    assert (np.diff(merged.scores) <= 0).all()
    for box, kind in zip(objects, kinds, strict=True):
        nearest = overlaps(box[None], merged.boxes)[0]
        assert nearest.max() > 0.999
        assert merged.classes[nearest.argmax()] == kind


def test_a_small_object_inside_a_large_one_stays():
    tiles = [(0, 0, 100, 100), (60, 0, 160, 100)]
    large, small = [10, 10, 150, 90], [70, 40, 80, 50]
    first = BoxAnswer(np.asarray([[10, 10, 100, 90]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
    second = BoxAnswer(
        np.asarray([[60, 10, 150, 90], small], np.float32), np.asarray([0.9, 0.8], np.float32), np.zeros(2, np.int64)
    )
    merged = merge_tiles(tiles, [first, second], (100, 160))
    assert merged.boxes.tolist() == [large, small]


def test_masks_and_labels_of_tiles_are_those_of_every_pixel(folder, model, tmp_path):
    predict(folder, model, tmp_path / "out", tile=32, overlap=0.25)
    rows = rows_of(tmp_path / "out")
    pixels = cv2.imread(str(folder / "large.png"))
    row = rows["large.png", "ground"]
    mask = MaskRuns.decoded(dict(zip(row["classes"], row["counts"], strict=True)), (75, 100)).mask()
    np.testing.assert_array_equal(mask, pixels[..., 0] > pixels[..., 2])
    tiles = cut((75, 100), 32, 0.25)
    means = np.stack([pixels[t:b, left:r, ::-1].reshape(-1, 3).mean(0) for left, t, r, b in tiles]) / 255 * 10
    powers = np.exp(means - means.max(1, keepdims=True))
    wanted = (powers / powers.sum(1, keepdims=True)).mean(0)
    np.testing.assert_allclose(rows["large.png", "colour"]["probabilities"], wanted, atol=1e-4)


@pytest.mark.parametrize("tile", [32, 0])
def test_a_picture_of_many_tiles_can_be_stopped_within(folder, model, tmp_path, monkeypatch, tile):
    """Otherwise Ctrl-C would wait for thousands of them."""
    calls = []
    predictor = Predictor.load(model, "onnxruntime", threads=1)
    wanted = settings_for(folder, model, tmp_path / "out", tile=tile, overlap=0.8, batch=4)
    worker = Worker(predictor, LocalFiles(folder, wanted.out), wanted, SimpleNamespace())
    real = predictor.engine.infer

    def infer(batch):
        calls.append(len(batch))
        worker.stop()
        return real(batch)

    monkeypatch.setattr(predictor.engine, "infer", infer)
    items = [Item(b"large.png"), Item(b"small.png")]
    with pytest.raises(StoppedError):
        for item in items:
            worker.process([item], [read_item(worker.source, item)])
    assert calls == [4 if tile else 1]


def test_a_picture_smaller_than_a_tile_is_answered_as_ever(folder, model, tmp_path):
    predict(folder, model, tmp_path / "tiles", tile=32)
    predict(folder, model, tmp_path / "whole")
    for head in HEADS:
        tiled, whole = (rows_of(tmp_path / out)["small.png", head] for out in ("tiles", "whole"))
        # An engine may round otherwise in a batch of another size.
        assert tiled.pop("scores") == pytest.approx(whole.pop("scores"), abs=1e-5)
        assert tiled.pop("probabilities") == pytest.approx(whole.pop("probabilities"), abs=1e-5)
        assert tiled == whole


def test_labels_that_exclude_each_other_are_averaged_and_others_add_up():
    one, two = np.asarray([0.9, 0.1], np.float32), np.asarray([0.1, 0.9], np.float32)
    assert merge_labels([LabelAnswer(one), LabelAnswer(two)]).probabilities.tolist() == [0.5, 0.5]
    several = merge_labels([LabelAnswer(one, multilabel=True), LabelAnswer(two, multilabel=True)])
    assert several.chosen == [0, 1]


@pytest.mark.parametrize("ending", ["tif", "png", "jpg"])
def test_a_picture_too_large_to_decode_is_read_by_region(ending, folder, model, tmp_path, monkeypatch):
    pyvips = pytest.importorskip("pyvips")
    source = tmp_path / "in"
    source.mkdir()
    image = pyvips.Image.new_from_file(str(folder / "large.png"))
    image.write_to_file(
        str(source / f"a.{ending}"), **({"tile": True, "tile_width": 16, "tile_height": 16} if ending == "tif" else {})
    )
    options = {"tile": 32, "overlap": 0.25, "overlay": True, "crops": True}
    predict(source, model, tmp_path / "memory", **options)
    monkeypatch.setattr(decode, "MAX_PIXELS", 5000)
    predict(source, model, tmp_path / "disk", **options)
    memory, disk = content(tmp_path / "memory"), content(tmp_path / "disk")
    for found in (memory, disk):
        found.pop("report.html")  # its samples are shrunk by another library
    page = (tmp_path / "disk" / "report.html").read_text()
    assert page.count("<figure><img") == page.count("<figure>") > 3
    assert not list((tmp_path / "disk" / ".batch" / "tmp").iterdir())
    if ending != "jpg":  # the two decoders may differ in the last bit
        assert disk == memory
    assert disk.keys() == memory.keys()
    assert {"crops/things/thing/a_0.jpg", "overlay/a.jpg"} < disk.keys()
    summary, _ = predict(source, model, tmp_path / "whole")
    assert summary["errors"] == {"too many pixels": 1}


def test_regions_are_upright_and_over_white_like_any_other(tmp_path):
    pytest.importorskip("pyvips")
    from PIL import Image

    pixels = np.random.default_rng(1).integers(0, 255, (30, 50, 4)).astype(np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels[..., :3]).save(tmp_path / "turned.tif", exif=exif)
    Image.fromarray(pixels[..., :3]).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    for name in ("alpha.png", "turned.tif", "turned.png", "grey.png"):
        plain, size = decode.read_image(tmp_path / name)
        for source in (tmp_path / name, (tmp_path / name).read_bytes()):
            regions = on_disk(source, name, tmp_path)
            assert regions.size == size
            found = regions.crop(0, 0, size[1], size[0])
            assert np.abs(found.astype(int) - plain).max() <= 1
            small = thumbnail(source, name, 25)
            assert small.shape == (round(size[0] * 25 / max(size)), round(size[1] * 25 / max(size)), 3)
            assert abs(float(small.mean()) - float(plain.mean())) < 3
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_crops_of_a_large_picture_do_not_stay_in_memory(folder):
    pytest.importorskip("pyvips")
    code = """
import sys
from pathlib import Path
import numpy as np
from serving.batch.regions import on_disk

def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) >> 10

on_disk(Path(sys.argv[1]), "x")
np.ones(20 << 20, np.uint8)  # its end teaches glibc to take the next ones from its heap
before, kept = resident(), []
for _ in range(5):
    crop = np.ones(20 << 20, np.uint8)
    kept.append(np.ones(30_000, np.uint8))  # an answer, on top of the heap
    del crop
    kept.append(np.ones(30_000, np.uint8))
print(resident() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, folder / "large.png"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 10


def test_a_broken_picture_that_is_read_late_is_listed(folder, model, tmp_path, monkeypatch):
    pytest.importorskip("pyvips")
    source = tmp_path / "in"
    source.mkdir()
    data = (folder / "large.png").read_bytes()
    (source / "cut.png").write_bytes(data[: len(data) // 2])
    monkeypatch.setattr(decode, "MAX_PIXELS", 5000)
    summary, _ = predict(source, model, tmp_path / "out", tile=32)
    assert summary["images"]["failed"] == 1


def test_a_huge_picture_is_shrunk_for_its_overlay():
    pixels = np.random.default_rng(0).integers(0, 255, (61, 47, 3)).astype(np.uint8)
    shrunk, factor = Picture("a", None, None, InMemory(pixels)).pixels(most=400)
    assert factor == 3
    assert shrunk.shape == (20, 15, 3)
    wanted = pixels[:60, :45].reshape(20, 3, 15, 3, 3).mean((1, 3))
    np.testing.assert_allclose(shrunk, wanted, atol=1)


def test_a_large_mask_lies_in_a_nameless_file(tmp_path, monkeypatch):
    monkeypatch.setattr("serving.batch.tiles.IN_MEMORY", 10)
    mask = empty_mask((20, 30), tmp_path)
    mask[5, 7] = 3
    assert isinstance(mask, np.memmap)
    assert mask.sum() == 3
    assert not list(tmp_path.iterdir())


def outputs(boxes, scores, classes, labels, planes):
    return {
        "things.boxes": np.asarray([boxes], np.float32), "things.scores": np.asarray([scores], np.float32),
        "things.classes": np.asarray([classes]), "colour.probabilities": np.asarray([labels], np.float32),
        "ground.probabilities": np.asarray([planes], np.float32), "ground.mask": np.argmax([planes], 1).astype(np.uint8),
    }  # fmt: skip


def test_a_mirror_image_is_mirrored_back_and_averaged():
    planes = np.zeros((2, 4, 10))
    planes[1, :, :3] = 1.0  # class 1 on the left
    plain = outputs([[1, 1, 3, 3], [5, 0, 9, 4]], [0.8, 0.6], [0, 1], [0.7, 0.2, 0.1], planes)
    turned = outputs([[7, 1, 9, 3], [0, 0, 1, 1]], [0.4, 0.2], [0, 1], [0.5, 0.4, 0.1], planes[:, :, ::-1] * 0.5)
    batch = np.arange(120, dtype=np.uint8).reshape(1, 4, 10, 3)
    engine = SimpleNamespace(infer=lambda given: plain if given[0, 0, 0, 0] == 0 else turned)
    found = MirroredEngine(engine, HEADS).infer(batch)
    assert found["colour.probabilities"].tolist() == [pytest.approx([0.6, 0.3, 0.1])]
    assert found["ground.mask"].tolist() == plain["ground.mask"].tolist()
    assert found["ground.probabilities"][0, 1, 0, 0] == pytest.approx(0.75)
    assert found["things.boxes"].tolist() == [[[1, 1, 3, 3], [5, 0, 9, 4]]]
    assert found["things.scores"].tolist() == [pytest.approx([0.6, 0.3])]


def test_two_views_of_a_box_are_weighted_by_score():
    first = (np.asarray([[0, 0, 10, 10]], np.float32), np.asarray([0.9], np.float32), np.asarray([1]))
    second = (np.asarray([[0, 0, 13, 10]], np.float32), np.asarray([0.3], np.float32), np.asarray([1]))
    boxes, scores, classes = average_boxes(first, second)
    np.testing.assert_allclose(boxes, [[0, 0, 10.75, 10]])
    np.testing.assert_allclose(scores, [0.6])
    assert classes.tolist() == [1]


def test_flip_and_ten_crop_from_end_to_end(folder, model, tmp_path):
    predict(folder, model, tmp_path / "plain")
    predict(folder, model, tmp_path / "flip", tta="flip")
    predict(folder, model, tmp_path / "ten", tta="ten-crop")
    plain, flip, ten = (rows_of(tmp_path / name) for name in ("plain", "flip", "ten"))
    assert plain.keys() == flip.keys() == ten.keys()
    key = ("large.png", "colour")  # a mean colour is the same in the mirror
    np.testing.assert_allclose(flip[key]["probabilities"], plain[key]["probabilities"], atol=1e-5)
    assert ten[key]["probabilities"] != plain[key]["probabilities"]
    assert sum(ten[key]["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert ten["large.png", "things"] == plain["large.png", "things"]
    with pytest.raises(ConfigError, match="take one of them"):
        predict(folder, model, tmp_path / "none", tta="ten-crop", tile=32)
    with pytest.raises(ConfigError, match="averages image labels"):
        predict(folder, model, tmp_path / "none", tta="ten-crop", heads=("things",))
