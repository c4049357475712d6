"""OpenVINO loaded in the main thread and freed in another leaves the main thread able to hear signals."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.unit.bundles import known_bundle

SCRIPT = """
import os, signal, sys, threading
from pathlib import Path
from pipeline.bundle import read_bundle
from serving.engines.registry import load_engine

held = [load_engine(read_bundle(Path(sys.argv[1])), "openvino:fp32", threads=2)]
freeing = threading.Thread(target=held.clear)
freeing.start()
freeing.join()
signal.signal(signal.SIGUSR1, lambda *_: print("heard"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_a_signal_is_heard_after_openvino_was_freed_in_another_thread(tmp_path):
    pytest.importorskip("openvino")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(known_bundle(tmp_path / "bundle"))]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (0, "heard\n"), ended.stderr
