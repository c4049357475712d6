"""What stands around the service: the example client, the compose file, the image's requirements."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest
import yaml

from tests.e2e.services import ROOT, Running, picture
from tests.unit.bundles import known_bundle


def test_the_example_client_prints_what_the_service_sees(tmp_path):
    (tmp_path / "blue.png").write_bytes(picture(40, 80, (0, 0, 255)))
    (tmp_path / "notes.txt").write_text("no picture")
    with Running(known_bundle(tmp_path / "known"), "--drain", "0") as service:
        command = [sys.executable, str(ROOT / "examples" / "client.py"), service.url, "blue.png", "notes.txt"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    seen, found, refused = done.stdout.splitlines()
    assert seen == "blue.png: colour: blue"
    assert found == "blue.png: things: thing 0.90 at [20, 20, 60, 40]"
    assert refused.startswith("notes.txt: Not a picture of a known format: notes.txt: not an image")


@pytest.fixture
def compose():
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def test_the_compose_file_is_whole(compose):
    services = compose["services"]
    assert {"postgres", "store", "mlflow", "trainer", "service", "prometheus"} <= set(services)
    for service in services.values():
        assert "image" in service or "build" in service
        depends = service.get("depends_on", [])
        assert set(depends) <= set(services)
        for name in depends if isinstance(depends, dict) else []:
            if depends[name]["condition"] == "service_healthy":
                assert "healthcheck" in services[name]
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source.startswith(".") or source in compose["volumes"]
        # Nothing is offered beyond this machine.
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    asked = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    assert asked == set(re.findall(r"^(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert services["service"]["environment"]["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert services["service"]["read_only"]


def test_the_compose_files_command_is_one_that_serve_takes(compose, monkeypatch):
    from pipeline.registered import parse_ref
    from serving.command import parse

    monkeypatch.setenv("TRIFOCAL_API_KEYS", "")
    entry = re.search(r"ENTRYPOINT (\[.*\])", (ROOT / "serving" / "Dockerfile").read_text())
    words = [*yaml.safe_load(entry.group(1)), *compose["services"]["service"]["command"]]
    assert words[:2] == ["lightning", "serve"]
    settings = parse(words[2:])
    assert parse_ref(settings.model).alias == "champion"
    assert settings.host == "0.0.0.0"
    assert settings.api_keys == ()


def test_the_image_holds_no_training_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    serve = project["optional-dependencies"]["serve"] + project["optional-dependencies"]["registry"]
    names = {re.split(r"[\[<>=!]", line)[0] for line in serve}
    assert not names & {"torch", "torchvision", "lightning", "mlflow", "albumentations", "timm", "pandas"}
    # The service's requirements and the project's own agree.
    for line in project["optional-dependencies"]["serve"]:
        assert line in project["dependencies"]
