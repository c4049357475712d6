"""Following an alias: what is new takes over, what is broken or out of reach changes nothing."""

from __future__ import annotations

import asyncio
import json
import urllib.error
from io import BytesIO
from types import SimpleNamespace
from unittest.mock import AsyncMock

import pytest

from pipeline.errors import BundleError, ConfigError, EngineError
from pipeline.registered import ModelRef, parse_ref
from serving import registry
from serving.follow import Follower
from serving.observe import Metrics
from serving.registry import current_version
from tests.unit.asgi import in_loop
from tests.unit.bundles import known_bundle

REF = ModelRef("known", "champion")


class Store:
    """A registry in memory: `version` is what the alias names, None while it is down."""

    def __init__(self):
        self.version, self.broken, self.fetched, self.forgotten, self.last = "1", set(), [], [], None
        self.damaged = set()

    def current_version(self, ref):
        if self.version is None:
            raise BundleError("the store is down")
        return self.version

    def fetch(self, ref, version):
        self.fetched.append(version)
        return version

    def forget(self, ref, version):
        self.forgotten.append(version)

    def forget_damaged(self, ref, version):
        was = version in self.damaged
        if was:
            self.damaged.remove(version)
            self.broken.discard(version)
        return was

    def remember(self, ref, version):
        self.last = version

    def recall(self, ref):
        return self.last


class Service:
    def __init__(self, store):
        self.metrics, self.settings, self.deployed, self._store = Metrics(), SimpleNamespace(poll_s=0.0), [], store

    async def deploy(self, folder, version):
        if version in self._store.broken:
            raise EngineError("it fails its own self-test")
        self.deployed.append(version)


@pytest.fixture
def world(monkeypatch):
    store = Store()
    for name in ("current_version", "fetch", "forget", "forget_damaged", "remember", "recall"):
        monkeypatch.setattr(registry, name, getattr(store, name))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://store")
    service = Service(store)
    return store, service, Follower(service, REF)


def swaps(service, outcome):
    return service.metrics.swaps.labels(outcome)._value.get()


def test_a_new_version_takes_over_once(world):
    store, service, follower = world

    @in_loop
    async def test():
        await follower.start()
        await follower.look()
        store.version = "2"
        await follower.look()
        await follower.look()

    test()
    assert service.deployed == ["1", "2"]
    assert swaps(service, "swapped") == 1
    assert store.last == "2"


def test_a_broken_version_is_left_and_tried_again_only_after_a_pause(world):
    store, service, follower = world
    store.broken = {"2"}

    @in_loop
    async def test():
        await follower.start()
        store.version = "2"
        for _ in range(3):
            await follower.look()
        assert store.fetched == ["1", "2"]
        assert store.forgotten == ["2"]
        store.version = "3"
        await follower.look()

    test()
    assert service.deployed == ["1", "3"]
    assert swaps(service, "broken") == 1


def test_a_store_that_is_down_changes_nothing(world):
    store, service, follower = world

    @in_loop
    async def test():
        await follower.start()
        store.version = None
        await follower.look()
        store.version = "1"
        await follower.look()

    test()
    assert service.deployed == ["1"]
    assert swaps(service, "store-down") == 1


def test_a_start_while_the_store_is_down_takes_what_served_last(world):
    store, service, follower = world
    store.version = None

    @in_loop
    async def test():
        with pytest.raises(BundleError, match="down"):
            await follower.start()
        store.last = "7"
        await follower.start()

    test()
    assert service.deployed == ["7"]


def test_a_copy_that_was_damaged_since_it_was_fetched_is_fetched_anew(world):
    store, service, follower = world
    store.broken, store.damaged = {"1"}, {"1"}

    @in_loop
    async def test():
        await follower.start()
        store.version, store.broken = "2", {"2"}  # broken, but as it was exported
        with pytest.raises(EngineError):
            await Follower(service, REF).start()

    test()
    assert service.deployed == ["1"]
    assert store.fetched == ["1", "1", "2"]


def test_a_fault_of_ours_or_the_system_does_not_end_the_following(world, caplog):
    store, service, follower = world
    store.version = "1"

    @in_loop
    async def test():
        await follower.start()
        following = asyncio.ensure_future(follower.run())
        for fault in (KeyError("a slip"), OSError(28, "No space left on device")):
            deploy, service.deploy = service.deploy, AsyncMock(side_effect=fault)
            store.version = str(int(store.version) + 1)
            while not service.deploy.called:
                await asyncio.sleep(0)
            service.deploy = deploy
        store.version = "9"
        while "9" not in service.deployed:
            assert not following.done()
            await asyncio.sleep(0.01)
        following.cancel()

    test()
    assert "a slip" in caplog.text
    assert swaps(service, "broken") == 1


def test_files_of_a_fetched_version_are_compared_with_its_checksums(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = registry.cache_folder(REF) / "1"
    assert not registry.forget_damaged(REF, "1")
    known_bundle(folder)
    assert not registry.forget_damaged(REF, "1")
    (folder / "model.onnx").write_bytes(b"x" * (folder / "model.onnx").stat().st_size)
    assert registry.forget_damaged(REF, "1")
    assert not folder.exists()


def test_a_cache_that_cannot_be_written_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(BundleError, match="XDG_CACHE_HOME"):
        registry.fetch(REF, "1")
    registry.remember(REF, "1")
    assert registry.recall(REF) is None


def test_an_idle_database_in_a_file_is_not_opened_again(world, monkeypatch, tmp_path):
    store, _, follower = world
    file = tmp_path / "mlflow.db"
    file.write_bytes(b"")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
    asked = []

    def current(ref):
        asked.append(ref)
        return store.version

    monkeypatch.setattr(registry, "current_version", current)

    @in_loop
    async def test():
        await follower.start()
        for _ in range(5):
            await follower.look()

    test()
    assert len(asked) == 2  # the start, and one look


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("models:/known@champion", ModelRef("known", "champion")),
        ("models:/known/3", ModelRef("known", version="3")),
        ("outputs/bundle", None),
    ],
)
def test_references(text, wanted):
    assert parse_ref(text) == wanted


@pytest.mark.parametrize("text", ["models:/known", "models:/", "models:/a@b@c", "models:/a/latest"])
def test_references_that_name_nothing(text):
    with pytest.raises(ConfigError, match="models:/NAME@ALIAS"):
        parse_ref(text)


def test_a_server_is_asked_with_its_own_credentials(monkeypatch):
    asked = []

    def urlopen(request, timeout):
        asked.append(request)
        return BytesIO(json.dumps({"model_version": {"version": "12"}}).encode())

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://store:5000/")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "a")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "b")
    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    assert current_version(REF) == "12"
    (request,) = asked
    assert request.full_url == "http://store:5000/api/2.0/mlflow/registered-models/alias?name=known&alias=champion"
    assert request.headers["Authorization"] == "Basic YTpi"

    def refuse(request, timeout):
        raise urllib.error.HTTPError(request.full_url, 404, "no", {}, None)

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(BundleError, match="no such model or alias"):
        current_version(REF)
