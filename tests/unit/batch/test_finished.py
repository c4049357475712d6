"""What an output folder holds already: told, left alone, or thrown away by --restart."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from pipeline.errors import ConfigError, TrifocalError
from serving.batch import ray_run
from serving.batch.writers.registry import FORMATS
from tests.unit.batch.helpers import content, fill, interrupted, picture, predict
from tests.unit.bundles import known_bundle

EVERYTHING = {"formats": FORMATS, "overlay": True, "crops": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return known_bundle(tmp_path_factory.mktemp("model") / "known")


def test_changed_files_after_the_end_are_told(model, tmp_path):
    folder, out = fill(tmp_path / "in", 3), tmp_path / "out"
    first, _ = predict(folder, model, out)
    again, lines = predict(folder, model, out)
    assert again == first
    assert any("finished already" in line for line in lines)
    (folder / "new.png").write_bytes(picture(9))
    before = content(out)
    with pytest.raises(ConfigError, match=r"finished run of 3 files, of which some have changed.*4 now.*--restart"):
        predict(folder, model, out)
    assert content(out) == before
    renewed, _ = predict(folder, model, out, restart=True)
    assert renewed["images"]["answered"] == 4


def test_a_finished_run_that_lost_a_file_is_told(model, tmp_path):
    folder, out = fill(tmp_path / "in", 2), tmp_path / "out"
    for name, told in (
        ("report.html", "its report.html is gone"),
        ("summary.json", "its summary.json is gone"),
        ("predictions.parquet", "its predictions.parquet is gone"),
        ("predictions.csv", "its predictions.csv is gone"),
        ("coco/things.json", "1 of the 3 files of its coco are gone"),
        ("overlay/001.jpg", "1 of the 2 files of its overlay are gone"),
    ):
        predict(folder, model, out, restart=True, **EVERYTHING)
        (out / name).unlink()
        with pytest.raises(ConfigError, match=f"holds a finished run, but {told}; repeat it with --restart"):
            predict(folder, model, out, **EVERYTHING)


def test_restart_leaves_what_no_run_here_wrote(model, tmp_path):
    folder, out = fill(tmp_path / "in", 2), tmp_path / "out"
    predict(folder, model, out, formats=("csv",), overlay=True)
    (out / "crops").mkdir()
    (out / "crops" / "mine.txt").write_text("by hand")
    predict(folder, model, out, restart=True)
    assert (out / "crops" / "mine.txt").read_text() == "by hand"
    assert not (out / "overlay").exists()
    assert not (out / "predictions.csv").exists()


def test_a_foreign_folder_is_left_alone(model, tmp_path):
    folder, out = fill(tmp_path / "in", 2), tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    for restart in (False, True):
        with pytest.raises(ConfigError, match="holds something else; name another folder"):
            predict(folder, model, out, restart=restart)
    assert (out / "thesis.tex").read_text() == "years of work"


def test_a_restart_that_is_refused_throws_nothing_away(model, tmp_path, monkeypatch):
    folder, out, empty = fill(tmp_path / "in", 5), tmp_path / "out", tmp_path / "empty"
    predict(folder, model, out, **EVERYTHING)
    before = content(out)
    empty.mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("no picture")
    monkeypatch.setattr(ray_run.importlib.util, "find_spec", lambda name: None if name == "ray" else find_spec(name))
    for source, options, told in (
        (tmp_path / "misspelt", {}, "does not exist"),
        (empty, {}, "holds no file"),
        (tmp_path / "notes", {}, "holds no image"),
        (folder, {"engine": "ray"}, "ray is not installed"),
        (folder, {"engine": "onnxruntime:int8"}, "int8"),
    ):
        with pytest.raises(TrifocalError, match=told):
            predict(source, model, out, restart=True, **EVERYTHING | options)
        assert content(out) == before
        assert predict(folder, model, out, **EVERYTHING)[1][-1].endswith("is finished already; nothing was done")
    lines = predict(folder, model, out, restart=True, **EVERYTHING)[1]
    assert content(out) == before
    assert "whatever an earlier run left is thrown away" in lines


def test_an_unfinished_run_that_is_refused_keeps_its_work(model, tmp_path, monkeypatch):
    folder, out = fill(tmp_path / "in", 12), tmp_path / "out"
    interrupted(folder, model, out, monkeypatch, overlay=True)
    parts, state = out / ".batch" / "parts", out / ".batch" / "run.json"
    before, text = sorted(parts.iterdir()), state.read_text()
    assert len(before) == 2
    (folder / "011.png").write_bytes(picture(99))
    state.write_text(text.replace("onnxruntime:fp32 ", "onnxruntime:fp32 0."))
    for _ in range(2):
        with pytest.raises(ConfigError, match="was begun on engine"):
            predict(folder, model, out, part=4, overlay=True)
        assert sorted(parts.iterdir()) == before
    state.write_text(text)
    summary, lines = predict(folder, model, out, part=4, overlay=True)
    assert summary["images"]["answered"] == 12
    assert any("1 changed (011.png)" in line for line in lines)
