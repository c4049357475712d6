"""Whatever a folder holds, every file is answered or listed with a reason, and nothing is written elsewhere."""

from __future__ import annotations

import io
import json
import os
import socket
from collections import Counter

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.cli_batch import main, settings_from
from pipeline.errors import ConfigError, DataError
from serving.batch.names import raw
from serving.batch.sources import open_source
from tests.unit.batch.helpers import content, fill, picture, predict
from tests.unit.bundles import known_bundle


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return known_bundle(tmp_path_factory.mktemp("model") / "known")


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def listed(out):
    """Reasons by file, and the images that were answered."""
    errors = {e["image"]: e for e in map(json.loads, (out / "errors.jsonl").read_text().splitlines())}
    return errors, Counter(pq.read_table(out / "predictions.parquet")["image"].to_pylist())


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
    bad = {
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "cut.png": png[: len(png) // 2],
        "empty.png": b"",
        "text.jpg": b"just text",
        "flipped.png": png[:60] + bytes([png[60] ^ 255]) + png[61:],
        "header.bmp": b"BM" + b"\xff" * 60,
        "bomb.png": png[:16] + (100_000).to_bytes(4, "big") * 2 + png[24:],
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
    assert "Error" not in "".join(error["reason"] for error in errors.values() if not error.get("skipped"))
    assert errors["cut.jpg"]["kind"] == errors["cut.png"]["kind"] == "truncated or broken"


def test_names_of_any_bytes_have_answers_and_files(model, tmp_path):
    folder = os.fsencode(tmp_path / "in")
    names = [b"with space.png", b"new\nline.png", b"tab\t.png", "ünï ☃.png".encode(), b"latin\xe9.png", b"back\\slash.png",
             b"-dash.png", b"quo'te\".png", b"%41.png", b"latin\\xe9.png", b"a/same.png", b"b/same.png", b"a/same.PNG",
             b"x" * 240 + b".png"]  # fmt: skip
    os.makedirs(folder + b"/a")
    os.makedirs(folder + b"/b")
    for number, name in enumerate(names):
        with open(folder + b"/" + name, "wb") as file:
            file.write(picture(number))
    predict(tmp_path / "in", model, tmp_path / "out", formats=("yolo", "csv", "coco", "jsonl", "masks"), overlay=True)
    errors, answered = listed(tmp_path / "out")
    assert sorted(raw(name) for name in answered) == sorted(names)
    assert not errors
    for kind, ending in ((b"yolo/things", b".txt"), (b"overlay", b".jpg"), (b"masks/ground", b".png")):
        place, found = os.fsencode(tmp_path / "out") + b"/" + kind, set()
        for base, _, held in os.walk(place):
            found |= {os.path.relpath(base + b"/" + name, place) for name in held}
        bases = {name if name.lower() == b"a/same.png" else name.removesuffix(b".png") for name in names}
        assert found == {base + ending for base in bases}
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == len(names)


def test_a_name_too_long_for_its_output_is_listed(model, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / ("y" * 251 + ".png")).write_bytes(picture(0))
    (folder / "good.png").write_bytes(picture(1))
    summary, _ = predict(folder, model, tmp_path / "out", crops=True)
    errors, answered = listed(tmp_path / "out")
    assert answered == {"good.png": 3}
    (error,) = errors.values()
    assert "File name too long" in error["reason"]
    assert summary["images"]["failed"] == 1


def test_links_sockets_and_hidden_folders(model, tmp_path):
    folder = fill(tmp_path / "in", 1)
    elsewhere = fill(tmp_path / "elsewhere", 1)
    (folder / "sub").mkdir()
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "sub" / "self").symlink_to(folder / "sub" / "self")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails" / "t.png").write_bytes(picture(3))
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "socket"))
    predict(folder, model, tmp_path / "out")
    errors, answered = listed(tmp_path / "out")
    assert set(answered) == {"000.png", "linked/000.png"}
    assert errors["sub/up/"]["reason"] == "a link in a circle"
    assert errors["sub/up/"]["skipped"]
    assert errors[".thumbnails/"]["reason"] == "a hidden folder"
    assert errors["pipe.png"]["reason"] == "not a regular file"
    assert errors["gone.png"]["reason"] == "cannot be read: No such file or directory"
    assert "skipped" not in errors["gone.png"]
    assert "Too many levels of symbolic links" in errors["sub/self"]["reason"]


def test_a_sub_folder_or_file_that_may_not_be_read_is_listed(model, tmp_path, monkeypatch):
    folder = fill(tmp_path / "in", 2)
    (folder / "locked").mkdir()
    real_scan, real_open = os.scandir, open

    def scan(place):  # the tests may run as root, whom no permission stops
        if os.fsencode(place).rstrip(b"/").endswith(b"locked"):
            raise PermissionError(13, os.strerror(13))
        return real_scan(place)

    def opened(place, *arguments, **named):
        if isinstance(place, bytes) and place.endswith(b"001.png"):
            raise PermissionError(13, os.strerror(13))
        return real_open(place, *arguments, **named)

    monkeypatch.setattr(os, "scandir", scan)
    monkeypatch.setattr("builtins.open", opened)
    summary, _ = predict(folder, model, tmp_path / "out")
    monkeypatch.undo()
    errors, answered = listed(tmp_path / "out")
    assert set(answered) == {"000.png"}
    assert errors["locked/"]["reason"] == "the folder cannot be read: Permission denied"
    assert errors["001.png"]["reason"] == "Permission denied"
    assert summary["images"]["failed"] == 2


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


def test_folders_without_images_are_told(model, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no file"):
        predict(tmp_path / "empty", model, tmp_path / "out")
    (tmp_path / "empty" / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"empty holds no image .1 other files"):
        predict(tmp_path / "empty", model, tmp_path / "out")
    with pytest.raises(
        DataError, match="does not exist; give a folder, a glob in quotes, a list file or an fsspec URL"
    ):
        predict(tmp_path / "nowhere", model, tmp_path / "out")
    with pytest.raises(DataError, match=r"\*.png holds no file"):
        predict(str(tmp_path / "*.png"), model, tmp_path / "out")
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(DataError, match="names no file"):
        predict(tmp_path / "list.txt", model, tmp_path / "out")


def test_the_output_folder_inside_the_source_is_not_answered(model, tmp_path):
    folder = fill(tmp_path / "in", 2)
    predict(folder, model, folder / "out", overlay=True)
    summary, _ = predict(folder, model, folder / "out", overlay=True, restart=True)
    assert summary["images"] == {"found": 2, "answered": 2, "failed": 0, "skipped": 0}
    with pytest.raises(ConfigError, match="lies inside the output folder"):
        predict(folder / "out" / "overlay", model, folder / "out")


def test_nothing_leaves_the_output_folder(model, tmp_path):
    folder, outside = fill(tmp_path / "in", 2), tmp_path / "outside"
    (folder / "sub").mkdir()
    (folder / "sub" / "x.png").write_bytes(picture(5))
    outside.mkdir()
    out = tmp_path / "out"
    (out / ".batch").mkdir(parents=True)
    (out / "overlay").mkdir()
    (out / "overlay" / "sub").symlink_to(outside)
    predict(folder, model, out, overlay=True)
    errors, answered = listed(out)
    assert set(answered) == {"000.png", "001.png"}
    assert errors["sub/x.png"]["kind"] == "a link in the output folder leads out of it"
    assert not list(outside.iterdir())


def test_head_and_class_names_cannot_lead_out(tmp_path):
    from dataclasses import replace

    from pipeline.bundle import read_bundle, write_manifest

    model = known_bundle(tmp_path / "known")
    manifest = read_bundle(model).manifest
    heads = {**manifest.heads, "things": replace(manifest.heads["things"], classes=("../../up", "/etc"))}
    write_manifest(model, replace(manifest, heads=heads))
    predict(fill(tmp_path / "in", 1), model, tmp_path / "out", crops=True)
    assert "crops/things/_._.._up/000_0.jpg" in content(tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "known", "out"]


def test_globs_lists_and_single_images(model, tmp_path, monkeypatch):
    folder = fill(tmp_path / "in", 4)
    (folder / "deep").mkdir()
    (folder / "deep" / "d.png").write_bytes(picture(7))
    odd = os.fsencode(folder) + b"/odd\n\xff.png"
    with open(odd, "wb") as file:
        file.write(picture(8))

    def names(given):
        return sorted(entry.name for entry in open_source(str(given), tmp_path / "out").entries())

    assert names(folder / "00[01].png") == [b"000.png", b"001.png"]
    assert names(f"{folder}/**/d.png") == [b"deep/d.png"]
    assert names(folder / "002.png") == [b"002.png"]
    (tmp_path / "list.txt").write_text(f"in/003.png\r\n{folder}/deep/d.png\nin/missing.png\n")
    assert names(tmp_path / "list.txt") == [b"003.png", b"deep/d.png", b"missing.png"]
    (tmp_path / "zero.txt").write_bytes(odd + b"\0" + os.fsencode(folder / "000.png") + b"\0")
    assert names(tmp_path / "zero.txt") == [b"000.png", b"odd\n\xff.png"]
    (tmp_path / "twice.txt").write_text("in/000.png\nin/000.png\nin/missing.png\nin/deep\n")
    summary, _ = predict(tmp_path / "twice.txt", model, tmp_path / "out")
    errors, answered = listed(tmp_path / "out")
    assert answered == {"000.png": 3}
    assert errors["deep"]["reason"] == "is a folder, not an image"
    assert summary["images"]["failed"] == 2


def test_a_url_is_read_through_fsspec(model, tmp_path):
    import fsspec

    files = fsspec.filesystem("memory")
    files.rm("/bucket", recursive=True) if files.exists("/bucket") else None
    for number in range(5):
        files.pipe_file(f"/bucket/deep/{number}.png", picture(number))
    files.pipe_file("/bucket/broken.jpg", b"\xff\xd8\xff nothing")
    files.pipe_file("/bucket/read me.txt", b"text")
    fill(tmp_path / "in" / "deep", 0)
    for number in range(5):
        (tmp_path / "in" / "deep" / f"{number}.png").write_bytes(picture(number))
    (tmp_path / "in" / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (tmp_path / "in" / "read me.txt").write_bytes(b"text")
    predict("memory://bucket", model, tmp_path / "remote", overlay=True)
    predict(tmp_path / "in", model, tmp_path / "local", overlay=True)
    remote, local = content(tmp_path / "remote"), content(tmp_path / "local")
    for found in (remote, local):
        found.pop("summary.json"), found.pop("report.html")  # they name the source
    assert remote == local
    summary, _ = predict("memory://bucket/deep/[01].png", model, tmp_path / "glob")
    assert summary["images"]["answered"] == 2
    with pytest.raises(DataError, match="does not exist"):
        predict("memory://nowhere", model, tmp_path / "none")
    with pytest.raises(DataError, match="nosuch"):
        predict("nosuch://bucket", model, tmp_path / "none")


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


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--batch", "0"), "--batch must be at least 1"),
        (("--tile", "-5"), "--tile must be at least 0"),
        (("--overlap", "0.95"), "--overlap must be"),
        (("--threshold", "7"), "7 is not between 0 and 1"),
        (("--tta", "spin"), "invalid choice: 'spin'"),
        (("--oups",), "unknown option --oups"),
        (("--engine", "onxruntime"), "did you mean 'onnxruntime'"),
        (("--format", "coco,xml"), "unknown format 'xml'"),
    ],
)
def test_wrong_options_are_told(arguments, told, model, tmp_path):
    folder = fill(tmp_path / "in", 1)
    with pytest.raises(Exception, match=told) as caught:
        main([str(folder), "--model", str(model), "--out", str(tmp_path / "out"), *arguments])
    assert caught.value.exit_code == 1


def test_formats_may_be_given_once_or_often():
    given = settings_from(
        ["in", "--model", "m", "--out", "o", "--format", "coco,csv", "--format", "yolo", "--format", "csv"]
    )
    assert given.formats == ("coco", "csv", "yolo")
