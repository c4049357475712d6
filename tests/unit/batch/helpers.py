"""Folders of pictures, and batch predictions run in this process."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

import serving.batch.run as running
from pipeline.bundle import read_bundle
from serving.batch.run import BatchRun
from serving.batch.settings import Settings


def picture(seed, height=40, width=80):
    """Encoded noise; PNG."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


def fill(folder: Path, count: int, **size) -> Path:
    """A folder of `count` pictures 000.png, 001.png, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:03d}.png").write_bytes(picture(number, **size))
    return folder


def settings_for(source, model, out, **options) -> Settings:
    """Settings with the plain engine and two threads."""
    return Settings(
        **{"source": str(source), "model": str(model), "out": out, "engine": "onnxruntime", "workers": 2} | options
    )


def predict(source, model, out, **options):
    """Runs; returns the summary and the lines that were said."""
    settings = settings_for(source, model, out, **options)
    lines = []
    return BatchRun(settings, read_bundle(Path(model)), lines.append).run(), lines


def content(out: Path) -> dict[str, str]:
    """Every final file's checksum; of summary.json, of all but the times."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.is_dir() or name.startswith(".batch"):
            continue
        data = path.read_bytes()
        if name == "summary.json":
            data = json.dumps({k: v for k, v in json.loads(data).items() if k != "timing"}).encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def listed(out):
    """Reasons by file, and the images that were answered."""
    errors = {e["image"]: e for e in map(json.loads, (out / "errors.jsonl").read_text().splitlines())}
    return errors, Counter(pq.read_table(out / "predictions.parquet")["image"].to_pylist())


def interrupted(folder, model, out, monkeypatch, after=2, **options):
    """A run stopped by its user when some parts stand."""
    real, calls = running.write_part, []

    def stop(*arguments):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(1)
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(running, "write_part", stop)
        with pytest.raises(KeyboardInterrupt):
            predict(folder, model, out, part=4, **options)
