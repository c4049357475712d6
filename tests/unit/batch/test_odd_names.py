"""Names of any bytes: each has its answer and its files, and none leads out of the output folder."""

from __future__ import annotations

import os

import pytest

from serving.batch.names import raw
from tests.unit.batch.helpers import content, fill, listed, picture, predict
from tests.unit.bundles import known_bundle


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return known_bundle(tmp_path_factory.mktemp("model") / "known")


def test_names_of_any_bytes_have_answers_and_files(model, tmp_path):
    folder = os.fsencode(tmp_path / "in")
    names = [b"with space.png", b"new\nline.png", b"tab\t.png", "ünï ☃.png".encode(), b"latin\xe9.png", b"back\\slash.png",
             b"-dash.png", b"quo'te\".png", b"%41.png", b"latin\\xe9.png", b"a/same.png", b"b/same.png", b"a/same.PNG",
             b"x" * 240 + b".png", b"a.png", b"a/..png"]  # fmt: skip
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
        bases = {name if name.lower() in {b"a/same.png", b"a/..png"} else name.removesuffix(b".png") for name in names}
        assert found == {base + ending for base in bases}
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == len(names)


def test_a_name_too_long_for_its_output_is_listed(model, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / ("y" * 251 + ".png")).write_bytes(picture(0))
    (folder / "good.png").write_bytes(picture(1))
    summary, _ = predict(folder, model, tmp_path / "out", overlay=True, crops=True)
    errors, answered = listed(tmp_path / "out")
    assert answered == {"good.png": 3}
    (error,) = errors.values()
    assert "File name too long" in error["reason"]
    assert summary["images"]["failed"] == 1
    assert [path.name for path in (tmp_path / "out" / "overlay").iterdir()] == ["good.jpg"]
    assert not list((tmp_path / "out" / ".batch" / "tmp").iterdir())


@pytest.mark.parametrize("part", [1, 256])
def test_a_file_and_a_folder_that_want_one_name_are_told_and_stop_nothing(part, model, tmp_path):
    (tmp_path / "in" / "a.jpg").mkdir(parents=True)
    for number, name in enumerate(("a.bmp", "a.jpg/b.png")):
        (tmp_path / "in" / name).write_bytes(picture(number))
    predict(tmp_path / "in", model, tmp_path / "out", overlay=True, part=part)
    errors, answered = listed(tmp_path / "out")
    assert len(errors) == len(answered) == 1
    assert "its output cannot be written" in next(iter(errors.values()))["reason"]
    assert len([path for path in (tmp_path / "out" / "overlay").rglob("*") if path.is_file()]) == 1


def test_head_and_class_names_cannot_lead_out(tmp_path):
    from dataclasses import replace

    from pipeline.bundle import read_bundle
    from pipeline.export.folder import write_manifest

    model = known_bundle(tmp_path / "known")
    manifest = read_bundle(model).manifest
    heads = {**manifest.heads, "things": replace(manifest.heads["things"], classes=("../../up", "/etc"))}
    write_manifest(model, replace(manifest, heads=heads))
    predict(fill(tmp_path / "in", 1), model, tmp_path / "out", crops=True)
    assert "crops/things/_._.._up/000_0.jpg" in content(tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "known", "out"]
