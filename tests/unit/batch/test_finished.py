"""What an output folder holds already: told, left alone, or thrown away by --restart."""

from __future__ import annotations

import pytest

from pipeline.errors import ConfigError, TrifocalError
from serving.batch.writers.registry import FORMATS
from tests.unit.batch.helpers import content, fill, picture, predict
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


def test_a_restart_that_is_refused_throws_nothing_away(model, tmp_path):
    folder, out, empty = fill(tmp_path / "in", 5), tmp_path / "out", tmp_path / "empty"
    predict(folder, model, out, **EVERYTHING)
    before = content(out)
    empty.mkdir()
    for source, options, told in (
        (tmp_path / "misspelt", {}, "does not exist"),
        (empty, {}, "holds no file"),
        (folder, {"engine": "onnxruntime:int8"}, "int8"),
    ):
        with pytest.raises(TrifocalError, match=told):
            predict(source, model, out, restart=True, **EVERYTHING | options)
        assert content(out) == before
        assert predict(folder, model, out, **EVERYTHING)[1][-1].endswith("is finished already; nothing was done")
    predict(folder, model, out, restart=True, **EVERYTHING)
    assert content(out) == before
