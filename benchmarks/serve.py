"""The service against the raw limit of the same cores, in one run: python benchmarks/serve.py BUNDLE [--engine …].

The raw limit is decode + letterbox + network in a tight loop, one process per core. Load comes from this process; what it costs
is part of the service's figures, for it runs on the same cores, and is told where it counts. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
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
from serve_load import closed_loop, hang_up, message, multipart, open_loop, run

PICTURES = 16
Rows = dict[str, Any]


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


def raw_worker(bundle: str, engine: str, threads: int, seconds: float, start: Any, results: Any) -> None:
    """One process's tight loop: pictures per second, and milliseconds of one."""
    cv2.setNumThreads(1)
    from serving.predictor import Predictor

    predictor = Predictor.load(Path(bundle), engine, threads=threads)
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


def raw_limit(bundle: str, engine: str, processes: int, seconds: float, threads: int = 1) -> tuple[float, float]:
    """Pictures per second of all processes together, and the median milliseconds of one picture."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(processes), context.Queue()
    running = [
        context.Process(target=raw_worker, args=(bundle, engine, threads, seconds, start, results))
        for _ in range(processes)
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
                self.address = found[1], int(found[2])
                break
        else:
            raise SystemExit("the service did not start")
        self.request(pictures()[0])
        self.started_s = time.perf_counter() - begun
        # Its log is not read on: the pipe must not fill up.
        self._drain = subprocess.Popen(["cat"], stdin=self.process.stderr, stdout=subprocess.DEVNULL)

    def request(self, data: bytes) -> None:
        url = "http://{}:{}/predict?masks=none".format(*self.address)
        urllib.request.urlopen(urllib.request.Request(url, data, method="POST"), timeout=60).read()

    def metric(self, name: str) -> float:
        text = urllib.request.urlopen("http://{}:{}/metrics".format(*self.address), timeout=60).read().decode()
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))

    def family(self) -> list[psutil.Process]:
        main = psutil.Process(self.process.pid)
        return [main, *main.children(recursive=True)]

    def memory_mb(self) -> float:
        """Proportional set size of all processes: shared pages count once."""
        return sum(process.memory_full_info().pss for process in self.family()) / 2**20

    def cpu_s(self) -> float:
        return sum(self.cpu_by_part().values())

    def cpu_by_part(self) -> dict[str, float]:
        """Processor seconds so far of the process that speaks HTTP, the decoders and the engines."""
        found = dict.fromkeys(("http", "tri-decoder", "tri-engine"), 0.0)
        for process in self.family():
            name = process.name()
            found[name if name in found else "http"] += sum(process.cpu_times()[:2])
        return found

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


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


def percentile(values: list[float], share: float) -> float:
    return float(np.percentile(values, share)) if values else float("nan")


def overload(service: Service, seconds: float, messages: list[bytes]) -> Rows:
    """Ten times the peak. Refusing costs the service processor time and sending costs the sender some: both are told.

    The peak is measured right before and right after: the machine's own speed changes by more than what is looked for.
    """
    parts, own = service.cpu_by_part(), time.process_time()
    peak, times = run(closed_loop(service.address, 8, seconds, messages))
    at_peak, sender_at_peak = service.cpu_s() - sum(parts.values()), time.process_time() - own
    before, parts, own = service.memory_mb(), service.cpu_by_part(), time.process_time()
    found = run(open_loop(service.address, 10 * peak, seconds, messages))
    spent = {name: value - parts[name] for name, value in service.cpu_by_part().items()}
    sender, served = time.process_time() - own, sum(spent.values())
    after, _ = run(closed_loop(service.address, 8, seconds, messages))
    memory = service.memory_mb()  # in the state that it was in before
    answered, refused = len(found.answered), len(found.refused)
    alone = answered / served * at_peak / len(times)
    together = answered / (served + sender) * (at_peak + sender_at_peak) / len(times)
    return {
        "answered at 10 times the peak, of the peak": round(answered / found.seconds / ((peak + after) / 2), 3),
        "refusals, median and p99 ms": [round(percentile(found.refused, share), 1) for share in (50, 99)],
        "answered, refused, connections lost": [answered, refused, found.lost],
        "memory after it, MB more": round(memory - before),
        "processor seconds by part": {name: round(value, 2) for name, value in (spent | {"sender": sender}).items()},
        "answers per processor second, of the peak's": round(alone, 3),
        "the same with the sender's seconds": round(together, 3),
    }


def against_the_bare_loop(service: Service, given: argparse.Namespace, cores: int, data: list[bytes]) -> Rows:
    """The service between two bare loops, whose mean it is held against: the machine's own speed drifts."""

    def bare(processes: int = cores, threads: int = 1) -> tuple[float, float]:
        return raw_limit(given.bundle, given.engine, processes, given.seconds, threads)

    def costs() -> tuple[float, float]:
        return service.cpu_s(), service.metric("trifocal_images_total{")

    messages, many = [message(one) for one in data], [multipart([data[i % PICTURES] for i in range(32)])]
    raw = [bare()[0]]
    run(closed_loop(service.address, 8, 2, messages))
    begun = costs()
    rate, _ = run(closed_loop(service.address, 8, given.seconds, messages))
    spent, answered = (now - then for now, then in zip(costs(), begun, strict=True))
    raw.append(bare()[0])
    requests, _ = run(closed_loop(service.address, 1, given.seconds, many))
    raw.append(bare()[0])
    cost, alone, on_all = raw_cost(given.bundle, given.engine, 100), bare(1)[1], bare(1, cores)[1]
    _, times = run(closed_loop(service.address, 1, given.seconds, messages))
    alone, on_all = (alone + bare(1)[1]) / 2, (on_all + bare(1, cores)[1]) / 2
    usual = run(open_loop(service.address, 0.7 * rate, given.seconds, messages))
    return {
        "raw limit, pictures/s": round(statistics.mean(raw), 1),
        "8 clients against the raw limit": round(rate / statistics.mean(raw[:2]), 3),
        "the same in processor time": round(cost * answered / (1000 * spent), 3),
        "one request of 32 against the raw limit": round(32 * requests / statistics.mean(raw[1:]), 3),
        "bare loop on one core and on all, ms": [round(alone, 1), round(on_all, 1)],
        "a lone client's median over these, ms": [round(statistics.median(times) - one, 2) for one in (alone, on_all)],
        "p99 at 70 % of the peak, of the bare time": round(percentile(usual.answered, 99) / alone, 2),
        "refused at 70 % of the peak": len(usual.refused),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=2, help="of bare loop and service in turn")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    # The raw loop and the service's engine processes have one thread each; libraries must not add theirs.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    cores = len(os.sched_getaffinity(0))
    data = pictures()
    messages = [message(one) for one in data]
    rows: Rows = {"cores": cores, "engine": given.engine, "jpeg_kb": round(sum(map(len, data)) / PICTURES / 1000)}

    def record(name: str, value: Any) -> None:
        rows[name] = value
        print(f"{name:<44} {value}", flush=True)

    def in_turns(work: Callable[[], Rows]) -> None:
        turns = [work() for _ in range(given.rounds)]
        for name in turns[0]:
            record(name, [turn[name] for turn in turns])

    first = Service(given.bundle, given.engine)
    first.stop()
    service = Service(given.bundle, given.engine, "--log-format", "json")
    record("start to first answer, s", [round(one.started_s, 2) for one in (first, service)])
    time.sleep(3)  # the process for lone pictures starts
    before = service.cpu_s()
    time.sleep(12)
    record("one core's share when idle", round((service.cpu_s() - before) / 12, 4))
    record("memory when idle, MB", round(service.memory_mb()))
    in_turns(lambda: against_the_bare_loop(service, given, cores, data))
    in_turns(lambda: overload(service, given.seconds, messages))
    left: list[Rows] = []
    for _ in range(given.rounds):
        before, spent = service.metric("trifocal_batch_size_count"), service.cpu_by_part()["tri-engine"]
        answered = run(hang_up(service.address, 40, messages))
        time.sleep(2)
        spent = 1000 * (service.cpu_by_part()["tri-engine"] - spent)
        batches = round(service.metric("trifocal_batch_size_count") - before)
        left.append({"answered": answered, "for others": batches - answered, "engines' ms": round(spent)})
    record("batches for 40 clients that leave after 50 ms", left)
    service.stop()
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
