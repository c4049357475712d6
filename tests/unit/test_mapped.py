"""Weights that the processes of a service share, and the folder where they lie."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.bundle import read_bundle
from serving.deployment import Deployment
from serving.engines import onnxruntime
from serving.engines.mapped import unmap_pages
from serving.observe import Metrics
from serving.scratch import Scratch
from serving.settings import Settings
from tests.unit.bundles import known_bundle


@pytest.fixture(params=[0, 1, 2])
def bundle(tmp_path, request):
    return read_bundle(known_bundle(tmp_path / "known", ballast_mb=request.param))


def test_shared_weights_answer_as_their_own_do(bundle, tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), np.uint8)
    alone = onnxruntime.load(bundle, "fp32", 1, 1)
    first, second = (onnxruntime.load_shared(bundle, "fp32", 1, tmp_path) for _ in range(2))
    for engine in (first, second):
        for name, value in alone.infer(images).items():
            np.testing.assert_array_equal(engine.infer(images)[name], value)
    assert second.report() == alone.report()


def test_the_second_one_maps_what_the_first_one_wrote(tmp_path):
    bundle = read_bundle(known_bundle(tmp_path / "known", ballast_mb=2))
    onnxruntime.load_shared(bundle, "fp32", 1, tmp_path)
    written = (tmp_path / "weights").stat().st_mtime_ns
    assert (tmp_path / "weights").stat().st_size >= (2 << 20) - 48
    engine = onnxruntime.load_shared(bundle, "fp32", 1, tmp_path)
    assert (tmp_path / "weights").stat().st_mtime_ns == written
    maps = Path("/proc/self/maps").read_text()
    assert str(tmp_path / "weights") in maps
    engine.warm_up()


def resident(path: Path) -> int:
    """Kilobytes of a file that this process has in its own page table."""
    here, found = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, *values = line.split(maxsplit=5)
        if not key.endswith(":"):
            here = values[-1] == str(path)
        elif here and key == "Rss:":
            found += int(values[0])
    return found


def test_an_idle_process_lets_go_of_the_weights_and_finds_them_again(tmp_path):
    bundle = read_bundle(known_bundle(tmp_path / "known", ballast_mb=2))
    engine = onnxruntime.load_shared(bundle, "fp32", 1, tmp_path)
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), np.uint8)
    before = engine.infer(images)
    assert resident(tmp_path / "weights") > 0
    unmap_pages(tmp_path)
    assert resident(tmp_path / "weights") == 0
    after = engine.infer(images)
    assert all(np.array_equal(after[name], value) for name, value in before.items())
    unmap_pages(tmp_path / "nowhere")


def test_where_nothing_can_be_written_each_holds_its_own(bundle, tmp_path):
    assert onnxruntime.load_shared(bundle, "fp32", 1, tmp_path / "nowhere") is None
    assert onnxruntime.load_shared(bundle, "cuda", 1, tmp_path) is None


def test_a_scratch_folder_ends_with_its_owner_even_where_that_was_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = Scratch()
    code = "import serving.scratch, sys; s = serving.scratch.Scratch(); print(s.path, flush=True); sys.stdin.read()"
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        theirs = other.stdout.readline().strip()
        other.send_signal(signal.SIGKILL)
    assert Path(theirs).is_dir()
    again = Scratch()
    assert not Path(theirs).exists()
    assert mine.path.is_dir()  # its owner lives
    for one in (mine, again):
        one.close()
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_breaks_down_on_shared_weights_is_held_by_each(tmp_path, monkeypatch, caplog):
    bundle = read_bundle(known_bundle(tmp_path / "known"))

    async def body():
        deployment = Deployment(bundle, "1", Settings("", engine="onnxruntime", streams=1, decoders=1), Metrics())
        target = deployment._engines._pool

        def pool(spec, count):
            found = target(spec, count)
            if found.settings["shared"]:
                found.target = breaks_down
            return found

        monkeypatch.setattr(deployment._engines, "_pool", pool)
        await deployment.start()
        assert deployment.ready["spec"] == "onnxruntime:fp32"
        await deployment.close()

    asyncio.run(body())
    assert "each holds its own" in caplog.text


def breaks_down(pipe, settings):
    (Path(settings["shared"]) / "part.onnx").touch()
    os._exit(1)
