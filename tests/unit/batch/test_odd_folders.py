"""Links, locked folders and an output folder in the wrong place: told, and nothing is written elsewhere."""

from __future__ import annotations

import os
import socket

import pytest

from pipeline.errors import ConfigError, DataError
from tests.unit.batch.helpers import fill, listed, picture, predict
from tests.unit.bundles import known_bundle


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return known_bundle(tmp_path_factory.mktemp("model") / "known")


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


def test_a_place_that_may_not_be_entered_is_told_in_one_line(model, tmp_path, monkeypatch):
    folder, real_stat, real_scan = fill(tmp_path / "in" / "locked", 1), os.stat, os.scandir

    def barred(real):
        def call(place, *arguments, **named):  # the tests may run as root, whom no permission stops
            if b"/locked" in os.fsencode(place) if isinstance(place, (str, bytes, os.PathLike)) else False:
                raise PermissionError(13, os.strerror(13))
            return real(place, *arguments, **named)

        return call

    (tmp_path / "free").mkdir()
    for source, out, told in (
        (folder / "000.png", "free/out", "000.png cannot be read: Permission denied"),
        (folder / "*.png", "free/out", r"\*.png cannot be read: Permission denied"),
        (tmp_path / "free", "in/locked/out", "out cannot be written: Permission denied"),
    ):
        with monkeypatch.context() as patch, pytest.raises(DataError, match=told):
            patch.setattr(os, "stat", barred(real_stat))
            predict(source, model, tmp_path / out)
    (tmp_path / "free" / "a.png").write_bytes(picture(1))
    with (
        monkeypatch.context() as patch,
        pytest.raises(DataError, match=r"--data\.root .*t.json cannot be read: Permission"),
    ):
        patch.setattr(os, "stat", barred(real_stat))
        predict(tmp_path / "free", model, tmp_path / "out", labels=str(folder / "t.json"))
    with monkeypatch.context() as patch, pytest.raises(DataError, match="locked cannot be read: Permission denied"):
        patch.setattr(os, "scandir", barred(real_scan))
        predict(folder, model, tmp_path / "free" / "out")


def test_the_output_folder_inside_the_source_is_not_answered(model, tmp_path):
    folder = fill(tmp_path / "in", 2)
    predict(folder, model, folder / "out", overlay=True)
    summary, _ = predict(folder, model, folder / "out", overlay=True, restart=True)
    assert summary["images"] == {"found": 2, "answered": 2, "failed": 0, "skipped": 0}
    with pytest.raises(ConfigError, match="lies inside the output folder"):
        predict(folder / "out" / "overlay", model, folder / "out")


def test_pictures_that_another_run_wrote_into_the_source_are_left_out(model, tmp_path):
    folder = fill(tmp_path / "in", 2)
    predict(folder, model, folder / "one", overlay=True)
    predict(folder, model, folder / "two", overlay=True)
    errors, answered = listed(folder / "two")
    assert set(answered) == {"000.png", "001.png"}
    assert errors["one/"] == {
        "image": "one/", "kind": "the output of another batch-predict",
        "reason": "the output of another batch-predict", "skipped": True,
    }  # fmt: skip
    predict(folder / "one", model, tmp_path / "out")  # asked for by name
    assert set(listed(tmp_path / "out")[1]) == {"overlay/000.jpg", "overlay/001.jpg"}


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
