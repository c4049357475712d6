"""Registered models and several workers: a swap without a failed request, broken versions, one set of metrics."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from pipeline.bundle import read_bundle
from tests.e2e.services import Running, picture
from tests.unit.bundles import known_bundle


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def register(folder, alias="champion"):
    from pipeline.export.register import register

    return register(read_bundle(folder), "known", alias)


def test_a_new_version_takes_over_without_a_failed_request_and_a_broken_one_does_not(store):
    from mlflow.tracking import MlflowClient

    bundle = known_bundle(store / "known")
    assert register(bundle) == "1"
    with (
        Running("models:/known@champion", "--poll", "2", "--drain", "0") as service,
        ThreadPoolExecutor(1) as pool,
        ExitStack() as leave,
    ):
        assert service.client.get("/model").json()["version"] == "1"
        seen, stop = [], []

        def ask():
            while not stop and service.process.poll() is None:
                answer = service.client.post("/predict", content=picture(), params={"masks": "none"})
                seen.append((answer.status_code, answer.json().get("model", {}).get("version")))

        leave.callback(stop.append, True)
        asking = pool.submit(ask)
        assert register(bundle) == "2"
        service.wait_for("version 2 took over from 1")
        # A version without a bundle is left alone.
        client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
        broken = client.create_model_version("known", bundle.as_uri())
        client.set_registered_model_alias("known", "champion", broken.version)
        service.wait_for("version 3 is broken")
        stop.append(True)
        asking.result()
        assert {status for status, _ in seen} == {200}
        versions = [version for _, version in seen]
        assert versions == sorted(versions)
        assert set(versions) == {"1", "2"}
        assert service.client.get("/model").json()["version"] == "2"
        assert service.metric('trifocal_model_info{engine="onnxruntime:fp32",name="known",run_id="",version="2"') == 1
        assert service.stop() == 0


def test_a_version_that_fails_its_self_test_is_not_swapped_in(store):
    import asyncio

    from pipeline.errors import TrifocalError
    from serving.observe import Metrics
    from serving.service import Service
    from serving.settings import Settings

    good, bad = known_bundle(store / "good"), known_bundle(store / "bad")
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
    code, _, err = command("serve", "models:/known")
    assert code == 2
    assert "models:/NAME@ALIAS" in err


def test_several_workers_share_the_port_and_report_one_set_of_metrics(tmp_path):
    bundle = known_bundle(tmp_path / "known")
    with Running(bundle, "--workers", "2", "--drain", "0.2") as service:
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
        assert service.stop() == 0
