"""What every test runs under: no allocator re-execution, no network, a working directory of its own where asked for."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # test processes run side by side; threads that spin would stop each other
os.environ.setdefault("TRIFOCAL_TUNED", "1")  # the command would start the test process anew
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs the command in this process, in an empty folder: arguments to (exit code, stdout, stderr)."""
    from pipeline.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        out = capsys.readouterr()
        return code, out.out, out.err

    return run
