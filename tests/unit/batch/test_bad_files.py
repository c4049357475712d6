"""Files of every kind, whole, broken or vanishing: each is answered or listed with a reason."""

from __future__ import annotations

import io
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.unit.batch.helpers import fill, listed, predict
from tests.unit.bundles import known_bundle


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return known_bundle(tmp_path_factory.mktemp("model") / "known")


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def test_every_kind_of_picture_is_answered_and_every_broken_one_listed(model, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    image = Image.fromarray(noise)
    good = {
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "grey16.png": encoded(Image.fromarray(noise[..., 0].astype(np.uint16) * 256), "PNG"),
        "palette.gif": encoded(image.convert("P"), "GIF"),
        "one_bit.png": encoded(image.convert("1"), "PNG"),
        "alpha.webp": encoded(image.convert("RGBA"), "WEBP"),
        "float.tif": encoded(Image.fromarray(noise[..., 0].astype(np.float32)), "TIFF"),
        "is_a_png.jpg": encoded(image, "PNG"),
        "no ending": encoded(image, "JPEG"),
        "UPPER.JPG": encoded(image, "JPEG"),
        "pixel.png": encoded(image.crop((0, 0, 1, 1)), "PNG"),
        "strip.png": encoded(image.resize((2000, 1)), "PNG"),
        "progressive.jpg": encoded(image, "JPEG", progressive=True),
    }
    jpeg, png = encoded(image, "JPEG"), encoded(image, "PNG")
    header = b"IHDR" + (100_000).to_bytes(4, "big") * 2 + png[24:29]
    bad = {
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "cut.png": png[: len(png) // 2],
        "empty.png": b"",
        "text.jpg": b"just text",
        "flipped.png": png[:60] + bytes([png[60] ^ 255]) + png[61:],
        "header.bmp": b"BM" + b"\xff" * 60,
        "bomb.png": png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:],
        "vector.svg": b"<svg/>",
    }
    other = {"notes.txt": b"hello", ".DS_Store": b"\0\1", "archive.zip": b"PK\3\4"}
    folder = tmp_path / "in"
    folder.mkdir()
    for name, data in {**good, **bad, **other}.items():
        (folder / name).write_bytes(data)
    summary, _ = predict(folder, model, tmp_path / "out", tta="flip")
    errors, answered = listed(tmp_path / "out")
    assert answered == dict.fromkeys(good, 3)
    assert {name for name, error in errors.items() if error.get("skipped")} == other.keys()
    assert errors.keys() == {*bad, *other}
    assert summary["images"] == {"found": 20, "answered": 12, "failed": 8, "skipped": 3}
    assert errors["empty.png"]["reason"] == "the file is empty"
    assert errors["bomb.png"]["reason"] == "10000000000 pixels is more than 178956970"
    assert "Error" not in "".join(error["reason"] for error in errors.values() if not error.get("skipped"))
    assert errors["cut.jpg"]["kind"] == errors["cut.png"]["kind"] == "truncated or broken"


def test_a_file_that_vanishes_meanwhile_is_listed(model, tmp_path, monkeypatch):
    folder = fill(tmp_path / "in", 3)
    import serving.batch.run as running

    real = running.LocalRun.run

    def run(self, *arguments):
        (folder / "001.png").unlink()
        real(self, *arguments)

    monkeypatch.setattr(running.LocalRun, "run", run)
    predict(folder, model, tmp_path / "out")
    errors, answered = listed(tmp_path / "out")
    assert set(answered) == {"000.png", "002.png"}
    assert errors["001.png"]["reason"] == "No such file or directory"


def test_an_engine_that_fails_is_told_and_a_single_failure_listed(model, tmp_path, monkeypatch):
    from pipeline.errors import EngineError
    from serving.predictor import Predictor

    folder, real = fill(tmp_path / "in", 8), Predictor.infer
    cv2.imwrite(str(folder / "white.png"), np.full((40, 40, 3), 255, np.uint8))

    def fails_on_white(self, batch):
        if (batch == 255).all((1, 2, 3)).any():
            raise EngineError("engine x: a batch failed: odd pixels")
        return real(self, batch)

    monkeypatch.setattr(Predictor, "infer", fails_on_white)
    summary, _ = predict(folder, model, tmp_path / "out", batch=9)
    assert summary["images"]["answered"] == 8
    assert summary["errors"] == {"engine": 1}

    def fails(self, batch):
        raise EngineError("engine x: out of memory")

    monkeypatch.setattr(Predictor, "infer", fails)
    with pytest.raises(EngineError, match="out of memory"):
        predict(folder, model, tmp_path / "other")
