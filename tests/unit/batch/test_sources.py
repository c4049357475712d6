"""What SOURCE may be: folders, globs, lists, single images, URLs; and what is told where nothing is there."""

from __future__ import annotations

import json
import os
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import cv2
import numpy as np
import pytest

from pipeline.errors import DataError
from serving.batch.sources import open_source
from tests.unit.batch.helpers import content, fill, listed, picture, predict
from tests.unit.bundles import known_bundle


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return known_bundle(tmp_path_factory.mktemp("model") / "known")


def test_folders_without_images_are_told(model, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no file"):
        predict(tmp_path / "empty", model, tmp_path / "out")
    (tmp_path / "empty" / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"empty holds no image; left out: not an image .1."):
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
    (tmp_path / "list.txt").write_text(f"\ufeffin/003.png\r\n{folder}/deep/d.png\nin/missing.png\n")
    assert names(tmp_path / "list.txt") == [b"003.png", b"deep/d.png", b"missing.png"]
    (tmp_path / "zero.txt").write_bytes(odd + b"\0" + os.fsencode(folder / "000.png") + b"\0")
    assert names(tmp_path / "zero.txt") == [b"000.png", b"odd\n\xff.png"]
    (tmp_path / "twice.txt").write_text("in/000.png\nin/000.png\nin/missing.png\nin/deep\n")
    summary, _ = predict(tmp_path / "twice.txt", model, tmp_path / "out")
    errors, answered = listed(tmp_path / "out")
    assert answered == {"000.png": 3}
    assert errors["deep"]["reason"] == "is a folder, not an image"
    assert summary["images"]["failed"] == 2


def test_a_pipe_is_told_to_be_one(model, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for source in (tmp_path / "pipe", "/dev/null"):
        with pytest.raises(DataError, match="is a pipe or a device; a list is read more than once"):
            predict(source, model, tmp_path / "out")


def test_a_text_that_begins_as_a_bitmap_is_none(model, tmp_path):
    folder = fill(tmp_path / "in" / "BMW", 1)
    (tmp_path / "in" / "no ending").write_bytes(cv2.imencode(".bmp", np.zeros((4, 4, 3), np.uint8))[1].tobytes())
    (tmp_path / "in" / "list.txt").write_text(f"{folder.name}/000.png\nno ending\n")
    predict(tmp_path / "in" / "list.txt", model, tmp_path / "listed")
    assert set(listed(tmp_path / "listed")[1]) == {"BMW/000.png", "no ending"}
    summary, _ = predict(tmp_path / "in", model, tmp_path / "all")
    assert summary["images"] == {"found": 2, "answered": 2, "failed": 0, "skipped": 1}


def test_a_list_of_urls_is_told(model, tmp_path):
    (tmp_path / "list.txt").write_text("s3://bucket/a.png\n")
    with pytest.raises(DataError, match=r"names a URL of s3://; .* a URL is given as SOURCE itself"):
        predict(tmp_path / "list.txt", model, tmp_path / "out")


def test_a_glob_follows_links_but_not_in_a_circle_and_keeps_names_below_its_folder(model, tmp_path):
    folder = fill(tmp_path / "real" / "in", 1)
    (folder / "sub" / ".hidden").mkdir(parents=True)
    (folder / "sub" / "b.png").write_bytes(picture(1))
    (folder / "sub" / ".hidden" / "c.png").write_bytes(picture(2))
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "again").symlink_to(folder / "sub")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    predict(f"{tmp_path}/link/in/**/*.png", model, tmp_path / "out", overlay=True)
    errors, answered = listed(tmp_path / "out")
    assert set(answered) == {"000.png", "sub/b.png", "again/b.png"}
    assert not errors
    assert (tmp_path / "out" / "overlay" / "sub" / "b.jpg").is_file()


def test_a_folder_that_a_glob_cannot_enter_is_listed(model, tmp_path, monkeypatch):
    folder, real = fill(tmp_path / "in", 1), os.scandir
    (folder / "locked").mkdir()

    def scan(place):  # the tests may run as root, whom no permission stops
        if os.fsencode(place).endswith(b"locked"):
            raise PermissionError(13, os.strerror(13))
        return real(place)

    monkeypatch.setattr(os, "scandir", scan)
    predict(f"{folder}/**/*.png", model, tmp_path / "out")
    errors, answered = listed(tmp_path / "out")
    assert set(answered) == {"000.png"}
    assert errors["locked/"]["reason"] == "the folder cannot be read: Permission denied"


def test_a_linked_image_keeps_its_own_name(model, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "ab12").write_bytes(picture(1))
    (tmp_path / "photo.png").symlink_to(tmp_path / "store" / "ab12")
    predict(tmp_path / "photo.png", model, tmp_path / "out")
    assert set(listed(tmp_path / "out")[1]) == {"photo.png"}


@pytest.mark.parametrize("kind", ["glob", "list", "image", "folder"])
def test_a_source_and_an_output_folder_of_any_bytes(kind, model, tmp_path, capsys):
    from pipeline.cli_batch import main

    place = tmp_path / os.fsdecode(b"caf\xe9")
    fill(place, 1)
    (place / "list.txt").write_text("000.png\n")
    source = {"glob": place / "*.png", "list": place / "list.txt", "image": place / "000.png", "folder": place}[kind]
    out = tmp_path / os.fsdecode(b"out\xff")
    options = ["--model", str(model), "--out", str(out), "--engine", "onnxruntime", "--workers", "1"]
    assert main([str(source), *options]) == 0
    assert "out\\xff" in capsys.readouterr().out
    assert "caf\\xe9" in json.loads((out / "summary.json").read_text())["source"]


def test_the_password_and_the_signature_of_a_url_are_nowhere_written_down(model, tmp_path, capfd):
    from pipeline.cli_batch import main

    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            """Its own log is not the command's."""

    fill(tmp_path / "in", 2)
    serves = partial(Silent, directory=tmp_path / "in")
    with ThreadingHTTPServer(("127.0.0.1", 0), serves) as server:
        Thread(target=server.serve_forever).start()
        url = f"http://me:s3cr:t@127.0.0.1:{server.server_port}/"
        options = ["--model", str(model), "--out", str(tmp_path / "out"), "--engine", "onnxruntime"]
        try:
            assert main([f"{url}000.png", *options]) == 0
            with pytest.raises(DataError) as caught:
                main([f"{url}nothing.png?X-Amz-Signature=h1dden&v=2", *options, "--restart"])
        finally:
            server.shutdown()
    told = (*capfd.readouterr(), str(caught.value))
    written = [path.read_bytes().decode("latin-1") for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(secret in text for text in (*told, *written) for secret in ("s3cr", "h1dden"))
    assert "Signature=***&v=2" in str(caught.value)
    assert "http://me:***@127.0.0.1" in json.loads((tmp_path / "out" / "summary.json").read_text())["source"]


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
