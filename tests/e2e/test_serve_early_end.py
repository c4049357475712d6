"""SIGTERM while `lightning serve` still starts, and options that it refuses at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.errors import ConfigError
from serving import command
from serving.command import parse
from tests.e2e.services import ROOT


def members(session: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("later_s", [0.0, 0.2, 0.5, 0.9])
def test_sigterm_during_the_start_ends_it_with_0_and_leaves_no_process(bundle, workers, later_s):
    arguments = [str(Path(sys.executable).parent / "lightning"), "serve", str(bundle), "--port", "0"]
    options = ["--engine", "onnxruntime", "--workers", workers, "--drain", "0"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        arguments + options, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 60
        while len(members(process.pid)) < 2 and time.monotonic() < deadline:  # it has begun
            time.sleep(0.005)
        time.sleep(later_s)
        process.send_signal(signal.SIGTERM)
        told = process.communicate(timeout=60)[1]
    assert process.returncode == 0, told
    assert "Traceback" not in told
    deadline = time.monotonic() + 10
    while (left := members(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def test_an_exit_that_a_library_makes_an_error_of_is_an_exit(monkeypatch):
    """As pydantic's native code does where the signal comes while its models are built."""

    def importing(settings):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except SystemExit as error:
            raise RuntimeError("of a library") from error

    monkeypatch.setattr(command, "_one", importing)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert command.main(["bundle"]) == 0
        monkeypatch.setattr(command, "_one", lambda settings: 1 // 0)
        with pytest.raises(ZeroDivisionError):  # a fault without a signal stays one
            command.main(["bundle"])
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--threads", "100000", "--threads is 100000; it takes at most 512"),
        ("--streams", "513", "at most 512"),
        ("--host", "", "--host is empty"),
        ("--max-batch", "-1", "takes 0 or more"),
    ],
)
def test_an_option_that_the_machine_could_not_bear_is_refused(option, value, told):
    with pytest.raises(ConfigError, match=told):
        parse(["bundle", option, value])
