"""`lightning batch-predict` as a user runs it."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.unit.bundles import known_bundle

ROOT = Path(__file__).parents[2]


def batch_predict(*arguments, cwd, **options):
    command = [sys.executable, "-m", "pipeline.cli", "batch-predict", *(str(a) for a in arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False, **options
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return known_bundle(tmp_path_factory.mktemp("model") / "known")


@pytest.fixture
def folder(tmp_path):
    """Ten pictures, a broken one, and a file that is none."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for number in range(10):
        colour = [(0, 0, 255), (0, 255, 0), (255, 0, 0)][number % 3]  # BGR: red, green, blue
        name = f"{'deep/' if number % 2 else ''}{number}.png"
        cv2.imwrite(str(tmp_path / "in" / name), np.full((40, 80, 3), colour, np.uint8))
    (tmp_path / "in" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no picture")
    (tmp_path / "in" / "notes.txt").write_text("hello")
    return tmp_path / "in"


def test_a_folder_is_answered_and_what_could_not_be_is_listed(folder, model, tmp_path):
    done = batch_predict(folder, "--model", model, "--out", "out", "--engine", "onnxruntime", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "10 of 11 images answered, 1 not; 1 other files left out" in done.stdout
    rows = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    assert len(rows) == 30
    colours = {row["image"]: row["labels"][0] for row in rows if row["head"] == "colour"}
    assert colours == {f"{'deep/' if n % 2 else ''}{n}.png": ["red", "green", "blue"][n % 3] for n in range(10)}
    errors = [json.loads(line) for line in (tmp_path / "out" / "errors.jsonl").read_text().splitlines()]
    assert [(e["image"], e.get("skipped", False)) for e in errors] == [("broken.jpg", False), ("notes.txt", True)]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["images"] == {"found": 11, "answered": 10, "failed": 1, "skipped": 1}
    assert summary["heads"]["colour"]["counts"] == {"red": 4, "green": 3, "blue": 3}
    assert sum(summary["errors"].values()) == 1
    again = batch_predict(folder, "--model", model, "--out", "out", "--engine", "onnxruntime", cwd=tmp_path)
    assert again.returncode == 3
    assert "finished already" in again.stderr


def test_a_run_that_cannot_start_says_so_in_one_line(folder, model, tmp_path):
    for arguments, told in (
        ((folder, "--model", tmp_path, "--out", "out"), "is no bundle"),
        ((tmp_path / "nowhere", "--model", model, "--out", "out"), "does not exist"),
        ((folder, "--model", model, "--out", folder), "lies inside the output folder"),
        ((folder, "--model", model, "--out", "out", "--tile", "many"), "--tile"),
    ):
        done = batch_predict(*arguments, cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert told in done.stderr


@pytest.mark.parametrize("most", [2_000, 20_000])
def test_a_disk_that_takes_no_more_is_told_in_one_line_and_the_run_goes_on_later(most, folder, model, tmp_path):
    def limit():  # a file larger than this cannot be written: the list of files, or later the parts and overlays
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    options = ("--model", model, "--out", "out", "--engine", "onnxruntime", "--overlay")
    done = batch_predict(folder, *options, cwd=tmp_path, preexec_fn=limit)
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert re.match(r"error: .*out cannot be written: .*; when that is mended, the same command goes on", error)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "summary.json").exists()
    again = batch_predict(folder, *options, cwd=tmp_path)
    assert again.returncode == 3, again.stderr
    assert len(list((tmp_path / "out" / "overlay").rglob("*.jpg"))) == 10


def test_torch_is_not_imported(folder, model, tmp_path):
    code = (
        "import sys; from pipeline.cli import main;"
        f"code = main(['batch-predict', {str(folder)!r}, '--model', {str(model)!r}, '--out', 'o', '--engine', 'onnxruntime']);"
        "sys.exit(100 if {'torch', 'lightning', 'mlflow', 'pandas'} & set(sys.modules) else code)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TRIFOCAL_TUNED": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 3, done.stderr
