"""How many cores this process may use: the affinity mask and the container's quota, not what the host has."""

from __future__ import annotations

import math
import os
from pathlib import Path


def cpu_limit(root: Path = Path("/")) -> int:
    """Cores that may be used, at least 1: the smaller of the affinity mask and the cgroup's CPU quota, rounded up.

    Args:
        root: where `proc` and `sys` are mounted.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(affinity, cgroup_quota(root))))


def cgroup_quota(root: Path = Path("/")) -> float:
    """Cores that the control group grants, version 2 or 1, over all its parents; infinite where it sets no limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return math.inf
    quotas = [math.inf]
    for line in lines:
        _, controllers, group = line.split(":", 2)
        base = root / "sys/fs/cgroup" if not controllers else root / "sys/fs/cgroup/cpu"
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Inside a container the path may be the host's: the mount's own root then holds the limit.
        parts = [part for part in group.split("/") if part not in {"", ".."}]
        quotas += [_quota_of(base.joinpath(*parts[:depth])) for depth in range(len(parts) + 1)]
    return min(quotas)


def _quota_of(folder: Path) -> float:
    """One group's quota in cores, from `cpu.max` (v2) or `cpu.cfs_quota_us` (v1)."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
            return math.inf if quota == "max" else int(quota) / int(period)
        quota = (folder / "cpu.cfs_quota_us").read_text().strip()
        period = (folder / "cpu.cfs_period_us").read_text().strip()
        return math.inf if int(quota) <= 0 else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf
