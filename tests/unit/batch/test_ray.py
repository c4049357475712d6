"""The same folder through Ray Data: the same bytes as a local run; one session of Ray for all of it."""

from __future__ import annotations

import os
import sys

import pytest

from pipeline.bundle import read_bundle
from pipeline.errors import EngineError
from serving.batch.journal import Journal
from serving.batch.ray_run import RayRun, _cause
from serving.batch.rows import ImageResult
from serving.batch.work import Done
from tests.unit.batch.helpers import content, fill, interrupted, predict, settings_for
from tests.unit.bundles import known_bundle

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def session():
    """Ray on this machine, found by the runs as a cluster would be."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    path = os.pathsep.join(entry for entry in sys.path if entry)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
    yield
    ray.shutdown()


def test_ray_answers_as_a_local_run_and_goes_on_where_that_stopped(session, tmp_path, monkeypatch):
    model, folder = known_bundle(tmp_path / "known"), fill(tmp_path / "in", 10)
    (folder / "bad.png").write_bytes(b"")
    (folder / "sub").mkdir()
    (folder / "sub" / "odd \u2603.png").write_bytes((folder / "000.png").read_bytes())
    options = {"formats": ("coco", "yolo", "masks"), "overlay": True, "crops": True}
    predict(folder, model, tmp_path / "local", part=4, **options)
    interrupted(folder, model, tmp_path / "ray", monkeypatch, after=1, **options)
    summary, lines = predict(
        folder, model, tmp_path / "ray", part=4, **options | {"engine": "ray:onnxruntime", "workers": 1}
    )
    assert summary["timing"]["images"] == 8
    assert lines[-1].startswith("12 of 12 files")
    assert content(tmp_path / "ray") == content(tmp_path / "local")


def test_a_file_that_the_driver_cannot_write_costs_its_image_the_answer(tmp_path):
    (tmp_path / "out" / ".batch").mkdir(parents=True)
    (tmp_path / "out" / "overlay").symlink_to(tmp_path)
    journal = Journal(tmp_path / "out")
    run = RayRun(
        read_bundle(known_bundle(tmp_path / "known")),
        settings_for("in", "m", tmp_path / "out"),
        "x",
        journal,
        None,
        None,
    )
    done = Done(
        [ImageResult("a.png", (), None, ("yolo/a.txt", "overlay/a.jpg"))], files=[b"yolo/a.txt", b"overlay/a.jpg"]
    )
    run._write([done], [(b"yolo/a.txt", b"1"), (b"overlay/a.jpg", b"2")])
    journal.close()
    assert done.results[0].failure.kind == "a link in the output folder leads out of it"
    assert done.files == []
    assert not list((tmp_path / "out" / ".batch" / "tmp").iterdir())


def test_an_actors_own_error_is_the_users():
    wrapped = RuntimeError("task failed")
    wrapped.cause = EngineError("engine x: out of memory")
    assert str(_cause(wrapped)) == "engine x: out of memory"
    assert str(_cause(RuntimeError("long story\nthe end\n"))) == "--engine ray: the end"


def test_a_cluster_that_cannot_be_joined_is_told_with_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "out" / ".batch").mkdir(parents=True)

    def refused(**options):
        assert "num_cpus" not in options  # a cluster has its own
        raise ConnectionError("Failed to connect to Ray cluster at first:6379\nlong story")

    monkeypatch.setenv("RAY_ADDRESS", "first:6379")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refused)
    told = r"--engine ray: Failed to connect to Ray cluster at first:6379; .*RAY_ADDRESS=first:6379 runs.*RAY_AUTH_MODE=token"
    with pytest.raises(EngineError, match=told):
        predict(fill(tmp_path / "in", 1), known_bundle(tmp_path / "known"), tmp_path / "out", engine="ray:onnxruntime")


def test_without_ray_the_remedy_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("serving.batch.ray_run.importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"ray is not installed: pip install 'trifocal\[ray\]'"):
        RayRun(None, settings_for("in", "m", tmp_path), "onnxruntime", None, None, None)
