"""What one idle service costs: memory after it has worked, and processor time to its first answer."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from serving.workers.entry import IDLE_S, NICER
from tests.e2e.services import ROOT, Running, picture
from tests.unit.bundles import known_bundle


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    bundle = known_bundle(tmp_path_factory.mktemp("bundle") / "known", ballast_mb=20)
    with Running(bundle, "--streams", "2", "--decoders", "2") as running:
        for _ in range(8):
            assert running.client.post("/predict", content=picture(480, 640)).status_code == 200
        yield running


def everyone(service):
    return [psutil.Process(service.process.pid), *service.family()]


def test_start_and_first_answers_take_little_processor_time(service):
    spent = sum(sum(process.cpu_times()[:2]) for process in everyone(service))
    assert spent < 3.0  # 1.4 s where nothing else runs


def test_workers_give_way_to_the_process_that_refuses_and_hands_on(service):
    own = psutil.Process(service.process.pid).nice()
    assert {process.nice() for kind in ("decoder", "engine") for process in service.family(kind)} == {own + NICER}


def idle_share(service, seconds=2.0):
    """Share of a core that all processes take, to the nanosecond: what psutil tells comes in steps of ten milliseconds."""

    def taken():
        threads = (thread for each in everyone(service) for thread in Path(f"/proc/{each.pid}/task").iterdir())
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9

    before = taken()
    time.sleep(seconds)
    return (taken() - before) / seconds


def test_an_idle_service_takes_less_than_200_mb_and_no_processor_time(service):
    time.sleep(IDLE_S + 0.5)  # then the processes give memory back
    shares = [idle_share(service) for _ in range(3)]  # other tests run beside this one: the quietest counts
    assert min(shares) < 0.01, shares
    # Shared pages count once.
    memory = {process.name(): process.memory_full_info().pss / 2**20 for process in everyone(service)}
    assert sum(process.memory_full_info().pss for process in everyone(service)) < 200 * 2**20, memory


def test_workers_inherit_what_they_need_and_no_more():
    code = """
import sys
import serving.workers.preloaded
loaded = set(sys.modules)
from tests.fuzz.targets import decoder, decoder_seeds
before = set(sys.modules)
for seed in decoder_seeds():
    decoder(seed)
import numpy as np
from pipeline.imaging.runs import MaskRuns
MaskRuns.of(np.eye(9, dtype=np.uint8)).encoded()
late = {name for name in set(sys.modules) - before if not name.startswith("encodings.")}
unwanted = {"asyncio", "email", "importlib.metadata", "PIL.PdfImagePlugin", "PIL.AvifImagePlugin", "pydantic"}
print(len(loaded), sorted(late), sorted(unwanted & loaded))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    count, rest = done.stdout.strip().split(" ", 1)
    assert rest == "[] []"
    assert int(count) < 400


def test_the_service_itself_imports_no_second_pydantic():
    code = "import sys, serving.app; print([name for name in ('pydantic.v1', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_engines_have_no_thread_of_their_own_and_report_nothing(tmp_path):
    home = Path(tempfile.mkdtemp(prefix="trifocal-home-"))  # pytest's own path may be too long for a socket
    places = {"HOME": str(home), "TMPDIR": str(home), "XDG_CACHE_HOME": str(home)}
    with Running(known_bundle(tmp_path / "known"), "--drain", "0", "--threads", "1", **places) as service:
        assert service.client.post("/predict", content=picture()).status_code == 200
        engine, *_ = service.family("engine")
        assert engine.num_threads() == 2  # the other one hears what is given up
        assert service.stop() == 0
    assert [path.name for path in home.rglob("*") if path.is_file()] == []
    shutil.rmtree(home)


def test_the_service_itself_loads_no_image_library(service):
    mapped = {file.path for file in psutil.Process(service.process.pid).memory_maps()}
    assert not [path for path in mapped if any(name in path for name in ("numpy", "cv2", "onnxruntime", "PIL"))]


def test_sigterm_to_the_whole_group_still_answers_what_was_accepted(tmp_path):
    with Running(known_bundle(tmp_path / "known"), "--drain", "1", start_new_session=True) as service:
        os.killpg(service.process.pid, signal.SIGTERM)
        service.wait_for("stopping")
        for _ in range(5):
            assert service.client.post("/predict", content=picture()).status_code == 200
        assert service.stop() == 0
        assert "died" not in service.text
