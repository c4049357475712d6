"""Two runs on a real MLflow server, read side by side through its API as the UI reads them."""

from __future__ import annotations

import json
import urllib.request

import pytest

from tests.e2e.stack import free_port, mlflow_server
from tests.e2e.test_commands import TINY, lightning

SMALL = [*TINY, "--data.shapes", "{images: 40, size: 64}", "--trainer.max_epochs", "1"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of an MLflow server that runs as its users run it."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/store.db", "--artifacts-destination", str(folder / "files")]
    with mlflow_server(command, port, folder / "log") as address:
        yield address


def ask(server: str, path: str, content=None):
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(f"{server}/api/2.0/mlflow/{path}", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def plain(rows):
    return {row["key"]: row["value"] for row in rows}


def test_two_runs_stand_side_by_side(server, tmp_path):
    for rate in ("0.001", "0.0005"):
        done = lightning("fit", *SMALL, "--model.lr", rate, cwd=tmp_path, MLFLOW_TRACKING_URI=server)
        assert done.returncode == 0, done.stderr[-3000:]
    assert not (tmp_path / "mlruns").exists()  # nothing is kept beside the server
    experiment = ask(server, "experiments/get-by-name?experiment_name=trifocal")["experiment"]["experiment_id"]
    runs = ask(server, "runs/search", {"experiment_ids": [experiment]})["runs"]
    assert len(runs) == 2
    first, second = (run["data"] for run in runs)
    # How often the machine is measured depends on how long a run takes.
    metrics = [{name for name in plain(data["metrics"]) if "system/" not in name} for data in (first, second)]
    assert {"val/score", "val/objects/AP50", "val/surface/mIoU", "val/scene/accuracy", "train/loss"} <= metrics[0]
    assert metrics[0] == metrics[1]  # stable names, or no two runs could be compared
    parameters = [plain(data["params"]) for data in (first, second)]
    differing = {key for key in parameters[0] if parameters[0][key] != parameters[1].get(key)}
    assert differing == {"model.init_args.lr"}
    assert runs[0]["info"]["run_name"] != runs[1]["info"]["run_name"]
    for run in runs:
        files = ask(server, f"artifacts/list?run_id={run['info']['run_id']}")["files"]
        assert {"config.yaml", "environment.json", "curves", "checkpoints"} <= {file["path"] for file in files}
        assert run["info"]["status"] == "FINISHED"
        assert {item["tags"][0]["value"] for item in run["inputs"]["dataset_inputs"]} >= {"train", "val"}
