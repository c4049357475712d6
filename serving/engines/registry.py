"""Every engine by name: one entry for each file, and how `--engine` words become a loaded one."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from pipeline.bundle import Bundle
from pipeline.errors import EngineError, nearest
from serving.engines.base import Engine, first_line

ENGINES = ("onnxruntime", "openvino", "torchscript")
"""Names of the engines; each is a module of this package with NAME, VARIANTS, INSTALL, `available`, `file_of` and `load`."""


def engine_module(name: str) -> Any:
    """The module of an engine; raises EngineError for an unknown name."""
    if name in ENGINES:
        return importlib.import_module(f"serving.engines.{name}")
    meant = [f"{engine}:{name}" for engine in ENGINES if name in engine_module(engine).VARIANTS]
    hint = f"; did you mean {' or '.join(map(repr, meant))}?" if meant else nearest(name, ENGINES)
    raise EngineError(f"unknown engine {name!r}{hint}")


def split_spec(spec: str) -> tuple[str, str]:
    """`name` or `name:variant` as both; the first variant stands for none. Raises EngineError."""
    name, _, variant = spec.partition(":")
    module = engine_module(name)
    variant = variant or module.VARIANTS[0]
    if variant not in module.VARIANTS:
        raise EngineError(f"engine {name} has no variant {variant!r}{nearest(variant, module.VARIANTS)}")
    return name, variant


def load_engine(bundle: Bundle, spec: str, threads: int | None = None, streams: int = 1) -> Engine:
    """A loaded engine.

    Args:
        bundle: the network.
        spec: `name` or `name:variant`.
        threads: threads of one call; None shares the cores this process may use among the streams.
        streams: calls that will run side by side.

    Raises:
        EngineError: unknown, not installed (says what to install), or no GPU.
        BundleError: a file that was altered.
    """
    name, variant = split_spec(spec)
    module = engine_module(name)
    reason = _unavailable(module, variant)
    if reason is not None:
        raise EngineError(f"engine {name}:{variant}: {reason}")
    try:
        engine: Engine = module.load(bundle, variant, threads or max(1, usable_cores() // streams), streams)
    except (ImportError, OSError) as error:
        raise EngineError(f"engine {name}:{variant}: {_broken(module, error)}") from error
    return engine


def _unavailable(module: Any, variant: str) -> str | None:
    """Why an engine's variant cannot run here, as the engine says; also where its package is there but broken."""
    try:
        reason: str | None = module.available(variant)
    except (ImportError, OSError) as error:
        return _broken(module, error)
    return reason


def _broken(module: Any, error: Exception) -> str:
    return f"its package is installed but cannot be imported ({first_line(error)}): {module.INSTALL}"


def usable_specs(bundle: Bundle) -> list[str]:
    """`name:variant` of everything that is installed here and that the bundle has a file for."""
    found = []
    for name in ENGINES:
        module = engine_module(name)
        found += [
            f"{name}:{v}" for v in module.VARIANTS if module.file_of(bundle, v) and _unavailable(module, v) is None
        ]
    return found


def usable_cores() -> int:
    """Cores this process may use: its affinity, and the container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))
