"""A network that several processes share: optimised once, its weights mapped from one file instead of held by each."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import Any

_NETWORK, _WEIGHTS = "network.onnx", "weights"


def mapped_session(data: bytes, folder: Path, options: Callable[[], Any]) -> Any:
    """An ONNX Runtime session whose weights lie in a file of `folder`, written there by whoever comes first.

    Its activations are returned to the allocator after each call, not kept in an arena: an idle process is then small.

    Args:
        data: the network, as in the bundle.
        folder: of this machine and this service alone; what was optimised here may not run elsewhere.
        options: makes the session's options.
    """
    import onnxruntime as ort

    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / _NETWORK).exists():
            _optimise(data, folder, options())
    lean = options()
    lean.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # that was done
    lean.enable_cpu_mem_arena = lean.enable_mem_pattern = False
    return ort.InferenceSession(str(folder / _NETWORK), lean, providers=["CPUExecutionProvider"])


def _optimise(data: bytes, folder: Path, options: Any) -> None:
    import onnxruntime as ort

    part = folder / "part.onnx"
    options.optimized_model_filepath = str(part)
    for key, value in {
        "session.optimized_model_external_initializers_file_name": _WEIGHTS,
        "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
    }.items():
        options.add_session_config_entry(key, value)
    ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    part.rename(folder / _NETWORK)
