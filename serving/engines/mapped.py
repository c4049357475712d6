"""A network that several processes share: optimised once, its weights mapped from one file instead of held by each."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
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


def unmap_pages(folder: Path) -> None:
    """Lets go of the weights that this process has mapped from `folder`: the next call finds them in the file's cache.

    They stay in that cache until the system needs its memory. Mappings of which a page was written to are left alone.
    """
    weights, span = str(folder / _WEIGHTS), ""
    with contextlib.suppress(OSError, AttributeError), open("/proc/self/smaps", encoding="utf-8") as maps:  # noqa: PTH123
        madvise = ctypes.CDLL("libc.so.6").madvise
        for line in maps:
            key, *values = line.rstrip("\n").split(maxsplit=5)
            if not key.endswith(":"):
                span = key if values[-1] == weights else ""
            elif span and key == "Anonymous:" and values[0] == "0":
                start, end = (int(part, 16) for part in span.split("-"))
                madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


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
