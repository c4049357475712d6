"""The cores a process may use, read from made-up control groups."""

from __future__ import annotations

import math
import os

from pipeline.hardware import cgroup_quota, cpu_limit


def write(root, files):
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_version_2_takes_the_smallest_quota_on_the_way_up(tmp_path):
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/cpu.max": "max 100000\n",
            "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/a/b/cpu.max": "300000 100000\n",
        },
    )
    assert cgroup_quota(root) == 1.5
    assert cpu_limit(root) == min(2, len(os.sched_getaffinity(0)))


def test_version_1_reads_quota_and_period(tmp_path):
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/x\n",
            "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
        },
    )
    assert cgroup_quota(root) == 0.5
    assert cpu_limit(root) == 1


def test_without_a_limit_the_affinity_counts(tmp_path):
    assert cgroup_quota(tmp_path) == math.inf
    assert cpu_limit(tmp_path) == len(os.sched_getaffinity(0))
