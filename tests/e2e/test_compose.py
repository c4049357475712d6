"""The compose file: right by its schema, and what it starts works together when started here by the same commands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import ExitStack
from importlib.util import find_spec

import pytest
import yaml

from pipeline.bundle import read_bundle
from pipeline.export.register import register
from tests.e2e.services import ROOT, Running, picture
from tests.e2e.stack import BIN, Compose, free_port, mlflow_server, object_store, postgres, postgres_bin
from tests.unit.bundles import known_bundle

SECRETS = {
    "POSTGRES_PASSWORD": "db-secret",
    "S3_ACCESS_KEY": "key",
    "S3_SECRET_KEY": "s3-secret",
    "TRIFOCAL_API_KEYS": "k1,k2",
    "PROMETHEUS_KEY": "k2",
}
FILE = str(ROOT / "docker-compose.yml")


def check(file):
    command = [str(BIN / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_file_is_right_by_the_compose_specification(tmp_path):
    done = check(FILE)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    wrong["services"]["service"]["port"] = 8000
    (tmp_path / "wrong.yml").write_text(json.dumps(wrong))
    assert check(tmp_path / "wrong.yml").returncode == 1


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """PostgreSQL, a store and MLflow's server, wired by the file's own commands and variables."""
    if postgres_bin() is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    folder = tmp_path_factory.mktemp("stack")
    database, store, mlflow = free_port(), free_port(), free_port()
    places = {
        "@postgres:5432": f"@127.0.0.1:{database}",
        "store:9000": f"127.0.0.1:{store}",
        "http://mlflow:5000": f"http://127.0.0.1:{mlflow}",
        "--host 0.0.0.0 --port 5000": f"--host 127.0.0.1 --port {mlflow}",
        '127.0.0.1:5000"': f'127.0.0.1:{mlflow}"',
    }  # fmt: skip
    compose = Compose(SECRETS, places)
    with ExitStack() as running:
        its = compose.environment("postgres")
        running.enter_context(postgres(database, its["POSTGRES_USER"], its["POSTGRES_DB"], its["POSTGRES_PASSWORD"]))
        running.enter_context(object_store(store, folder / "store.log"))
        bucket = re.search(r"mc mb -p store/(\w+)", compose.shell("bucket"))[1]
        client(store).create_bucket(Bucket=bucket)
        # What the container installs first must be here as well.
        packages, command = compose.shell("mlflow").removeprefix("pip install --quiet ").split(" && ")
        assert all(find_spec({"psycopg2-binary": "psycopg2"}.get(name, name)) for name in packages.split())
        line = ["sh", "-c", command]
        running.enter_context(mlflow_server(line, mlflow, folder / "mlflow.log", compose.environment("mlflow")))
        yield compose, database, store, bucket


def client(port):
    import boto3

    keys = {"aws_access_key_id": SECRETS["S3_ACCESS_KEY"], "aws_secret_access_key": SECRETS["S3_SECRET_KEY"]}
    return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1", **keys)


def test_a_registered_champion_is_served_and_its_successor_takes_over(stack, tmp_path, monkeypatch):
    compose, database, store, bucket = stack
    monkeypatch.chdir(tmp_path)
    for name, value in compose.environment("trainer").items():
        monkeypatch.setenv(name, value)
    # The trainer registers by the name and alias that the service reads.
    (reference,) = compose.services["service"]["command"]
    name, alias = re.fullmatch(r"models:/(\w+)@(\w+)", reference).groups()
    said = compose.services["trainer"]["command"][2]
    assert f"--name {name} --register --alias {alias}" in said
    assert register(read_bundle(known_bundle(tmp_path / "first")), name, alias) == "1"
    entry = re.search(r"ENTRYPOINT (\[.*\])", (ROOT / "serving" / "Dockerfile").read_text())
    _, _, *options = json.loads(entry.group(1))
    options[options.index("0.0.0.0")] = "127.0.0.1"
    environment = {**compose.environment("service"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with Running(reference, *options, "--poll", "0.5", "--drain", "0", **environment) as service:
        assert service.client.post("/predict", content=picture()).status_code == 401
        service.client.headers["Authorization"] = "Bearer k1"
        answer = service.client.post("/predict", content=picture(40, 80, (0, 0, 255))).json()
        assert answer["model"]["version"] == "1"
        assert answer["images"][0]["heads"]["colour"]["labels"] == ["blue"]
        assert register(read_bundle(known_bundle(tmp_path / "second", ballast_mb=1)), name, alias) == "2"
        service.wait_for("version 2 took over from 1", fail="broken")
        assert service.client.post("/predict", content=picture()).json()["model"]["version"] == "2"
        # As Prometheus reads it, with the key that the file gives it.
        from prometheus_client.parser import text_string_to_metric_families as families

        (job,) = yaml.safe_load(compose.configs["prometheus"]["content"])["scrape_configs"]
        key = {"Authorization": f"Bearer {job['authorization']['credentials']}"}
        seen = service.client.get("/metrics", headers=key)
        assert seen.status_code == 200
        assert {"trifocal_requests", "trifocal_model_info"} <= {found.name for found in families(seen.text)}
        assert service.stop() == 0
    # What is known lies in PostgreSQL, and the files in the store.
    import psycopg2

    its = compose.environment("postgres")
    address = (
        f"postgresql://{its['POSTGRES_USER']}:{its['POSTGRES_PASSWORD']}@127.0.0.1:{database}/{its['POSTGRES_DB']}"
    )
    with psycopg2.connect(address) as connection, connection.cursor() as cursor:
        cursor.execute("select name, alias, version from registered_model_aliases")
        assert cursor.fetchall() == [(name, alias, 2)]
    connection.close()
    keys = [item["Key"] for item in client(store).list_objects_v2(Bucket=bucket)["Contents"]]
    assert sum(key.endswith("bundle/bundle.json") for key in keys) == 2


def test_the_health_checks_of_the_file_hold_here(stack):
    compose, *_ = stack
    _, *command = compose.services["mlflow"]["healthcheck"]["test"]
    port = re.search(r":(\d+)", compose.environment("trainer")["MLFLOW_TRACKING_URI"].removeprefix("http:"))[1]
    line = [sys.executable if word == "python" else word.replace(":5000", f":{port}") for word in command]
    assert subprocess.run(line, capture_output=True, check=False).returncode == 0
