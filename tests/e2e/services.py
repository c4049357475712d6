"""The real `lightning serve` on a socket, for tests: started, asked, stopped."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import httpx
import numpy as np
import psutil

ROOT = Path(__file__).parents[2]


class Running:
    """A service process; `client` speaks to it, `log` is what it said."""

    def __init__(self, model: str | Path, *options: str, start_new_session: bool = False, **environment: str):
        command = [str(Path(sys.executable).parent / "lightning"), "serve", str(model), "--port", "0", *options]
        if "--engine" not in options:
            command += ["--engine", "onnxruntime"]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
        self.process = subprocess.Popen(
            command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=start_new_session
        )
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.client = httpx.Client(timeout=30)
        try:
            self._start()
        except BaseException:
            self.process.kill()
            raise

    def _start(self) -> None:
        self.url = self.wait_for(r"listening on (http://[\w.:\[\]]+)").group(1)
        self.client = httpx.Client(base_url=self.url, timeout=30)
        deadline = time.monotonic() + 200
        while not self.ready():
            assert time.monotonic() < deadline, self.text
            time.sleep(0.02)

    def ready(self) -> bool:
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    @property
    def text(self) -> str:
        return "".join(self.log)

    def wait_for(self, pattern: str, seconds: float = 200, fail: str = "") -> re.Match[str]:
        deadline = time.monotonic() + seconds
        while True:
            found = re.search(pattern, self.text)
            if found:
                return found
            assert self.process.poll() is None, self.text
            assert not (fail and re.search(fail, self.text)), self.text
            assert time.monotonic() < deadline, f"{pattern} did not come:\n{self.text}"
            time.sleep(0.02)

    def family(self, kind: str = "") -> list[psutil.Process]:
        """All processes below it; `kind`, `decoder` or `engine`, picks some."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if kind in process.name() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def metric(self, name: str) -> float:
        """One sample of /metrics by the start of its line; 0 where it is absent."""
        lines = self.client.get("/metrics").text.splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), 0.0)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends it; its exit code. Asserts that no process stays."""
        family = self.family() if self.process.poll() is None else []
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join(10)
        _, alive = psutil.wait_procs(family, 10)
        assert not alive, f"left behind: {alive}"
        return code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()

    def _read(self):
        for line in self.process.stderr:
            self.log.append(line)


def picture(height=40, width=80, colour=(255, 0, 0), suffix=".png") -> bytes:
    """One colour, encoded."""
    pixels = np.full((height, width, 3), colour, np.uint8)
    return cv2.imencode(suffix, pixels[..., ::-1])[1].tobytes()
