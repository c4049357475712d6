"""`lightning batch-predict` against the raw limit, whole decoding, its own memory, kills, and another project's command.

    python benchmarks/batch.py speed    images/s against decode + letterbox + engine on the same threads, 1,000 JPEGs
    python benchmarks/batch.py photos   12-megapixel photographs (--images 40) against decoding them whole
    python benchmarks/batch.py memory   peak memory for 10,000 files against 1,000
    python benchmarks/batch.py kills    ten kills at random moments against an unbroken run, byte by byte
    python benchmarks/batch.py peer --peer PYTHON   the whole command against `yolo predict` on an ONNX model of the same
                                        input size, which the interpreter PYTHON has installed (never this project's)

Options: --model BUNDLE (a network of random weights is made where it is missing) --preset light --size 320 --images 1000
--engine onnxruntime --rounds 3. Ways are timed in turn within one run; ratios of medians are printed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import cv2
import numpy as np
from batch_photos import decoders, make_photos, straightforward
from PIL import Image

from pipeline.bundle import read_bundle
from serving.batch.run import BatchRun
from serving.batch.settings import Settings
from serving.engines.registry import usable_cores
from serving.predictor import Predictor

ROOT = Path(__file__).parent.parent
Given = argparse.Namespace


def make_model(target: Path, given: Given) -> Path:
    """A bundle of random weights, made in a process of its own: torch would stay in this one."""
    boxes_only = given.measure == "peer"  # as the peer's model; with int8, which the light network gains from
    graph = f"engines.graph_of(*engines.preset({given.preset!r}), fields={{'objects'}} if {boxes_only} else None)"
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'benchmarks'); import engines;"
        f"engines.bundle_of({graph}, Path({str(target)!r}), {given.size}, int8={boxes_only})"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    return target


def make_images(folder: Path, count: int, size: tuple[int, int] = (480, 640)) -> Path:
    """JPEGs of scenes; beyond the first 200 they are hard links, which reading cannot tell."""
    from pipeline.data.shapes import draw_scene

    folder.mkdir(parents=True)
    for number in range(count):
        path = folder / f"{number:06d}.jpg"
        if number >= 200:
            os.link(folder / f"{number % 200:06d}.jpg", path)
            continue
        scene = draw_scene(0, number, 640).image[:480]
        noise = np.random.default_rng(number).integers(-8, 8, scene.shape)
        picture = Image.fromarray(np.clip(scene.astype(np.int16) + noise, 0, 255).astype(np.uint8))
        picture.resize(size[::-1]).save(path, quality=90)
    return folder


def command(source: Path, model: Path, out: Path, given: Given, *more: str) -> list[str]:
    """The command in a fresh process."""
    shutil.rmtree(out, ignore_errors=True)
    options = ["--model", str(model), "--out", str(out), "--engine", given.engine, *more]
    return [sys.executable, "-m", "pipeline.cli", "batch-predict", str(source), *options]


def ours(source: Path, model: Path, out: Path, given: Given) -> dict[str, Any]:
    """One run in this process; returns its summary."""
    shutil.rmtree(out, ignore_errors=True)
    settings = Settings(str(source), str(model), out, engine=given.engine, batch=given.batch, masks=not given.no_masks)
    return BatchRun(settings, read_bundle(model), [].append).run()


def raw_limit(paths: list[Path], predictor: Predictor, batch: int) -> None:
    """Reads, decodes, letterboxes and infers on every core, and keeps nothing: what no pipeline can beat."""

    def work(at: int) -> None:
        ready = [predictor.decode(path.read_bytes()) for path in paths[at : at + batch]]
        predictor.infer(np.stack([image.pixels for image in ready]))

    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(work, range(0, len(paths), batch)))


def seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """Elapsed and processor seconds, those of finished child processes included."""
    started, before = time.perf_counter(), os.times()
    work()
    after = os.times()
    return time.perf_counter() - started, sum(after[:4]) - sum(before[:4])


def in_turn(ways: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of each way, elapsed and of the processor; one round warms up.

    On a machine that others use too, processor seconds tell more than elapsed ones.
    """
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, work in ways.items():
            took = seconds(work)
            if number:
                spent[name].append(took)
    elapsed, busy = ({n: round(statistics.median(v[at] for v in s), 3) for n, s in spent.items()} for at in (0, 1))
    return elapsed, busy


def speed(given: Given, work: Path, model: Path) -> dict[str, Any]:
    """Images a second of a whole run (list, answer, assemble, report) against the raw limit."""
    source = make_images(work / "in", given.images)
    paths = sorted(source.iterdir())
    predictor = Predictor.load(model, given.engine, streams=usable_cores())
    predictor.engine.warm_up(given.batch)
    summaries: list[dict[str, Any]] = []
    found, busy = in_turn(
        {
            "raw": lambda: raw_limit(paths, predictor, given.batch),
            "ours": lambda: summaries.append(ours(source, model, work / "out", given)),
        },
        given.rounds,
    )
    return {
        "raw_images_per_second": round(given.images / found["raw"], 1),
        "ours_images_per_second": round(given.images / found["ours"], 1),
        "ratio": round(found["raw"] / found["ours"], 3),
        "processor_ratio": round(busy["raw"] / busy["ours"], 3),
        "engine": summaries[-1]["engine"],
        "stages": summaries[-1]["timing"]["images_per_second_by_stage"],
    }


def photos(given: Given, work: Path, model: Path) -> dict[str, Any]:
    """Twelve megapixels: the command against loops that decode every pixel, without and with the masks' answers."""
    paths = make_photos(work / "in", given.images)
    predictor = Predictor.load(model, given.engine, streams=usable_cores())
    predictor.engine.warm_up(given.batch)
    some = [path.read_bytes() for path in paths[:8]]
    _, decoding = in_turn(
        {name: lambda d=decode: [d(data) for data in some] for name, decode in decoders(predictor).items()},
        given.rounds,
    )
    found, busy = in_turn(
        {
            "whole, nothing kept": lambda: straightforward(paths, predictor, given.batch, answered=False),
            "whole, masks answered": lambda: straightforward(paths, predictor, given.batch, answered=True),
            "ours": lambda: ours(work / "in", model, work / "out", given),
        },
        given.rounds,
    )
    return {
        "images": len(paths),
        "engine": predictor.engine.report().spec,
        "processor_seconds_to_input": {name: round(taken / len(some), 4) for name, taken in decoding.items()},
        "to_input_against": {name: round(taken / decoding["ours"], 2) for name, taken in decoding.items()},
        "seconds": found,
        "ratio": {name: round(taken / found["ours"], 2) for name, taken in found.items()},
        "processor_ratio": {name: round(taken / busy["ours"], 2) for name, taken in busy.items()},
    }


def peak_mib(arguments: list[str]) -> float:
    """Peak memory of a process."""
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{arguments} ended with {status}")
    return usage.ru_maxrss / 1024


def memory(given: Given, work: Path, model: Path) -> dict[str, Any]:
    """Peak memory of the command for ten times the files."""
    peaks = {}
    for count in (given.images, 10 * given.images):
        source = make_images(work / f"in{count}", count, (240, 320))
        peaks[count] = round(peak_mib(command(source, model, work / "out", given)), 1)
    few, many = peaks.values()
    return {"mib": peaks, "ratio": round(many / few, 3)}


def digest(out: Path) -> str:
    """Of all final files but the times."""
    state = hashlib.sha256()
    for path in sorted(p for p in out.rglob("*") if p.is_file() and ".batch" not in p.parts):
        data = path.read_bytes()
        if path.name == "summary.json":
            data = json.dumps({k: v for k, v in json.loads(data).items() if k != "timing"}).encode()
        state.update(str(path.relative_to(out)).encode() + hashlib.sha256(data).digest())
    return state.hexdigest()


def kills(given: Given, work: Path, model: Path) -> dict[str, Any]:
    """Ten times kill -9 at a random moment of what an unbroken run takes, then on to the end."""
    source = make_images(work / "in", given.images)
    options = ("--part", "32", "--overlay", "--format", "coco,csv,jsonl,yolo,masks")
    whole = command(source, model, work / "unbroken", given, *options)
    took, _ = seconds(lambda: subprocess.run(whole, cwd=ROOT, check=True, capture_output=True))
    again = command(source, model, work / "killed", given, *options)
    rng, killed, tries = random.Random(0), 0, 0
    while killed < 10 and tries < 40:
        process = subprocess.Popen(again, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(rng.uniform(0.05, 0.25) * took)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        else:
            shutil.rmtree(work / "killed")  # it was finished; begin again
        tries += 1
    subprocess.run(again, cwd=ROOT, check=True, capture_output=True)
    return {"kills": killed, "same_bytes": digest(work / "killed") == digest(work / "unbroken")}


def peer(given: Given, work: Path, model: Path) -> dict[str, Any]:
    """Whole processes on the same folder: each project's command with its defaults, a detection network of its own.

    Ours is the light network with its detection head alone, on --engine; theirs is the smallest of its family, exported to
    ONNX by its own command. Weights are random.
    """
    source = make_images(work / "in", given.images)
    make = f"from ultralytics import YOLO; YOLO('yolo11n.yaml').export(format='onnx', imgsz={given.size})"
    apart = {**os.environ, "YOLO_CONFIG_DIR": str(work), "YOLO_OFFLINE": "true"}
    subprocess.run([given.peer, "-c", make], cwd=work, env=apart, check=True, capture_output=True)
    theirs = [given.peer, "-c", "from ultralytics.cfg import entrypoint; entrypoint()", "predict", "task=detect"]
    theirs += [f"model={work / 'yolo11n.onnx'}", f"source={source}", f"imgsz={given.size}", "device=cpu", "save=False"]
    theirs += ["save_txt=True", f"project={work}", "exist_ok=True", "verbose=False"]
    found, busy = in_turn(
        {
            "ours": lambda: subprocess.run(
                command(source, model, work / "out", given, "--format", "yolo"),
                cwd=ROOT,
                check=True,
                capture_output=True,
            ),
            "theirs": lambda: subprocess.run(theirs, cwd=work, env=apart, check=True, capture_output=True),
        },
        given.rounds,
    )
    return {
        "engine": given.engine,
        "seconds": found,
        "processor_seconds": busy,
        "ratio": round(found["theirs"] / found["ours"], 2),
        "processor_ratio": round(busy["theirs"] / busy["ours"], 2),
    }


MEASURES = {"speed": speed, "photos": photos, "memory": memory, "kills": kills, "peer": peer}


def main() -> None:
    cv2.setNumThreads(1)  # as the command does
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--preset", default="light")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-masks", action="store_true", help="speed and photos: without masks at full size")
    parser.add_argument("--peer", help="an interpreter with ultralytics")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="batch-") as folder:
        work = Path(folder)
        model = (given.model or make_model(work / "model", given)).resolve()
        print(
            json.dumps({given.measure: MEASURES[given.measure](given, work, model), "load": os.getloadavg()}, indent=1)
        )


if __name__ == "__main__":
    main()
