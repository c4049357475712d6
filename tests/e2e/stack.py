"""What docker-compose.yml starts, started here from real packages: PostgreSQL, an S3-compatible store, MLflow's server."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import yaml

from tests.e2e.services import ROOT

BIN = Path(sys.executable).parent


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody accepts connections there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def answers(url: str) -> bool:
    """Whether a GET of it succeeds."""
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
        return answer.status == 200
    return False


@contextlib.contextmanager
def daemon(
    command: list[str], log: Path, up: Callable[[], bool], environment: dict[str, str] | None = None, user: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """A server while the block runs: a session of its own, output to a file (its children would keep a pipe open)."""
    who = {"user": user, "group": user, "extra_groups": []} if user else {}
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
            **who,
        )
    try:
        deadline = time.monotonic() + 180
        while not up():
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.1)
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """A polite signal, then kills whatever is left of the tree and the session, twice: some start others while they end."""
    tree = []
    with contextlib.suppress(psutil.NoSuchProcess):
        tree = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        psutil.wait_procs(tree, 3)
    for _ in range(2):
        with contextlib.suppress(psutil.NoSuchProcess):
            tree += psutil.Process(process.pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for one in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
    _, alive = psutil.wait_procs(tree, 5)
    assert process.poll() is not None
    assert not alive, alive


def postgres_bin() -> Path | None:
    """Folder of PostgreSQL's programs; None where it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    here = shutil.which("initdb") or (str(found[-1]) if found else None)
    return Path(here).resolve().parent if here else None


@contextlib.contextmanager
def postgres(port: int, user: str, database: str, password: str) -> Iterator[None]:
    """A new cluster with one user and one database, as the image `postgres` makes it from the same variables."""
    programs = postgres_bin()
    assert programs is not None
    # The server refuses to run as root.
    owner = "postgres" if os.geteuid() == 0 else ""
    folder = Path(tempfile.mkdtemp(prefix="trifocal-postgres-"))
    try:
        (folder / "password").write_text(password)
        if owner:
            entry = pwd.getpwnam(owner)
            for one in (folder, folder / "password"):
                os.chown(one, entry.pw_uid, entry.pw_gid)
        who = {"user": owner, "group": owner, "extra_groups": []} if owner else {}
        make = [programs / "initdb", "-D", folder / "data", "-U", user, "-A", "scram-sha-256", "--no-sync"]
        made = subprocess.run(
            [*make, f"--pwfile={folder / 'password'}"], capture_output=True, text=True, check=False, cwd=folder, **who
        )
        assert made.returncode == 0, made.stderr
        server = [str(programs / "postgres"), "-D", str(folder / "data"), "-h", "127.0.0.1", "-p", str(port)]
        ready = [programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-U", user]

        def up() -> bool:
            return subprocess.run(ready, capture_output=True, check=False).returncode == 0

        with daemon([*server, "-k", str(folder), "-F"], folder / "log", up, user=owner):
            subprocess.run(
                [programs / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", user, database],
                env={**os.environ, "PGPASSWORD": password},
                check=True,
            )
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def object_store(port: int, log: Path) -> Iterator[None]:
    """An S3-compatible store, in memory."""
    with daemon([str(BIN / "moto_server"), "-H", "127.0.0.1", "-p", str(port)], log, lambda: listens(port)):
        yield


@contextlib.contextmanager
def mlflow_server(command: list[str], port: int, log: Path, environment: dict[str, str] | None = None) -> Iterator[str]:
    """Address of MLflow's server, once it is healthy."""
    address = f"http://127.0.0.1:{port}"
    told = {"PATH": f"{BIN}:{os.environ['PATH']}", "MLFLOW_DISABLE_TELEMETRY": "true", **(environment or {})}
    with daemon(command, log, lambda: answers(f"{address}/health"), told):
        yield address


class Compose:
    """docker-compose.yml as Compose reads it with the given variables, its hosts replaced by places on this machine."""

    def __init__(self, variables: dict[str, str], places: dict[str, str]) -> None:
        text = re.sub(
            r"\$\{(\w+)(?::[-?][^}]*)?\}", lambda m: variables[m[1]], (ROOT / "docker-compose.yml").read_text()
        )
        for place, here in places.items():
            assert place in text, place
            text = text.replace(place, here)
        found = yaml.safe_load(text.replace("$$", "$"))
        self.services, self.configs = found["services"], found["configs"]

    def environment(self, service: str) -> dict[str, str]:
        """A service's variables."""
        return {name: str(value) for name, value in self.services[service]["environment"].items()}

    def shell(self, service: str) -> str:
        """The line that a service's shell runs."""
        line = self.services[service]["entrypoint"]
        assert line[:2] == ["sh", "-c"]
        return str(line[2])
