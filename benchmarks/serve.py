"""The service against the raw limit of the same cores, in one run: python benchmarks/serve.py BUNDLE [--engine …].

The raw limit is decode + letterbox + network in a tight loop, one process per core. Load comes from one process with
raw sockets; what it costs is part of the service's figures, for it runs on the same cores. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

PICTURES = 16


def pictures() -> list[bytes]:
    """640 x 480 JPEGs of about 90 kB."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(PICTURES):
        coarse = rng.integers(0, 255, (60, 80, 3), np.uint8)
        image = cv2.resize(coarse, (640, 480), interpolation=cv2.INTER_CUBIC).astype(np.int16)
        noisy = np.clip(image + rng.normal(0, 14, image.shape), 0, 255).astype(np.uint8)
        found.append(cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 82])[1].tobytes())
    return found


def raw_worker(bundle: str, engine: str, seconds: float, start: Any, results: Any) -> None:
    """One core's tight loop: pictures per second, and milliseconds of one."""
    cv2.setNumThreads(1)
    from serving.predictor import Predictor

    predictor = Predictor.load(Path(bundle), engine, threads=1)
    data = pictures()
    for one in data[:4]:
        predictor.infer(predictor.decode(one).pixels[None])
    start.wait()
    times: list[float] = []
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        at = time.perf_counter()
        predictor.infer(predictor.decode(data[len(times) % PICTURES]).pixels[None])
        times.append(time.perf_counter() - at)
    results.put((len(times) / (time.perf_counter() - begun), 1000 * statistics.median(times)))


def raw_limit(bundle: str, engine: str, processes: int, seconds: float) -> tuple[float, float]:
    """Pictures per second of all processes together, and the median milliseconds of one picture."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(processes), context.Queue()
    running = [
        context.Process(target=raw_worker, args=(bundle, engine, seconds, start, results)) for _ in range(processes)
    ]
    for process in running:
        process.start()
    found = [results.get() for _ in running]
    for process in running:
        process.join()
    return sum(rate for rate, _ in found), statistics.mean(ms for _, ms in found)


class Service:
    """The command on a free port."""

    def __init__(self, bundle: str, engine: str, *options: str) -> None:
        begun = time.perf_counter()
        command = [str(Path(sys.executable).parent / "lightning"), "serve", bundle, "--port", "0", "--engine", engine]
        self.process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            found = re.search(r"listening on http://([\d.]+):(\d+)", line)
            if found:
                self.host, self.port = found[1], int(found[2])
                break
        else:
            raise SystemExit("the service did not start")
        self.request(pictures()[0])
        self.started_s = time.perf_counter() - begun
        # Its log is not read on: the pipe must not fill up.
        self._drain = subprocess.Popen(["cat"], stdin=self.process.stderr, stdout=subprocess.DEVNULL)

    def request(self, data: bytes) -> None:
        url = f"http://{self.host}:{self.port}/predict?masks=none"
        urllib.request.urlopen(urllib.request.Request(url, data, method="POST"), timeout=60).read()

    def metric(self, name: str) -> float:
        text = urllib.request.urlopen(f"http://{self.host}:{self.port}/metrics", timeout=60).read().decode()
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))

    def family(self) -> list[psutil.Process]:
        main = psutil.Process(self.process.pid)
        return [main, *main.children(recursive=True)]

    def memory_mb(self) -> float:
        """Proportional set size of all processes: shared pages count once."""
        return sum(process.memory_full_info().pss for process in self.family()) / 2**20

    def cpu_s(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self.family())

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def message(body: bytes, path: str = "/predict?masks=none", kind: str = "image/jpeg") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Connection:
    """A kept connection that sends ready-made bytes."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, data: bytes) -> int:
        if self._reader is None or self._writer is None or self._writer.is_closing():
            self._reader, self._writer = await asyncio.open_connection(self._service.host, self._service.port)
        self._writer.write(data)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None
        await self._reader.readexactly(int(length[1]))
        if b"connection: close" in head:
            self.close()
        return int(head[9:12])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


async def closed_loop(
    service: Service, clients: int, seconds: float, messages: list[bytes]
) -> tuple[float, list[float]]:
    """Answers per second, and every answer's milliseconds."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def client(number: int) -> None:
        connection = Connection(service)
        turn = number
        while time.perf_counter() < end:
            begun = time.perf_counter()
            if await connection.ask(messages[turn % len(messages)]) == 200:
                times.append(1000 * (time.perf_counter() - begun))
            turn += 1
        connection.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    return len(times) / seconds, times


async def open_loop(
    service: Service, rate: float, seconds: float, messages: list[bytes]
) -> tuple[float, list[float], list[float]]:
    """Sends on schedule, whatever comes back: answers per second, milliseconds of the answers and of the refusals."""
    answered: list[float] = []
    refused: list[float] = []
    idle: list[Connection] = []
    tasks: set[asyncio.Task[None]] = set()

    async def one(data: bytes, due: float) -> None:
        connection = idle.pop() if idle else Connection(service)
        try:
            status = await connection.ask(data)
        except (OSError, EOFError):
            connection.close()
            return
        (answered if status == 200 else refused).append(1000 * (time.perf_counter() - due))
        idle.append(connection)

    begun = time.perf_counter()
    for number in range(round(rate * seconds)):
        due = begun + number / rate
        if due > time.perf_counter():
            await asyncio.sleep(due - time.perf_counter())
        task = asyncio.ensure_future(one(messages[number % len(messages)], due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return len(answered) / (time.perf_counter() - begun), answered, refused


async def hang_up(service: Service, clients: int, messages: list[bytes]) -> None:
    """Clients that leave after 50 ms."""

    async def one(data: bytes) -> None:
        _, writer = await asyncio.open_connection(service.host, service.port)
        writer.write(data)
        await asyncio.sleep(0.05)
        writer.transport.abort()

    await asyncio.gather(*(one(messages[number % len(messages)]) for number in range(clients)))


def raw_cost(bundle: str, engine: str, count: int) -> float:
    """Processor milliseconds of a picture in the bare loop: unlike a clock's, hardly moved by what else runs."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return float(pool.apply(_raw_cost, (bundle, engine, count)))


def _raw_cost(bundle: str, engine: str, count: int) -> float:
    cv2.setNumThreads(1)
    from serving.predictor import Predictor

    predictor, data = Predictor.load(Path(bundle), engine, threads=1), pictures()
    predictor.infer(predictor.decode(data[0]).pixels[None])
    begun = time.process_time()
    for turn in range(count):
        predictor.infer(predictor.decode(data[turn % PICTURES]).pixels[None])
    return 1000 * (time.process_time() - begun) / count


def multipart(data: list[bytes]) -> bytes:
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="i"; filename="%d.jpg"\r\n\r\n' % number + one + b"\r\n"
        for number, one in enumerate(data)
    ]
    return message(b"".join(parts) + b"--b--\r\n", kind="multipart/form-data; boundary=b")


def percentile(values: list[float], share: float) -> float:
    return float(np.percentile(values, share)) if values else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=2, help="of raw limit and service in turn")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    # The raw loop and the service's engine processes have one thread each; libraries must not add theirs.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    cores = len(os.sched_getaffinity(0))
    data = pictures()
    messages = [message(one) for one in data]
    rows: dict[str, Any] = {
        "cores": cores,
        "engine": given.engine,
        "jpeg_kb": round(sum(map(len, data)) / PICTURES / 1000),
    }

    def record(name: str, value: Any) -> None:
        rows[name] = value
        print(f"{name:<44} {value}", flush=True)

    raws, rates, singles, lone, batch, costs = [], [], [], [], [], []
    many = [multipart([data[i % PICTURES] for i in range(32)])]
    for turn in range(given.rounds):
        raw, ms = raw_limit(given.bundle, given.engine, cores, given.seconds)
        _, alone = raw_limit(given.bundle, given.engine, 1, given.seconds / 2)
        service = Service(given.bundle, given.engine, "--log-format", "json")
        if turn == 0:
            record("start to first answer, s", round(service.started_s, 2))
            before = service.cpu_s()
            time.sleep(12)
            record("one core's share when idle", round((service.cpu_s() - before) / 12, 4))
            record("memory when idle, MB", round(service.memory_mb()))
        run: Callable[[Any], Any] = asyncio.run
        run(closed_loop(service, 8, 2, messages))
        rate, _ = run(closed_loop(service, 8, given.seconds, messages))
        _, times = run(closed_loop(service, 1, given.seconds / 2, messages))
        requests, _ = run(closed_loop(service, 1, given.seconds, many))
        spent, counted = service.cpu_s(), service.metric("trifocal_images_total{")
        run(closed_loop(service, 8, given.seconds, messages))
        cost = 1000 * (service.cpu_s() - spent) / (service.metric("trifocal_images_total{") - counted)
        costs.append(raw_cost(given.bundle, given.engine, 100) / cost)
        raws.append(raw)
        rates.append(rate / raw)
        batch.append(32 * requests / raw)
        singles.append(alone)
        lone.append(statistics.median(times) - alone)
        if turn + 1 < given.rounds:
            service.stop()
    record("raw limit, pictures/s", [round(value, 1) for value in raws])
    record("8 clients against the raw limit", [round(value, 3) for value in rates])
    record("the same in processor time", [round(value, 3) for value in costs])
    record("one request of 32 against the raw limit", [round(value, 3) for value in batch])
    record("bare loop, ms", [round(value, 2) for value in singles])
    record("a lone client's median over it, ms", [round(value, 2) for value in lone])
    peak = rates[-1] * raws[-1]
    _, answered, refused = asyncio.run(open_loop(service, 0.7 * peak, given.seconds, messages))
    record("p99 at 70 % of the peak, of the bare time", round(percentile(answered, 99) / ms, 2))
    record("refused at 70 % of the peak", len(refused))
    before = service.memory_mb()
    rate, answered, refused = asyncio.run(open_loop(service, 10 * peak, given.seconds, messages))
    record("answered at 10 times the peak, of the peak", round(rate / peak, 3))
    record("refusals, median and p99 ms", [round(percentile(refused, 50), 1), round(percentile(refused, 99), 1)])
    record("memory after it, MB more", round(service.memory_mb() - before))
    before = service.metric("trifocal_batch_size_count")
    asyncio.run(hang_up(service, 40, messages))
    time.sleep(2)
    record("batches for 40 clients that left after 50 ms", service.metric("trifocal_batch_size_count") - before)
    service.stop()
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
