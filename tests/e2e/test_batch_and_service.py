"""The same bytes sent to `lightning serve` and found by `lightning batch-predict`: the same answers."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.e2e.test_batch import batch_predict


def encoded(pixels, kind, **options):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def pictures():
    """Pictures of several sizes and formats by name: blurred noise, so that masks have odd borders."""
    rng = np.random.default_rng(0)

    def blobs(height, width):
        noise = rng.normal(0, 400, (height, width, 3)).astype(np.float32)
        return np.clip(cv2.GaussianBlur(noise, (0, 0), 4) + 128, 0, 255).astype(np.uint8)

    turned = Image.Exif()
    turned[0x0112] = 6  # lies on its side
    return {
        "small.png": encoded(blobs(20, 33), "PNG"),
        "square.png": encoded(blobs(32, 32), "PNG"),
        "photo.jpg": encoded(blobs(480, 640), "JPEG", quality=90),
        "large.jpg": encoded(blobs(1500, 2000), "JPEG", quality=90),
        "turned.jpg": encoded(blobs(300, 500), "JPEG", exif=turned),
        "narrow.webp": encoded(blobs(700, 40), "WEBP", lossless=True),
    }


def test_boxes_masks_and_labels_are_the_services_own(service, bundle, pictures, tmp_path):
    (tmp_path / "in").mkdir()
    for name, data in pictures.items():
        (tmp_path / "in" / name).write_bytes(data)
    done = batch_predict("in", "--model", bundle, "--out", "out", "--engine", "onnxruntime", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {(row["image"], row["head"]): row for row in pq.read_table(tmp_path / "out/predictions.parquet").to_pylist()}
    regions = 0
    for name, data in pictures.items():
        answer = service.client.post("/predict", content=data)
        assert answer.status_code == 200, answer.text
        (image,) = answer.json()["images"]
        labels, things, ground = (rows[name, head] for head in ("colour", "things", "ground"))
        assert image["size"] == {"width": labels["width"], "height": labels["height"]}
        heads = image["heads"]
        # The service rounds: scores to five digits, sides to a hundredth of a pixel.
        assert heads["colour"]["labels"] == labels["labels"]
        assert [entry["probability"] for entry in heads["colour"]["probabilities"]] == [
            round(value, 5) for value in labels["probabilities"]
        ]
        assert [(box["class"], box["score"], box["box"]) for box in heads["things"]["boxes"]] == [
            (label, round(score, 5), [round(side, 2) for side in box])
            for label, score, box in zip(things["labels"], things["scores"], things["boxes"], strict=True)
        ]
        found = zip(ground["classes"], ground["areas"], ground["counts"], strict=True)
        wanted = {index: (area, counts) for index, area, counts in found if index}  # the service leaves class 0 out
        assert {
            region["class_id"]: (region["pixels"], region["rle"]["counts"]) for region in heads["ground"]["regions"]
        } == wanted
        assert [region["rle"]["size"] for region in heads["ground"]["regions"]] == [
            [ground["height"], ground["width"]]
        ] * len(wanted)
        regions += len(wanted)
    assert regions == len(pictures)
