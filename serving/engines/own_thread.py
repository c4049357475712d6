"""Runs what loads OpenVINO's CPU plugin away from the caller's thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def in_own_thread(work: Callable[[], Result]) -> Result:
    """What `work` returns or raises, from a thread that ends with it.

    The plugin gives the thread that loads it an alternate stack for signals and frees that stack when it is unloaded
    (2026.4): the next signal that Python hears, such as Ctrl-C or a data loader's end, would be the process's last.
    """
    with ThreadPoolExecutor(1, "load") as pool:
        return pool.submit(work).result()
