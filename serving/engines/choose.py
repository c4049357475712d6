"""`--engine auto`: measures what is installed on this machine with this bundle, and picks the fastest that passes."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipeline.bundle import Bundle
from pipeline.errors import EngineError
from serving.engines.base import Engine, grey
from serving.engines.compare import precision_of, read_selftest, selftest
from serving.engines.registry import load_engine, usable_cores, usable_specs


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen and why.

    Attributes:
        spec: `name:variant`.
        milliseconds: per image and call, of every engine that was measured.
        left_out: why each other one was not taken.
        cached: whether an earlier measurement of this machine and bundle was used.
    """

    spec: str
    milliseconds: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    cached: bool = False

    def describe(self) -> str:
        """One line for people."""
        if not self.milliseconds:
            return f"engine {self.spec}"
        figures = ", ".join(f"{spec} {ms:.1f} ms" for spec, ms in sorted(self.milliseconds.items(), key=lambda x: x[1]))
        left = "".join(f"; {spec} left out: {reason}" for spec, reason in self.left_out.items())
        return f"engine {self.spec} ({'measured earlier' if self.cached else 'measured now'}: {figures}{left})"


def choose(
    bundle: Bundle, threads: int | None = None, streams: int = 1, seconds: float = 0.3, cache: Path | None = None
) -> tuple[Choice, Engine]:
    """The fastest engine whose answers pass, loaded.

    An engine of reduced precision is taken only where export measured its metrics and they passed; every engine must
    pass the bundle's self-test here.

    Args:
        bundle: the network.
        threads: as `load_engine`.
        streams: as `load_engine`.
        seconds: time to measure each engine.
        cache: file that keeps the choice by machine and bundle; None takes the user's cache folder.

    Raises:
        EngineError: none of the engines passes.
    """
    cache = cache or default_cache()
    key = machine_key(bundle, threads, streams)
    known = _recall(cache, key)
    if known is not None and known.spec in usable_specs(bundle):
        with suppress(EngineError):  # it no longer runs here: the others are measured anew
            return known, load_engine(bundle, known.spec, threads, streams)
    figures: dict[str, float] = {}
    left: dict[str, str] = {}
    for spec in usable_specs(bundle):
        reason = _unproven(bundle, spec)
        if reason is None:
            try:
                engine = load_engine(bundle, spec, threads, streams)
                failures = selftest(bundle, engine)
                reason = f"self-test: {failures[0]}" if failures else None
                if reason is None:
                    figures[spec] = measure(engine, bundle, seconds)
            except EngineError as error:
                reason = str(error)
        if reason is not None:
            left[spec] = reason
    if not figures:
        told = "; ".join(f"{spec}: {reason}" for spec, reason in left.items())
        raise EngineError(f"no engine answers bundle {bundle.path} rightly on this machine ({told})")
    chosen = Choice(min(figures, key=lambda spec: figures[spec]), figures, left)
    _remember(cache, key, chosen)
    return chosen, load_engine(bundle, chosen.spec, threads, streams)


def _unproven(bundle: Bundle, spec: str) -> str | None:
    """Why an engine may not be chosen before it was even tried: what export found, or did not measure."""
    check = bundle.manifest.checks.get(spec)
    if check is not None and not check.get("passed", False):
        return "its metrics did not pass at export"
    if check is None and precision_of(spec) != "fp32":
        return "its metrics were not measured at export"
    return None


def measure(engine: Engine, bundle: Bundle, seconds: float, batch: int = 1) -> float:
    """Milliseconds per image of one caller, the best of the calls in `seconds` (at least three)."""
    images = grey(batch, bundle.manifest.input.size)
    known = read_selftest(bundle)
    if known is not None:
        images = known[0][[i % len(known[0]) for i in range(batch)]]
    engine.warm_up(batch)
    best, calls, started = float("inf"), 0, time.perf_counter()
    while calls < 3 or time.perf_counter() - started < seconds:
        begun = time.perf_counter()
        engine.infer(images)
        best, calls = min(best, time.perf_counter() - begun), calls + 1
    return round(best / batch * 1000, 3)


def machine_key(bundle: Bundle, threads: int | None, streams: int) -> str:
    """Changes when the processor, a GPU, the cores, an engine's version, the bundle or the wanted heads change."""
    from importlib import metadata  # only where an engine is chosen: it takes two megabytes

    versions = []
    for package in ("onnxruntime", "onnxruntime-gpu", "openvino", "torch"):
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    files = sorted((name, file.sha256) for name, file in bundle.manifest.files.items())
    specs = sorted((spec, _unproven(bundle, spec)) for spec in usable_specs(bundle))
    parts = (_processor(), _gpus(), usable_cores(), threads, streams, versions, files, specs, bundle.outputs)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _processor() -> str:
    words = ("model name", "flags", "cpu family", "model", "CPU part", "CPU implementer", "Features")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return " ".join([platform.machine(), *(line for line in lines[:40] if line.startswith(words))])


def _gpus() -> list[str]:
    """NVIDIA's models in this machine, as its driver names them."""
    try:
        files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        return [line for file in files for line in file.read_text().splitlines() if line.startswith("Model")]
    except OSError:
        return []


def default_cache() -> Path:
    """`engines.json` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "trifocal" / "engines.json"


def _recall(cache: Path, key: str) -> Choice | None:
    try:
        entry = json.loads(cache.read_text())[key]
        figures = {str(spec): float(value) for spec, value in entry["milliseconds"].items()}
        left = {str(spec): str(reason) for spec, reason in entry["left_out"].items()}
        return Choice(str(entry["spec"]), figures, left, cached=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _remember(cache: Path, key: str, choice: Choice) -> None:
    """Adds a choice to the cache; a folder that cannot be written costs only the next start some time."""
    try:
        known = json.loads(cache.read_text())
    except (OSError, ValueError):
        known = {}
    part = cache.with_name(f"{cache.name}.{os.getpid()}.part")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({**(known if isinstance(known, dict) else {}), key: asdict(choice)}, indent=1))
        part.replace(cache)
    except OSError:
        return


def open_engine(
    bundle: Bundle, spec: str = "auto", threads: int | None = None, streams: int = 1
) -> tuple[Choice, Engine]:
    """The engine of `--engine`: chosen by measuring where `auto`, else the one that is named.

    Raises:
        EngineError, BundleError: as `load_engine` and `choose`.
    """
    if spec == "auto":
        return choose(bundle, threads, streams)
    engine = load_engine(bundle, spec, threads, streams)
    return Choice(engine.report().spec), engine
