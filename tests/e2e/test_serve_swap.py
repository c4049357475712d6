"""Registered models and several workers: a swap without a failed request, broken versions, one set of metrics."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest

from pipeline.bundle import read_bundle
from pipeline.errors import BundleError
from pipeline.registered import ModelRef
from serving.registry import cache_folder
from tests.e2e.services import Running, picture
from tests.e2e.stack import free_port
from tests.unit.bundles import known_bundle


class Registry:
    """The one answer of an MLflow server that following an alias asks for; `version` None refuses it."""

    def __init__(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                assert self.path == "/api/2.0/mlflow/registered-models/alias?name=known&alias=champion"
                self.send_response(500 if outer.version is None else 200)
                self.end_headers()
                self.wfile.write(json.dumps({"model_version": {"version": outer.version}}).encode())

            def log_message(self, *_):
                pass

        self.version: str | None = "1"
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A registry whose versions 1, 2 and a broken 3 were fetched before."""
    found = Registry()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", found.url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = cache_folder(ModelRef("known", "champion"))
    for version in ("1", "2", "3"):
        known_bundle(folder / version)
    (folder / "3" / "model.onnx").write_bytes(b"x" * (folder / "3" / "model.onnx").stat().st_size)
    yield found
    found.server.shutdown()


def test_a_new_version_takes_over_without_a_failed_request_and_a_broken_one_does_not(store):
    options = ("--poll", "0.2", "--drain", "0")
    with Running("models:/known@champion", *options) as service, ThreadPoolExecutor(1) as pool, ExitStack() as leave:
        assert service.client.get("/model").json()["version"] == "1"
        seen, stop = [], []

        def ask():
            while not stop and service.process.poll() is None:
                answer = service.client.post("/predict", content=picture(), params={"masks": "none"})
                seen.append((answer.status_code, answer.json().get("model", {}).get("version")))

        leave.callback(stop.append, True)
        asking = pool.submit(ask)
        store.version = "2"
        service.wait_for("version 2 took over from 1")
        store.version = "3"
        service.wait_for("version 3 is broken .*altered")
        store.version = None
        service.wait_for("the store answered 500.*version 2 goes on serving")
        stop.append(True)
        asking.result()
        assert {status for status, _ in seen} == {200}
        versions = [version for _, version in seen]
        assert versions == sorted(versions)
        assert set(versions) == {"1", "2"}
        assert service.client.get("/model").json()["version"] == "2"
        assert service.metric('trifocal_model_info{engine="onnxruntime:fp32",name="known",run_id="",version="2"') == 1
        assert service.metric('trifocal_model_swaps_total{outcome="swapped"') == 1
        assert service.stop() == 0


def test_a_registered_bundle_is_fetched_whole_and_one_without_a_bundle_is_told(tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient

    from pipeline.export.register import register
    from pipeline.registered import fetch_bundle, version_number

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    bundle = known_bundle(tmp_path / "known")
    assert register(read_bundle(bundle), "known", "champion") == "1"
    assert version_number(ModelRef("known", "champion")) == "1"
    fetch_bundle("known", "1", tmp_path / "fetched")
    assert read_bundle(tmp_path / "fetched").manifest == read_bundle(bundle).manifest
    MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").create_model_version("known", bundle.as_uri())
    with pytest.raises(BundleError, match="--register"):
        fetch_bundle("known", "2", tmp_path / "other")
    with pytest.raises(BundleError, match="models:/known@nobody"):
        version_number(ModelRef("known", "nobody"))


def test_a_bundle_that_was_altered_is_not_swapped_in(tmp_path):
    import asyncio

    from pipeline.errors import TrifocalError
    from serving.observe import Metrics
    from serving.service import Service
    from serving.settings import Settings

    good, bad = known_bundle(tmp_path / "good"), known_bundle(tmp_path / "bad")
    (bad / "model.onnx").write_bytes(b"x" * (bad / "model.onnx").stat().st_size)

    async def body():
        service = Service(Settings("", engine="onnxruntime", streams=1, decoders=1), Metrics())
        await service.deploy(good, "1")
        with pytest.raises(TrifocalError, match="altered"):
            await service.deploy(bad, "2")
        assert service.model.version == "1"
        await service.close()

    asyncio.run(body())


def test_mistakes_in_a_models_name_are_told(command):
    port = free_port()
    code, _, err = command("serve", "models:/known", "--port", str(port))
    assert code == 2
    with socket.create_server(("127.0.0.1", port)):
        pass  # the command let go of it
    assert "models:/NAME@ALIAS" in err


def test_several_workers_share_the_port_and_report_one_set_of_metrics(tmp_path):
    bundle = known_bundle(tmp_path / "known")
    with Running(bundle, "--workers", "2", "--drain", "1") as service:
        workers = [process for process in service.family() if process.ppid() == service.process.pid]
        deadline = time.monotonic() + 60
        while len(workers := [p for p in service.family() if p.ppid() == service.process.pid]) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        service.wait_for(r"(?s)listening.*listening")
        import httpx

        for _ in range(20):
            assert httpx.post(service.url + "/predict", content=picture(), timeout=30).status_code == 200
        assert service.metric('trifocal_images_total{outcome="answered"}') == 20
        os.kill(workers[0].pid, signal.SIGKILL)
        service.wait_for(r"service process \d+ ended with -9")
        service.wait_for(r"(?s)listening.*listening.*listening")
        assert httpx.post(service.url + "/predict", content=picture(), timeout=30).status_code == 200
        supervisor = psutil.Process(service.process.pid)
        assert [one.status for one in supervisor.net_connections()] == ["LISTEN"]
        service.process.send_signal(signal.SIGTERM)
        service.wait_for("stopping")
        # Nobody answers what would be connected there.
        assert supervisor.net_connections() == []
        assert httpx.post(service.url + "/predict", content=picture(), timeout=30).status_code == 200
        assert service.stop() == 0
