"""What the writers write, read back by the programs it is meant for."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.bundle import read_bundle
from pipeline.errors import ConfigError
from serving.batch.journal import Journal
from serving.batch.writers.base import Context
from serving.batch.writers.coco import Writer
from serving.batch.writers.registry import FORMATS
from tests.unit.batch.helpers import predict, settings_for
from tests.unit.bundles import known_bundle

RED, BLUE = (0, 0, 255), (255, 0, 0)  # BGR


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return known_bundle(tmp_path_factory.mktemp("model") / "known")


@pytest.fixture(scope="module")
def out(model, tmp_path_factory):
    """A red a.png, an a.jpg half blue, and deep/b.png of both; written in every format."""
    place = tmp_path_factory.mktemp("writers")
    (place / "in" / "deep").mkdir(parents=True)
    half = np.full((64, 64, 3), RED, np.uint8)
    half[:, 32:] = BLUE
    cv2.imwrite(str(place / "in" / "a.png"), np.full((64, 64, 3), RED, np.uint8))
    cv2.imwrite(str(place / "in" / "a.jpg"), half, [cv2.IMWRITE_JPEG_QUALITY, 100])
    cv2.imwrite(str(place / "in" / "deep" / "b.png"), half)
    (place / "in" / "bad.png").write_bytes(b"")
    predict(place / "in", model, place / "out", formats=FORMATS, overlay=True, crops=True)
    return place / "out"


def test_a_head_named_images_has_a_coco_file_of_its_own(tmp_path):
    bundle = read_bundle(known_bundle(tmp_path / "known"))
    heads = {"images" if name == "things" else name: head for name, head in bundle.manifest.heads.items()}
    manifest = replace(bundle.manifest, heads=heads)
    settings = settings_for(tmp_path, bundle.path, tmp_path / "out")
    with Writer(Context(settings, manifest)).writing(Journal(tmp_path / "out")):
        pass
    found = {path.name: json.loads(path.read_text()) for path in (tmp_path / "out" / "coco").iterdir()}
    assert found.keys() == {"ground.json", "images.json", "images_.json"}
    assert found["images_.json"] == []
    assert {each["supercategory"] for each in found["images.json"]["categories"]} == {"images", "ground"}


def test_coco_results_go_straight_into_pycocotools(out, tmp_path, capsys):
    images = json.loads((out / "coco" / "images.json").read_text())
    assert {e["file_name"]: e["id"] for e in images["images"]} == {"a.jpg": 1, "a.png": 2, "deep/b.png": 4}
    boxes = [c for c in images["categories"] if c["supercategory"] == "things"]
    truth = [
        {"id": n, "image_id": image, "category_id": 1, "bbox": [16, 32, 32, 32], "area": 1024, "iscrowd": 0}
        for n, image in enumerate((1, 2, 4), 1)
    ]
    (tmp_path / "truth.json").write_text(
        json.dumps({"images": images["images"], "categories": boxes, "annotations": truth})
    )
    known = COCO(str(tmp_path / "truth.json"))
    scored = COCOeval(known, known.loadRes(str(out / "coco" / "things.json")), "bbox")
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    assert scored.stats[1] == pytest.approx(1.0)  # AP at IoU 0.5
    masks = json.loads((out / "coco" / "ground.json").read_text())
    whole = [m for m in masks if m["image_id"] == 2]
    assert len(whole) == 1
    assert coco_mask.area(whole[0]["segmentation"]) == 64 * 64
    capsys.readouterr()


def test_json_lines_hold_every_answered_image(out):
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == ["a.jpg", "a.png", "deep/b.png"]
    assert lines[1]["heads"]["colour"]["labels"] == ["red"]
    (box,) = lines[1]["heads"]["things"]["boxes"]
    assert box == {"label": "thing", "score": pytest.approx(0.9), "box": [16, 32, 48, 64]}
    assert sum(c["area"] for c in lines[0]["heads"]["ground"]["classes"]) == 64 * 64


def test_csv_has_a_line_for_each_finding(out):
    with (out / "predictions.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["image"] == "deep/b.png"]
    assert [(row["head"], row["label"]) for row in rows] == [
        ("colour", rows[0]["label"]), ("things", "thing"), ("ground", "warm"), ("ground", "cold"),
    ]  # fmt: skip
    assert [float(rows[1][side]) for side in ("x1", "y1", "x2", "y2")] == [16, 32, 48, 64]
    assert int(rows[2]["area"]) + int(rows[3]["area"]) == 64 * 64


def test_yolo_text_is_relative_and_names_do_not_collide(out):
    files = {str(path.relative_to(out / "yolo")) for path in (out / "yolo").rglob("*") if path.is_file()}
    assert files == {"things.names", "things/a.png.txt", "things/a.jpg.txt", "things/deep/b.txt"}
    kind, *place, score = (out / "yolo" / "things" / "deep" / "b.txt").read_text().split()
    assert kind == "0"
    assert [float(v) for v in place] == [0.5, 0.75, 0.5, 0.5]
    assert float(score) == pytest.approx(0.9)
    assert (out / "yolo" / "things.names").read_text().split() == ["thing", "other"]


def test_index_masks_hold_the_class_of_each_pixel(out):
    with Image.open(out / "masks" / "ground" / "deep" / "b.png") as image:
        assert image.mode == "P"
        mask = np.asarray(image)
    assert mask.shape == (64, 64)
    assert (mask[:, :30] == 0).all()
    assert (mask[:, 34:] == 1).all()


def test_overlays_and_crops_show_what_was_found(out):
    assert {p.name for p in (out / "overlay").rglob("*.jpg")} == {"a.png.jpg", "a.jpg.jpg", "b.jpg"}
    drawn = cv2.imread(str(out / "overlay" / "deep" / "b.jpg"))
    assert drawn.shape == (256, 256, 3)
    crop = cv2.imread(str(out / "crops" / "things" / "thing" / "deep" / "b_0.jpg"))
    assert crop.shape == (32, 32, 3)
    assert (crop[:, :12, 2] > 200).all()
    assert (crop[:, 20:, 0] > 200).all()


def test_a_strip_is_drawn_without_becoming_huge_and_its_pictures_are_whole(model, tmp_path):
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "strip.png"), np.full((1, 70_000, 3), RED, np.uint8))
    cv2.imwrite(str(tmp_path / "in" / "flat.png"), np.full((20, 800, 3), RED, np.uint8))
    predict(tmp_path / "in", model, tmp_path / "out", overlay=True, crops=True)
    assert cv2.imread(str(tmp_path / "out" / "overlay" / "strip.jpg")).shape == (59, 65_500, 3)
    assert cv2.imread(str(tmp_path / "out" / "overlay" / "flat.jpg")).shape == (20, 800, 3)
    crop = cv2.imread(str(tmp_path / "out" / "crops" / "things" / "thing" / "strip_0.jpg"))
    assert crop.shape == (1, 35_000, 3)


def test_parquet_has_one_row_for_each_image_and_head(out):
    rows = pq.read_table(out / "predictions.parquet").to_pylist()
    assert [(row["image"], row["head"]) for row in rows] == [
        (image, head) for image in ("a.jpg", "a.png", "deep/b.png") for head in ("colour", "things", "ground")
    ]


def test_heads_masks_and_thresholds_are_the_users(model, out, tmp_path):
    source = out.parent / "in"
    summary, _ = predict(source, model, tmp_path / "some", heads=("things", "ground"), masks=False, threshold=0.001)
    assert {name: head["counts"] for name, head in summary["heads"].items()} == {"things": {"thing": 3, "other": 3}}
    _, lines = predict(source, model, tmp_path / "labels", heads=("colour",), formats=FORMATS, crops=True)
    for told in ("--format coco writes nothing: no head that is answered has boxes or a mask", "--format masks writes",
                 "--format yolo writes nothing: no head that is answered has boxes", "--crops writes nothing"):  # fmt: skip
        assert any(line.startswith(told) for line in lines), told
    assert not any("csv" in line for line in lines)
    assert sorted(path.name for path in (tmp_path / "labels").iterdir()) == [
        ".batch", "coco", "errors.jsonl", "predictions.csv", "predictions.jsonl", "predictions.parquet", "report.html",
        "summary.json",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="no head 'thngs'"):
        predict(source, model, tmp_path / "none", heads=("thngs",))
    with pytest.raises(ConfigError, match="unknown format 'coc'; did you mean 'coco'"):
        predict(source, model, tmp_path / "none", formats=("coc",))
    with pytest.raises(ConfigError, match="nothing to answer"):
        predict(source, model, tmp_path / "none", heads=("ground",), masks=False)
