"""The service in trouble: processes killed, senders that dawdle, bodies without end, signals in mid-request, nasty files."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.e2e.services import ROOT, Running, picture
from tests.unit.bundles import known_bundle

NASTY = Path(os.environ.get("TRIFOCAL_NASTY", ROOT.parent / "shared" / "data" / "nasty"))


@pytest.fixture(scope="module")
def service(bundle):
    options = (
        "--streams",
        "2",
        "--decoders",
        "2",
        "--header-timeout",
        "1",
        "--body-timeout",
        "1",
        "--max-body-mb",
        "1",
    )
    with Running(bundle, *options) as running:
        yield running


def connect(service, data: bytes) -> bytes:
    """Sends raw bytes and reads until the other side closes."""
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            raw.sendall(data)
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while part := raw.recv(65_536):
                found += part
        return found


def test_a_killed_process_costs_nobody_an_answer_and_comes_back(service):
    data, stop, wrong = picture(), threading.Event(), []

    def ask():
        with httpx.Client(base_url=service.url, timeout=30) as client:
            while not stop.is_set():
                answer = client.post("/predict", content=data)
                if answer.status_code != 200:
                    wrong.append(answer.text)

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(ask)
        for kind in ("engine", "decoder"):
            before = {process.pid for process in service.family(kind)}
            assert len(before) == 2
            os.kill(next(iter(before)), signal.SIGKILL)
            deadline = time.monotonic() + 5
            while len(service.family(kind)) < 2 or {p.pid for p in service.family(kind)} == before:
                assert time.monotonic() < deadline, f"no {kind} came back"
                time.sleep(0.05)
        stop.set()
    assert wrong == []
    assert service.metric('trifocal_lost_processes_total{kind="engine"}') == 1
    assert service.metric('trifocal_lost_processes_total{kind="decoder"}') == 1


def test_a_bundle_replaced_in_place_is_not_mixed_with_the_one_that_serves(tmp_path):
    served = known_bundle(tmp_path / "known")
    with Running(served, "--streams", "2", "--drain", "0") as running:
        known_bundle(served, "known", version="2")
        running.family("engine")[0].kill()
        running.wait_for("was replaced while it was served; start the service again")
        answer = running.client.post("/predict", content=picture())
        assert answer.status_code == 200
        assert answer.json()["model"]["version"] == "1"


def test_a_head_that_never_ends_is_closed(service):
    assert connect(service, b"POST /predict HTTP/1.1\r\nHost: x\r\n") == b""
    assert connect(service, b"GET / HTTP/1.1\r\n" + b"X-A: " + b"a" * 200_000) == b""


def test_a_body_that_never_ends_is_answered_and_closed(service):
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\n"
    slow = connect(service, head + b"Content-Length: 1000\r\n\r\nabc")
    assert slow.startswith(b"HTTP/1.1 408")
    said = connect(service, head + b"Content-Length: 99999999\r\n\r\nabc")
    assert said.startswith(b"HTTP/1.1 413")
    chunks = b"Transfer-Encoding: chunked\r\n\r\n" + 20 * (b"10000\r\n" + b"x" * 65_536 + b"\r\n")
    assert connect(service, head + chunks).startswith(b"HTTP/1.1 413")


def test_a_decompression_bomb_is_refused_from_its_header(service):
    plain = picture()
    claim = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + plain[24:29]  # 3,600 megapixels
    bomb = plain[:12] + claim + zlib.crc32(claim).to_bytes(4, "big") + plain[33:]
    took = []
    for _ in range(6):
        begun = time.perf_counter()
        answer = service.client.post("/predict", content=bomb)
        took.append(time.perf_counter() - begun)
        assert answer.status_code == 413, answer.text
        assert "3600000000 pixels" in answer.json()["detail"]
    assert min(took) < 0.05


def test_what_libraries_say_of_a_picture_stays_out_of_the_log(service):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "TIFF", compression="tiff_lzw")
    whole = file.getvalue()
    broken = whole[:300] + b"\xff" * 3000 + whole[3300:]
    assert service.client.post("/predict", content=broken).status_code == 422
    assert "not yet in table" not in service.text  # as libtiff says it


def test_garbage_instead_of_http_is_refused(service):
    assert connect(service, b"\x16\x03\x01\x00garbage\r\n\r\n").startswith(b"HTTP/1.1 400")


def test_sigterm_in_mid_request_answers_it_and_those_that_come_during_the_drain(bundle):
    with Running(bundle, "--drain", "1.0") as running:
        begun = threading.Event()

        def body():
            data = picture()
            yield data[:20]
            begun.set()
            time.sleep(0.6)
            yield data[20:]

        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(httpx.post, running.url + "/predict", content=body(), timeout=30)
            begun.wait(10)
            running.process.send_signal(signal.SIGTERM)
            running.wait_for("stopping")
            assert running.client.get("/readyz").status_code == 503
            answer = running.client.post("/predict", content=picture())
            assert answer.status_code == 200
            assert answer.headers["connection"] == "close"
            assert slow.result().status_code == 200
        assert running.stop() == 0


def test_processes_end_with_a_service_that_was_killed(bundle):
    with Running(bundle) as running:
        family = running.family()
        assert len(family) >= 3
        running.process.kill()
        running.process.wait(10)
        deadline = time.monotonic() + 10
        while any(process.is_running() and process.status() != "zombie" for process in family):
            assert time.monotonic() < deadline, family
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nowhere", "--port", "0"), "is no bundle"),
        (("BUNDLE", "--engine", "onnxruntme", "--port", "0"), "did you mean 'onnxruntime'"),
        (("BUNDLE", "--port", "99999"), "name another --port"),
        (("BUNDLE", "--host", "1.2.3.4", "--port", "0"), "name another --host of this machine"),
        (("BUNDLE", "--porrt", "0"), "unknown option --porrt; did you mean '--port'"),
        (("BUNDLE", "--max-wait", "nan"), "--max-wait is nan"),
        (("BUNDLE", "--workers", "0"), "--workers is 0"),
        (("models:/known/3", "--port", "0"), "models:/known/3: http://127.0.0.1:9 cannot be asked: Connection refused"),
        (
            ("models:/known@champion", "--port", "0"),
            "models:/known@champion: http://127.0.0.1:9 cannot be asked: Connection refused",
        ),
        (("BUNDLE", "--api-keys", "nowhere"), "--api-keys nowhere"),
        (("BUNDLE", "--api-keys", sys.executable), "not UTF-8 text"),
    ],
)
def test_mistakes_are_one_line(bundle, arguments, told, tmp_path):
    command = [str(Path(sys.executable).parent / "lightning"), "serve"]
    command += [str(bundle) if part == "BUNDLE" else part for part in arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in {1, 2}
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert told in done.stderr


def test_a_temporary_folder_that_no_socket_fits_into_is_one_line(bundle, tmp_path):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    command = [str(Path(sys.executable).parent / "lightning"), "serve", str(bundle), "--port", "0"]
    env = {**os.environ, "TMPDIR": str(deep), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no worker can start from")
    assert done.stderr.count("\n") == 1
    assert "TMPDIR" in done.stderr


def nasty_files():
    if not NASTY.is_dir():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"the nasty files are not at {NASTY}"))]
    return [pytest.param(folder, id=folder.name) for folder in sorted(NASTY.iterdir()) if folder.is_dir()]


@pytest.fixture(scope="module")
def patient(bundle):
    with Running(bundle) as running:
        yield running


@pytest.mark.parametrize("folder", nasty_files())
def test_nasty_files_get_an_answer_or_a_reason(patient, folder):
    for file in sorted(folder.iterdir()):
        answer = patient.client.post("/predict", content=file.read_bytes(), params={"masks": "none"})
        assert answer.status_code in {200, 413, 415, 422}, (file.name, answer.text)
        if answer.status_code != 200:
            assert answer.json()["detail"], file.name
        if folder.name in {"unsupported", "not_images"}:
            assert answer.status_code == 415, (file.name, answer.text)
    assert patient.metric("trifocal_lost_processes_total") == 0
    if folder.name == "bomb":
        for name in ("decompression_bomb.gif", "reallybig.bmp"):
            answer = patient.client.post("/predict", content=(folder / name).read_bytes())
            assert answer.status_code == 413, answer.text
    if folder.name == "exif_rotated":
        for kind in ("Landscape", "Portrait"):
            found = [
                patient.client.post(
                    "/predict", content=(folder / f"{kind}_{n}.jpg").read_bytes(), params={"masks": "none"}
                )
                for n in range(1, 9)
            ]
            colours = [
                [row["probability"] for row in one.json()["images"][0]["heads"]["colour"]["probabilities"]]
                for one in found
            ]
            for other in colours[1:]:
                assert other == pytest.approx(colours[0], abs=0.01)
            assert len({str(one.json()["images"][0]["size"]) for one in found}) == 1
