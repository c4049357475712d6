"""The fuzzer's targets hold on their seeds, on what was once found, and for a moment of real fuzzing."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

FOUND = [
    ("v2", b"e\xb9\x00\x00\x00{}"),  # a header length of a superscript one
    ("v2", b"\x01" + b"9999" + b"{}"),
    ("form", b"multipart/form-data\nx"),
]


@pytest.mark.parametrize("name", TARGETS)
def test_targets_hold_on_their_seeds(name):
    target, seeds = TARGETS[name]
    for seed in seeds():
        target(seed)
        target(seed[: len(seed) // 2])


@pytest.mark.parametrize(("name", "data"), FOUND)
def test_what_was_found_stays_mended(name, data):
    TARGETS[name][0](data)


@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed: pip install -e '.[fuzz]'")
@pytest.mark.parametrize("name", TARGETS)
def test_a_moment_of_fuzzing_finds_nothing(name, tmp_path):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.fuzz", name, "--seconds", "1", "--corpus", str(tmp_path / "corpus")]
    env = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done" in done.stderr
    assert not list(tmp_path.glob("crash-*"))
