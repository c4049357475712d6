"""The image of the service alone: its file, and a service that finds none of the packages that are not in it."""

from __future__ import annotations

import json
import re
import tomllib
from importlib.metadata import packages_distributions

import pytest

from tests.e2e.services import ROOT, Running, picture
from tests.unit.bundles import known_bundle

BLOCK = '''
import sys

class Absent:
    """As if these had not been installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
'''


def plain(requirement: str) -> str:
    return re.split(r"[\[<>=!~ ]", requirement)[0].lower().replace("_", "-")


def absent() -> set[str]:
    """Modules of the project's dependencies that are not among the service's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    serve = {plain(line) for line in project["optional-dependencies"]["serve"]}
    missing = {plain(line) for line in project["dependencies"]} - serve | {"mlflow-skinny", "mlflow-tracing"}
    found = packages_distributions().items()
    return {module for module, owners in found if {plain(owner) for owner in owners} <= missing}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image")
    (folder / "sitecustomize.py").write_text(BLOCK.format(names=sorted(absent())))
    places = {"PYTHONPATH": f"{folder}:{ROOT}", "XDG_CACHE_HOME": str(folder / "cache")}
    with Running(known_bundle(folder / "known"), "--drain", "0", "--engine", "auto", **places) as running:
        yield running


def test_nothing_but_the_services_own_packages_is_needed(service):
    assert {"torch", "lightning", "mlflow", "albumentations", "timm", "pandas", "pyarrow", "onnx"} <= absent()
    # The default engine is the fastest that is there; what was measured is told.
    assert re.search(r"engine \w+:\w+ \(measured now: .*onnxruntime:fp32 \d+\.\d ms", service.text)
    answer = service.client.post("/predict", content=picture(40, 80, (0, 0, 255)), params={"masks": "polygons"})
    assert answer.status_code == 200
    assert answer.json()["images"][0]["heads"]["colour"]["labels"] == ["blue"]
    drawn = service.client.post("/predict", content=picture(), headers={"Accept": "image/png"})
    assert drawn.content.startswith(b"\x89PNG")
    for path in ("/", "/docs", "/openapi.json", "/metrics", "/model", "/v2/models/known"):
        assert service.client.get(path).status_code == 200
    assert service.stop() == 0
    assert "Traceback" not in service.text


def test_the_image_is_built_from_what_is_there_and_runs_unprivileged():
    lines = (ROOT / "serving" / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(" ", 1) for line in lines if line and not line.startswith("#")]
    assert {word for word, _ in steps} <= {
        "FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT", "CMD"
    }  # fmt: skip
    for word, rest in steps:
        if word == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
        if word in {"ENTRYPOINT", "CMD"}:
            assert json.loads(rest)  # not through a shell, which would keep SIGTERM to itself
    users = [rest for word, rest in steps if word == "USER"]
    assert users == ["10001"]
    images = [rest.split()[0] for word, rest in steps if word == "FROM"]
    assert all(":" in image and not image.endswith(":latest") for image in images)
