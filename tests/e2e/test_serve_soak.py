"""The soak benchmark, shortened: nasty files, a swap, a killed engine and SIGTERM among requests that must all be answered."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.e2e.services import ROOT
from tests.unit.bundles import known_bundle


def test_every_accepted_request_is_answered_once_and_rightly(tmp_path):
    bundle = known_bundle(tmp_path / "known", name="soak")
    command = [sys.executable, str(ROOT / "benchmarks" / "soak.py"), str(bundle), "--requests", "900"]
    command += ["--clients", "8", "--json", str(tmp_path / "result.json"), "--streams", "2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["requests"] >= 900
    assert found["statuses"]["200"] >= 850
    # The made-up nasty files were refused for what they are.
    assert {"413", "415", "422"} <= set(found["statuses"])
    assert set(found["versions"]) == {"1", "2"}
