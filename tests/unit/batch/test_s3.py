"""`s3://` through fsspec and s3fs, on a real S3 server of this machine that speaks HTTP."""

from __future__ import annotations

import pytest
import s3fs
from moto import server

from pipeline.errors import ConfigError, DataError
from tests.unit.batch.helpers import content, fill, listed, picture, predict
from tests.unit.bundles import known_bundle

NAMES = ("a.png", "deep/b c.png", "deep/ünï+☃.png", "deep/er/50%.png", "deep/er/k#?.png")


@pytest.fixture(scope="module")
def bucket():
    """A client of a fresh server that the environment points to; s3://photos holds pictures and other files."""
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "tester")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        files = s3fs.S3FileSystem(skip_instance_cache=True)
        files.mkdir("photos")
        for number, name in enumerate(NAMES):
            files.pipe_file(f"photos/{name}", picture(number))
        files.pipe_file("photos/broken.jpg", b"\xff\xd8\xff nothing")
        files.pipe_file("photos/notes.txt", b"text")
        files.touch("photos/deep/empty.png")
        for marker in ("deep/", "deep/er/"):  # as S3's own console makes folders
            files.call_s3("put_object", Bucket="photos", Key=marker, Body=b"")
        yield files
    running.stop()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return known_bundle(tmp_path_factory.mktemp("model") / "known")


def test_a_bucket_is_answered_as_the_same_files_in_a_folder(bucket, model, tmp_path):
    for place in (place for place in bucket.find("photos") if not place.endswith("/")):
        path = tmp_path / "in" / place.removeprefix("photos/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bucket.cat_file(place))
    options = {"overlay": True, "formats": ("coco", "yolo"), "part": 3}
    predict("s3://photos", model, tmp_path / "remote", **options)
    predict(tmp_path / "in", model, tmp_path / "local", **options)
    predict("s3://photos/deep", model, tmp_path / "deep")
    assert listed(tmp_path / "deep")[0].keys() == {"empty.png"}
    errors, answered = listed(tmp_path / "remote")
    assert answered == dict.fromkeys(NAMES, 3)
    assert errors.keys() == {"broken.jpg", "notes.txt", "deep/empty.png"}
    remote, local = content(tmp_path / "remote"), content(tmp_path / "local")
    for found in (remote, local):
        found.pop("summary.json"), found.pop("report.html")  # they name the source
    assert remote == local


def test_folders_globs_and_single_objects(bucket, model, tmp_path):
    for number, (source, count) in enumerate(
        {
            "s3://photos/deep/er": 2,
            "s3://photos/deep/*.png": 3,
            "s3://photos/**/*.png": 6,
            "s3://photos/a.png": 1,
        }.items()
    ):
        summary, _ = predict(source, model, tmp_path / str(number))
        assert summary["images"]["found"] == count, source


def test_an_object_that_changed_or_cannot_be_had_is_told(bucket, model, tmp_path):
    fill(tmp_path, 0)
    bucket.pipe_file("photos/new/x.png", picture(1))
    predict("s3://photos/new", model, tmp_path / "out")
    bucket.pipe_file("photos/new/x.png", picture(2))
    with pytest.raises(ConfigError, match="some have changed"):
        predict("s3://photos/new", model, tmp_path / "out")
    for missing in ("s3://photos/nowhere", "s3://nobucket"):
        with pytest.raises(DataError, match=f"{missing} does not exist"):
            predict(missing, model, tmp_path / "none")


def test_a_server_that_does_not_answer_is_told(model, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(DataError, match=r"s3://photos: .*127\.0\.0\.1:9"):
        predict("s3://photos", model, tmp_path / "out")
    s3fs.S3FileSystem.clear_instance_cache()
