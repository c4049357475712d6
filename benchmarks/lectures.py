"""The lectures' experiments: trains and tests every variant by the ordinary command, and writes the tables of docs/lectures.md.

    python benchmarks/lectures.py              all of them; a stopped run goes on where it stopped
    python benchmarks/lectures.py depth skips  these
    python benchmarks/lectures.py --list       the commands, without running any

Options: --out outputs/lectures (runs and results), --docs docs (lectures.md and lectures.json), --limit N (batches an epoch).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shlex
import shutil
import statistics
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from lectures_table import EXPERIMENTS, Experiment, Variant

ROOT = Path(__file__).resolve().parents[1]
TEST = {"images": 5000, "seed": 1000}
"""What all variants are tested on: the test tenth of scenes that none was trained on."""

QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")


# --- what is run ------------------------------------------------------------------------------------------------------


def config_of(experiment: Experiment) -> Path:
    return ROOT / "configs" / "lectures" / f"{experiment.name}.yaml"


def seeds_of(experiment: Experiment, seed: int) -> tuple[str, ...]:
    """Options by which a seed sets the weights, the order and the training pictures."""
    kind = "signals" if experiment.name == "signals" else "shapes"
    return (f"--seed_everything={seed}", f"--data.seed={seed}", f"--data.{kind}.seed={seed}")


def given_of(experiment: Experiment, variant: Variant, seed: int, limit: int | None = None) -> str:
    """What a result stands for: changes with the config's values and the options."""
    config = yaml.safe_load(config_of(experiment).read_text())
    said = [config, variant.options, variant.after, seed, TEST, limit]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


def key_of(experiment: Experiment, variant: Variant, seed: int) -> str:
    return f"{experiment.name}/{variant.name}/{seed}"


def folder_of(out: Path, experiment: Experiment, variant: Variant, seed: int) -> Path:
    words = "".join(letter if letter.isalnum() else "-" for letter in variant.name)
    return out / experiment.name / f"{words}-{seed}"


def checkpoint_of(out: Path, experiment: Experiment, variant: Variant, seed: int) -> Path | None:
    """What its training left."""
    return next(folder_of(out, experiment, variant, seed).glob("runs/*/last.ckpt"), None)


def command_of(experiment: Experiment, variant: Variant, seed: int, start: Path | None = None) -> list[str]:
    """Arguments of `lightning`; `start` stands for `{start}` in the options."""
    options = [option if start is None else option.replace("{start}", str(start)) for option in variant.options]
    return ["fit", "--config", str(config_of(experiment)), *options, *seeds_of(experiment, seed)]


def is_done(results: dict[str, Any], out: Path, place: tuple[Experiment, Variant, int], limit: int | None) -> bool:
    """Whether a variant has its figures, and its checkpoint where others go on from it."""
    experiment, variant, _ = place
    if results["runs"].get(key_of(*place), {}).get("given") != given_of(*place, limit):
        return False
    wanted = any(other.after == variant.name for other in experiment.variants)
    return not wanted or checkpoint_of(out, *place) is not None


def measure(experiment: Experiment, variant: Variant, seed: int, out: Path, limit: int | None) -> dict[str, Any]:
    """Trains and tests one variant; its figures."""
    from pipeline.cli_options import head_options
    from pipeline.cli_train import run

    folder = folder_of(out, experiment, variant, seed)
    shutil.rmtree(folder, ignore_errors=True)
    before = next((other for other in experiment.variants if other.name == variant.after), None)
    start = None if before is None else checkpoint_of(out, experiment, before, seed)
    words = [*command_of(experiment, variant, seed, start), *QUIET, f"--trainer.default_root_dir={folder}"]
    if limit is not None:
        words += [f"--trainer.limit_{stage}_batches={limit}" for stage in ("train", "val", "test")]
        words += ["--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"]
    stands_for = given_of(experiment, variant, seed, limit)
    begun, clock = time.process_time(), time.monotonic()
    cli: Any = run(head_options(words))
    head, _, figure = (variant.metric or experiment.metric).partition("/")
    loss = float(cli.trainer.callback_metrics[f"train/{head}/loss"])
    settings = json.dumps(cli.datamodule.settings)
    (tested,) = cli.trainer.test(cli.model, datamodule=test_scenes(settings), verbose=False)
    if not any(other.after == variant.name for other in experiment.variants):
        shutil.rmtree(folder / "runs")  # checkpoints that no other goes on from: two gigabytes together
    return {
        "given": stands_for,
        "metric": figure,
        "value": float(tested[f"test/{head}/{figure}"]),
        "train_loss": loss,
        **costs(cli.model),
        "processor_seconds": round(time.process_time() - begun, 1),
        "seconds": round(time.monotonic() - clock, 1),
    }


@lru_cache(maxsize=4)
def test_scenes(settings: str) -> Any:
    """Data of the same kind, of another seed and more of it."""
    from pipeline.data.module import VisionData

    given = json.loads(settings)
    kind = "signals" if given["signals"] else "shapes"
    return VisionData.from_settings(given, **{kind: {**given[kind], **TEST}, "augment": "none"})


def costs(module: Any, batch: int = 16, passes: int = 12) -> dict[str, float]:
    """Parameters, multiply-adds of one image, and processor milliseconds an image in batches of 16, the least of the passes."""
    import torch

    from pipeline.inspect.layers import list_layers

    network = module.network.eval()
    channels, size = network.in_channels, network.size
    listing = list_layers(network, channels, size)
    images = torch.zeros(batch, channels, *size).to(memory_format=torch.channels_last)
    times = []
    with torch.inference_mode():
        for _ in range(passes):
            begun = time.process_time()
            network(images)
            times.append(time.process_time() - begun)
    return {
        "parameters": listing.parameters,
        "multiply_adds": listing.multiply_adds,
        "ms": round(1000 * min(times) / batch, 4),
    }


def machine() -> dict[str, str]:
    """Where the figures come from."""
    from importlib.metadata import version

    import torch

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor()
    return {
        "processor": f"{model}, {torch.get_num_threads()} thread(s)",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning")),
        "python": platform.python_version(),
    }


# --- what is told -----------------------------------------------------------------------------------------------------


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {"machine": {}, "runs": {}}


def save(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def to_json(results: dict[str, Any]) -> str:
    return json.dumps(results, indent=1) + "\n"


def spread(values: list[float], digits: int) -> str:
    """A mean, with the standard deviation where there are several."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def table(experiment: Experiment, results: dict[str, Any]) -> str:
    """An experiment as a table; variants that were not run yet are left out."""
    rows = []
    for variant in experiment.variants:
        keys = [key_of(experiment, variant, seed) for seed in experiment.seeds]
        runs = [results["runs"][key] for key in keys if key in results["runs"]]
        if not runs:
            continue
        first = runs[0]
        name = first["metric"] if variant.metric is None else f"{first['metric']} of its own task"
        cells = [
            variant.name,
            f"{spread([run['value'] for run in runs], 3)}{'' if variant.metric is None else f' ({name})'}",
            spread([run["train_loss"] for run in runs], 3),
            f"{first['parameters']:,}",
            f"{first['multiply_adds'] / 1e6:.3g} M",
            f"{statistics.median(run['ms'] for run in runs):.3g}",
            " ".join(f"`{option}`" for option in variant.options),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    figure = experiment.metric.partition("/")[2]
    header = f"| variant | {figure} | training loss | parameters | multiply-adds | ms | options |\n|---|---|---|---|---|---|---|"
    return "\n".join([header, *rows])


def summary(results: dict[str, Any]) -> str:
    """Where and how long."""
    runs = results["runs"].values()
    minutes = sum(run["processor_seconds"] for run in runs) / 60
    told = results["machine"]
    return (
        f"{len(runs)} runs, {minutes:.0f} processor minutes together, on {told.get('processor', '?')};"
        f" {told.get('versions', '?')}, Python {told.get('python', '?')}."
    )


def rendered(document: str, results: dict[str, Any]) -> str:
    """The document with every generated part anew; the parts stand between `<!-- NAME -->` and `<!-- end -->`."""
    parts = {"summary": summary(results)} | {e.name: table(e, results) for e in EXPERIMENTS}
    for name, text in parts.items():
        before, begin, rest = document.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not begin or not end:
            raise SystemExit(f"the document has no part <!-- {name} --> ... <!-- end -->")
        document = f"{before}{begin}{text}\n{end}{after}"
    return document


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [experiment.name for experiment in EXPERIMENTS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(known)}; none = all")
    parser.add_argument("--out", type=Path, default=Path("outputs/lectures"))
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    parser.add_argument("--limit", type=int, help="one epoch of so many batches, to see that all runs")
    parser.add_argument("--list", action="store_true", help="print the commands")
    given = parser.parse_args(argv)
    for name in given.names:
        if name not in known:
            parser.error(f"unknown experiment {name!r}; there are {', '.join(known)}")
    chosen = [experiment for experiment in EXPERIMENTS if not given.names or experiment.name in given.names]
    # Every experiment once before any twice: a stopped run has told of all.
    work = [(e, v, seed) for seed in range(9) for e in chosen if seed in e.seeds for v in e.variants]
    if given.list:
        for place in work:
            sys.stdout.write(f"lightning {shlex.join(command_of(*place))}\n".replace(f"{ROOT}/", ""))
        return 0
    out, file = given.out.absolute(), given.out.absolute() / "results.json"
    results = load(file)
    for number, place in enumerate(work, 1):
        key = key_of(*place)
        if not is_done(results, out, place, given.limit):
            found = measure(*place, out, given.limit)
            results = {"machine": machine(), "runs": {**results["runs"], key: found}}
            save(file, to_json(results))
        told = results["runs"][key]
        sys.stdout.write(
            f"[{number}/{len(work)}] {key}: {told['metric']} {told['value']:.3f}, {told['seconds']:.0f} s\n"
        )
        sys.stdout.flush()
    known_keys = [key_of(e, v, seed) for e in EXPERIMENTS for seed in e.seeds for v in e.variants]
    results = {**results, "runs": {key: results["runs"][key] for key in known_keys if key in results["runs"]}}
    document = given.docs / "lectures.md"
    save(document, rendered(document.read_text(encoding="utf-8"), results))
    save(given.docs / "lectures.json", to_json(results))
    return 0


if __name__ == "__main__":
    from pipeline.cli import ALLOCATOR

    if sys.platform == "linux" and "TRIFOCAL_TUNED" not in os.environ:  # as the command does, for speed
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})
    sys.exit(main())
