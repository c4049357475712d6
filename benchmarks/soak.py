"""A long day of the service in short: python benchmarks/soak.py BUNDLE --requests 30000 [--nasty DIR]
[--engine onnxruntime].

Many clients, every hundredth picture a nasty one, a model swap, an engine process killed, SIGTERM while all clients
are busy. Exit code 0 where every accepted request was answered once and rightly, and memory stayed flat.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

NAME = "soak"
REASONS = {413, 415, 422}
"""What a nasty picture may be refused with."""

PATIENCE_S = 10.0
"""Seconds that the load goes on for the swap, the kill and its mending where the requests were too few for them."""


def pictures() -> list[bytes]:
    """Pictures that differ in size and colour: an answer to another one's is noticed."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(12):
        tint = rng.integers(0, 255, 3)
        noise = rng.normal(0, 12, (120 + 8 * number, 160 + 4 * number, 3))
        image = np.clip(tint + noise, 0, 255).astype(np.uint8)
        found.append(cv2.imencode((".jpg", ".png", ".webp")[number % 3], image)[1].tobytes())
    return found


def nasty(folder: Path | None) -> list[bytes]:
    """Files that no picture should be: cut off, lying, empty, no picture; and those of a folder."""
    good = pictures()
    claim = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + good[1][24:29]  # 3,600 megapixels
    bomb = good[1][:12] + claim + zlib.crc32(claim).to_bytes(4, "big") + good[1][33:]
    made = [good[0][: len(good[0]) // 2], good[1][:40], bomb, b"no picture", b"\xff\xd8" + os.urandom(500), b"\0"]
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix != ".tsv") if folder else []
    return made + [file.read_bytes() for file in files if 0 < file.stat().st_size < 20_000_000]


class Store:
    """The one question that following an alias puts to an MLflow server; `version` is its answer."""

    def __init__(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # the base class's name
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps({"model_version": {"version": outer.version}}).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.version = "1"
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.uri = f"http://127.0.0.1:{self.server.server_port}"


class Service:
    """`lightning serve models:/soak@champion`, its log in a file."""

    def __init__(self, bundle: Path, work: Path, store: Store, options: list[str]) -> None:
        os.environ.update({"MLFLOW_TRACKING_URI": store.uri, "XDG_CACHE_HOME": str(work / "cache")})
        from serving.registry import ModelRef, cache_folder

        for version in ("1", "2"):
            shutil.copytree(bundle, cache_folder(ModelRef(NAME, "champion")) / version)
        command = [str(Path(sys.executable).parent / "lightning"), "serve", f"models:/{NAME}@champion", "--port", "0"]
        command += ["--log-format", "json", "--poll", "0.5", *options]
        self.log = work / "log"
        root = Path(__file__).parents[1]
        env = {**os.environ, "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log, env=env)
        while (found := re.search(r"listening on http://([\d.]+):(\d+)", self.log.read_text())) is None:
            if self.process.poll() is not None:
                raise SystemExit(f"the service did not start: {self.log.read_text()}")
            time.sleep(0.05)
        self.host, self.port = found[1], int(found[2])

    def family(self, kind: str = "") -> Iterator[psutil.Process]:
        main = psutil.Process(self.process.pid)
        for one in [main, *main.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):  # it may end just now
                if kind in one.name():
                    yield one

    def memory_mb(self) -> float:
        """Proportional set size: shared pages count once."""
        total = 0.0
        for one in self.family():
            with contextlib.suppress(psutil.Error):
                total += one.memory_full_info().pss / 2**20
        return total


class Soak:
    """The clients and what they saw."""

    def __init__(self, service: Service, good: list[bytes], bad: list[bytes], wanted: list[Any]) -> None:
        self.service, self.good, self.bad, self.wanted = service, good, bad, wanted
        self.sent = 0
        self.answers: dict[str, int] = {}
        self.versions: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.broken_off: list[str] = []
        self.stopping = False

    async def client(self) -> None:
        """Sends one after the other until the service, told to stop, lets in no more."""
        reader = writer = None
        while True:
            number, self.sent = self.sent, self.sent + 1
            name = f"r{number}"
            try:
                if writer is None or writer.is_closing():
                    reader, writer = await asyncio.open_connection(self.service.host, self.service.port)
                assert reader is not None
                spoilt = number % 100 == 99
                data = self.bad[number // 100 % len(self.bad)] if spoilt else self.good[number % len(self.good)]
                head = (
                    f"POST /predict HTTP/1.1\r\nHost: x\r\nX-Request-ID: {name}\r\nContent-Length: {len(data)}\r\n\r\n"
                )
                writer.write(head.encode() + data)
                status, headers, body = await _answer(reader)
            except (OSError, EOFError):
                self.broken_off.append(name)
                writer = None
                if self.stopping or self.service.process.poll() is not None:
                    return
                continue
            self.check(name, number, spoilt, status, headers, json.loads(body))
            if status == 503:
                await asyncio.sleep(0.2)
            if "connection: close" in headers:
                writer = None

    def check(self, name: str, number: int, spoilt: bool, status: int, headers: str, body: Any) -> None:
        self.answers[name] = status
        if f"x-request-id: {name}\r\n" not in headers:
            self.wrong.append(f"{name}: an answer to another request: {headers}")
        elif status == 503 or (spoilt and status in REASONS):
            return
        elif status != 200:
            self.wrong.append(f"{name}: {status} {str(body)[:200]}")
        else:
            self.versions[body["model"]["version"]] += 1
            found = {"size": body["images"][0]["size"], "heads": body["images"][0]["heads"]}
            if not spoilt and not _alike(found, self.wanted[number % len(self.good)]):
                self.wrong.append(f"{name}: {str(found)[:200]}")


async def _answer(reader: asyncio.StreamReader) -> tuple[int, str, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = re.search(r"content-length: (\d+)", head)
    assert length is not None
    return int(head[9:12]), head, await reader.readexactly(int(length[1]))


def _alike(found: Any, wanted: Any) -> bool:
    """Equal, numbers within 1e-3 of each other."""
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(_alike(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(_alike, found, wanted))
    if isinstance(wanted, float):
        return abs(found - wanted) <= 1e-3 * max(1, abs(wanted))
    return bool(found == wanted)


def truth(bundle: Path, engine: str, data: list[bytes]) -> list[Any]:
    """The answers as the predictor gives them by itself."""
    from pipeline.errors import ImageError
    from serving.predictor import Predictor
    from serving.render import render_answer

    predictor, found = Predictor.load(bundle, engine, threads=1), []
    for answer in predictor.predict(data, batch_size=1):
        assert not isinstance(answer, ImageError)
        size = {"width": answer.size[1], "height": answer.size[0]}
        plain = {"size": size, "heads": render_answer(answer, predictor.heads, "rle")}
        found.append(json.loads(json.dumps(plain)))
    return found


async def run(soak: Soak, store: Store, total: int, clients: int) -> dict[str, Any]:
    """All clients, and at their points the swap, the kill and the end; what the memory was along the way."""
    service = soak.service
    memory: list[tuple[float, float]] = []
    tasks = [asyncio.ensure_future(soak.client()) for _ in range(clients)]
    due = {"swap": 0.35 * total, "kill": 0.6 * total}
    killed, recovered, over, before = 0.0, 0.0, 0.0, set[int]()
    first = {one.pid for one in service.family("engine")}
    while not soak.stopping:
        await asyncio.sleep(0.02)
        if any(task.done() for task in tasks):
            break
        if soak.sent >= (len(memory) + 1) * total / 40:
            memory.append((soak.sent / total, await asyncio.to_thread(service.memory_mb)))
        if "swap" in due and soak.sent >= due["swap"]:
            store.version = "2"
            del due["swap"]
        if "kill" in due and soak.sent >= due["kill"] and "2" in soak.versions:
            before = {one.pid for one in service.family("engine")}
            if before and before.isdisjoint(first):  # those of the version that was swapped out are not replaced
                killed = time.monotonic()
                os.kill(min(before), signal.SIGKILL)
                del due["kill"]
        if killed and not recovered:
            alive = {one.pid for one in service.family("engine")}
            recovered = time.monotonic() - killed if alive - before else 0.0
        over = over or (time.monotonic() if soak.sent >= total else 0.0)
        if over and (recovered or time.monotonic() - over > PATIENCE_S):
            soak.stopping = True
            service.process.send_signal(signal.SIGTERM)
    await asyncio.gather(*tasks)
    early = [mb for at, mb in memory if at <= 0.3]
    late = [mb for at, mb in memory if at > 0.7]
    return {
        "early_mb": round(statistics.median(early), 1),
        "late_mb": round(statistics.median(late), 1),
        "engine_back_s": round(recovered, 2),
    }


def logged(log: Path) -> tuple[Counter[str], list[str]]:
    """How often the service's own log tells of each request's answer; and lines that are none of its own."""
    counted: Counter[str] = Counter()
    strays = []
    for line in log.read_text().splitlines():
        if not line.startswith("{") or "trace" in json.loads(line):
            strays.append(line)
        else:
            counted[json.loads(line).get("request", "")] += 1
    del counted[""]
    return counted, strays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=30_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--nasty", type=Path, help="folder of files to mix in besides the made-up ones")
    parser.add_argument("--engine", default="onnxruntime", help="any other option goes to `lightning serve`")
    parser.add_argument("--json", type=Path)
    given, options = parser.parse_known_args()
    good, bad = pictures(), nasty(given.nasty)
    wanted, store = truth(given.bundle, given.engine, good), Store()
    with tempfile.TemporaryDirectory(prefix="trifocal-soak-") as folder:
        service = Service(given.bundle, Path(folder), store, ["--engine", given.engine, *options])
        family, begun = list(service.family()), time.monotonic()
        soak = Soak(service, good, bad, wanted)
        try:
            result = asyncio.run(run(soak, store, given.requests, given.clients))
            code = service.process.wait(60)
        finally:
            service.process.kill()
        told, strays = logged(service.log)
        _, alive = psutil.wait_procs(family, 10)
    statuses = Counter(soak.answers.values())
    result |= {
        "requests": soak.sent,
        "seconds": round(time.monotonic() - begun, 1),
        "statuses": dict(sorted(statuses.items())),
        "versions": dict(soak.versions),
        "broken_off": len(soak.broken_off),
        "wrong": soak.wrong[:10],
        "answered_twice": [name for name, count in told.items() if count > 1],
        "lost": [name for name in soak.broken_off if name in told],
        "left_behind": len(alive),
        "exit_code": code,
        "strays": strays[:20],
    }
    amiss = {
        name: bool(result[name]) for name in ("wrong", "answered_twice", "lost", "left_behind", "exit_code", "strays")
    }
    amiss["versions"] = set(soak.versions) != {"1", "2"}
    amiss["memory"] = result["late_mb"] > 1.1 * result["early_mb"] + 10
    amiss["engine_back_s"] = not 0 < result["engine_back_s"] <= 5
    flaws = result["flaws"] = [name for name, found in amiss.items() if found]
    text = json.dumps(result, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")
    sys.exit(1 if flaws else 0)


if __name__ == "__main__":
    main()
