"""Inference speed of the engines on this machine, as ratios of ways that are timed in turn in one run.

    python benchmarks/engines.py engines   a three-task network: every engine and precision against eager float32 PyTorch
    python benchmarks/engines.py sharing   one network of three tasks against three networks of that backbone
    python benchmarks/engines.py presets   nano, light, base and the default network on every engine
    python benchmarks/engines.py nano --peer PYTHON   the light network against three nano networks of Ultralytics, which
                                           the interpreter PYTHON has installed (never this project's)
    python benchmarks/engines.py parts     where the time goes, per part of the network
    python benchmarks/engines.py start     seconds from process start to the first answer

Options: --size 320 --batch 1 --backbone resnet18 --rounds 15 --seconds 20 --decoder smp-unet (of the masks). Weights are random: only speed is measured.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import numpy as np
import torch
import yaml

from pipeline.bundle import Bundle, InputSpec, Manifest, read_bundle
from pipeline.data.shapes import draw_scene, read_shapes
from pipeline.export import quantize
from pipeline.export.folder import describe_file, finish, write_manifest, writing
from pipeline.export.graph import AnswerGraph
from pipeline.export.onnx import OPSET, export_onnx
from pipeline.export.torchscript import export_torchscript
from pipeline.imaging.geometry import FILL
from serving.engines.registry import load_engine, usable_specs
from tasks.multitask import MultiTaskModule

Given = argparse.Namespace
Ways = dict[str, Callable[[], Any]]
CONFIGS = Path(__file__).parent.parent / "configs" / "model"
FIELDS = {"labels": {"scene", "daytime"}, "boxes": {"objects"}, "mask": {"surface"}}
SMP_DECODER = {"surface": {"decoder": "smp-unet", "decoder_channels": [256, 128, 64, 32, 16]}}


def scenes(count: int, size: int) -> np.ndarray:
    return np.stack([draw_scene(0, number, size).image for number in range(count)])


def graph_of(backbone: str, heads: dict[str, Any] | None = None, fields: set[str] | None = None) -> AnswerGraph:
    """A network of random weights whose batch norms have seen a few scenes."""
    spaces = {k: s.to_dict() for k, s in read_shapes(images=10, size=64).spaces.items() if not fields or k in fields}
    kinds = {"classification": "labels", "detection": "boxes", "segmentation": "mask"}
    there = {*spaces, *(kind for kind, form in kinds.items() if FIELDS[form] & set(spaces))}
    # An option for a head that is not there would be a mistake.
    options = {name: value for name, value in (heads or {}).items() if name in there}
    torch.manual_seed(0)
    module = MultiTaskModule(backbone, spaces=spaces, heads=options or None, channels_last=False)
    with torch.no_grad():
        module.network.train()(torch.from_numpy(scenes(4, 128)).permute(0, 3, 1, 2))
    module.eval().requires_grad_(False)
    return AnswerGraph(module.network).eval()


def with_decoder(name: str | None) -> dict[str, Any] | None:
    """All heads of the shapes, the mask's with that decoder: heads that are not named would be left out."""
    every = {field: {} for fields in FIELDS.values() for field in fields}
    return every | {"surface": {"decoder": name}} if name else None


def preset(name: str) -> tuple[str, dict[str, Any]]:
    given = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["model"]["init_args"]
    return given["backbone"], given["heads"]


def bundle_of(graph: AnswerGraph, target: Path, size: int, int8: bool = True) -> Bundle:
    """The files of an export without its gate: random weights have no metrics."""
    manifest = Manifest("speed", InputSpec(size, size, FILL), graph.specs(), opset=OPSET)
    with writing(target) as part:
        export_onnx(graph, part / "model.onnx", manifest)
        export_torchscript(graph, part / "model.ts.pt", manifest.input.size)
        kinds = {"model.onnx": ("onnx", "fp32"), "model.ts.pt": ("torchscript", "fp32")}
        if int8:
            images, keep = scenes(16, size), quantize.float_layers(part / "model.onnx", 1)
            quantize.quantize_onnx(part / "model.onnx", part / "model.int8.onnx", images, keep)
            quantize.quantize_openvino(part / "model.onnx", part / "model.int8.xml", images, keep)
            kinds |= {"model.int8.onnx": ("onnx", "int8"), "model.int8.xml": ("openvino", "int8")}
            kinds |= {"model.int8.bin": ("openvino-weights", "int8")}
        files = {name: describe_file(part / name, *kind) for name, kind in kinds.items()}
        write_manifest(part, Manifest(**{**_fields(manifest), "files": files}))
        finish(part, target)
    return read_bundle(target)


def _fields(manifest: Manifest) -> dict[str, Any]:
    return {name: getattr(manifest, name) for name in manifest.__dataclass_fields__}


def engines_of(bundle: Bundle, images: np.ndarray) -> Ways:
    loaded = {spec: load_engine(bundle, spec) for spec in usable_specs(bundle)}
    for engine in loaded.values():
        engine.warm_up(len(images))
    return {spec: (lambda engine=engine: engine.infer(images)) for spec, engine in loaded.items()}


def eager_of(graph: AnswerGraph, images: np.ndarray) -> Callable[[], Any]:
    pixels = torch.from_numpy(images)

    def run() -> Any:
        with torch.inference_mode():
            return graph(pixels)

    return run


def timed(ways: Ways, given: Given) -> dict[str, float]:
    """Images a second of each way in turn, the second answer of each turn: median of `rounds`, within `seconds`."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for run in ways.values():
        run()
        run()
    started = time.perf_counter()
    for turn in range(given.rounds):
        for name, run in ways.items():
            run()  # the threads of the way before still spin for a while
            begun = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begun)
        if turn >= 4 and time.perf_counter() - started > given.seconds:
            break
    return {name: given.batch / statistics.median(values) for name, values in times.items()}


def table(found: dict[str, float], base: str) -> None:
    for name, value in found.items():
        sys.stdout.write(f"{name:44} {value:8.1f} images/s {1000 / value:8.2f} ms {value / found[base]:6.2f} x\n")


def engines(given: Given, folder: Path) -> None:
    graph = graph_of(given.backbone, with_decoder(given.decoder))
    images = scenes(given.batch, given.size)
    ways = {"eager float32": eager_of(graph, images)}
    table(timed(ways | engines_of(bundle_of(graph, folder / "b", given.size), images), given), "eager float32")


def sharing(given: Given, folder: Path) -> None:
    images = scenes(given.batch, given.size)
    heads = with_decoder(given.decoder)
    parts = {"three tasks in one": graph_of(given.backbone, heads)}
    parts |= {f"{name} alone": graph_of(given.backbone, heads, fields) for name, fields in FIELDS.items()}
    parts["mask alone, smp's default decoder"] = graph_of(given.backbone, SMP_DECODER, {"surface"})
    ways: Ways = {}
    for name, graph in parts.items():
        bundle = bundle_of(graph, folder / name.replace(" ", "_"), given.size)
        ways |= {f"{name}, {spec}": run for spec, run in engines_of(bundle, images).items() if "torch" not in spec}
    found = timed(ways, given)
    table(found, next(iter(found)))
    for spec in dict.fromkeys(name.rpartition(", ")[2] for name in found):
        one = 1 / found[f"three tasks in one, {spec}"]
        ours = sum(1 / found[f"{name} alone, {spec}"] for name in FIELDS)
        smp = ours - 1 / found[f"mask alone, {spec}"] + 1 / found[f"mask alone, smp's default decoder, {spec}"]
        sys.stdout.write(
            f"{spec:20} three networks / one: {ours / one:.2f}; with smp's default decoder {smp / one:.2f}\n"
        )


def presets(given: Given, folder: Path) -> None:
    images = scenes(given.batch, given.size)
    ways: Ways = {}
    for name in ("nano", "light", "base", "default"):
        graph = graph_of("resnet18") if name == "default" else graph_of(*preset(name))
        bundle = bundle_of(graph, folder / name, given.size)
        ways |= {f"{name}, {spec}": run for spec, run in engines_of(bundle, images).items() if "torch" not in spec}
    table(timed(ways, given), "default, onnxruntime:fp32")


PEER = """
import sys, os
from ultralytics import YOLO
for name in ("yolo11n-cls.yaml", "yolo11n.yaml", "yolo26n-sem.yaml"):
    try:
        model = YOLO(name)
    except FileNotFoundError:  # a release without it
        name = "yolo11n-seg.yaml"; model = YOLO(name)
    path = model.export(format="onnx", imgsz=int(sys.argv[1]), batch=int(sys.argv[2]), simplify=True)
    print("ONNX", os.path.abspath(path))
"""


def nano(given: Given, folder: Path) -> None:
    """Their ONNX files, random weights, on the same ONNX Runtime and OpenVINO as ours."""
    import onnxruntime as ort
    import openvino

    command = [given.peer, "-c", PEER, str(given.size), str(given.batch)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    files = [Path(line.split(" ", 1)[1]) for line in done.stdout.splitlines() if line.startswith("ONNX ")]
    graph = graph_of(*preset("light"))
    ours = engines_of(bundle_of(graph, folder / "b", given.size), scenes(given.batch, given.size))
    ways: Ways = {f"light, {spec}": run for spec, run in ours.items() if "torch" not in spec}
    threads = torch.get_num_threads()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    core = openvino.Core()
    for file in files:
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        entry = session.get_inputs()[0]
        pixels = np.random.default_rng(0).random(entry.shape, np.float32)
        ways[f"{file.stem}, onnxruntime:fp32"] = lambda s=session, n=entry.name, x=pixels: s.run(None, {n: x})
        for name, hint in (("fp32", "f32"), ("bf16", "bf16")):
            settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint, "NUM_STREAMS": 1}
            request = core.compile_model(str(file), "CPU", settings).create_infer_request()
            ways[f"{file.stem}, openvino:{name}"] = lambda r=request, x=pixels: r.infer([x])
    found = timed(ways, given)
    table(found, "light, onnxruntime:fp32")
    for spec in ("onnxruntime:fp32", "openvino:fp32", "openvino:bf16"):
        theirs = sum(1 / found[f"{file.stem}, {spec}"] for file in files)
        sys.stdout.write(f"{spec:20} three nano networks / light: {theirs * found[f'light, {spec}']:.2f}\n")
    best = sum(min(1 / v for n, v in found.items() if n.startswith(f"{file.stem},")) for file in files)
    mine = min(1 / v for n, v in found.items() if n.startswith("light,"))
    sys.stdout.write(f"{'best of each':20} three nano networks / light: {best / mine:.2f}\n")


def parts(given: Given, folder: Path) -> None:
    """Eager float32, by hooks on the backbone's stages and the heads' parts."""
    for name in ("default", "light"):
        graph = graph_of("resnet18") if name == "default" else graph_of(*preset(name))
        seconds = time_parts(graph, given)
        total = statistics.median(seconds.pop(""))
        sys.stdout.write(f"{name}: {1000 * total:.1f} ms\n")
        for part, values in seconds.items():
            own = statistics.median(values[2:])
            sys.stdout.write(f"  {part:32} {1000 * own:7.2f} ms {100 * own / total:5.1f} %\n")


def time_parts(graph: AnswerGraph, given: Given) -> dict[str, list[float]]:
    """Seconds of each call, by part; the whole under the empty name."""
    seconds: dict[str, list[float]] = {"": []}
    begun: dict[str, float] = {}
    network = graph.network
    watched = dict(zip(network.backbone.stage_names, network.backbone.stages(), strict=True))
    for head, module in network.named_heads().items():
        watched |= {f"{head}.{part}": child for part, child in module.named_children() if list(child.parameters())}

    def before(part: str) -> None:
        begun[part] = time.perf_counter()

    def after(part: str) -> None:
        seconds.setdefault(part, []).append(time.perf_counter() - begun[part])

    for part, module in watched.items():
        module.register_forward_pre_hook(lambda *_, part=part: before(part))
        module.register_forward_hook(lambda *_, part=part: after(part))
    run = eager_of(graph, scenes(given.batch, given.size))
    for turn in range(given.rounds + 2):
        before("")
        run()
        if turn > 1:
            after("")
    return seconds


START = """
import sys, time
import numpy as np
from pathlib import Path
from serving.predictor import Predictor
predictor = Predictor.load(Path(sys.argv[1]), sys.argv[2])
predictor.predict([Path(sys.argv[3]).read_bytes()])
"""


def start(given: Given, folder: Path) -> None:
    """A fresh process each time: import, load, decode one JPEG, answer."""
    from PIL import Image

    bundle = bundle_of(graph_of(given.backbone), folder / "b", given.size)
    picture = folder / "a.jpg"
    Image.fromarray(draw_scene(0, 0, 640).image[:480]).save(picture, quality=90)
    specs = [spec for spec in usable_specs(bundle) if "torch" not in spec]
    seconds: dict[str, list[float]] = {spec: [] for spec in specs}
    for _ in range(4):
        for spec in specs:
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-c", START, str(bundle.path), spec, str(picture)], check=True)
            seconds[spec].append(time.perf_counter() - begun)
    for spec, values in seconds.items():
        sys.stdout.write(f"{spec:20} {statistics.median(values[1:]):.2f} s from process start to the first answer\n")


def main() -> None:
    ways = {f.__name__: f for f in (engines, sharing, presets, nano, parts, start)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=list(ways))
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--decoder", help="of the mask, for `engines` and `sharing`: smp-unet")
    parser.add_argument("--peer", help="a Python interpreter that has Ultralytics")
    given = parser.parse_args()
    if given.what == "nano" and not given.peer:
        parser.error("nano needs --peer: the Python of an environment of its own with `pip install ultralytics onnx`")
    with tempfile.TemporaryDirectory() as folder:
        ways[given.what](given, Path(folder))


if __name__ == "__main__":
    main()
