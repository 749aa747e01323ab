"""How many threads a computation may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xnai.agents.inference.cores import physical_cores


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


ALLOWED = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def test_hardware_threads_of_one_core_count_once(tmp_path: Path) -> None:
    names = [f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list" for cpu in ALLOWED]
    assert physical_cores(machine(tmp_path, dict.fromkeys(names, "0-127"))) == 1


def test_without_anything_known_each_allowed_cpu_is_a_core(tmp_path: Path) -> None:
    assert physical_cores(tmp_path) == len(ALLOWED)


@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "190000 100000"},
        {"proc/self/cgroup": "0::/only/on/the/host", "sys/fs/cgroup/cpu.max": "50000 100000"},
        {
            "proc/self/cgroup": "4:cpuacct,cpu:/a\n1:name=systemd:/\n0::/",
            "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "100000",
            "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000",
        },
        {"proc/self/cgroup": "garbage\n\n0::/a", "sys/fs/cgroup/a/cpu.max": "100000 100000"},
    ],
    ids=["v2 above", "v2 in a container", "v1", "beside garbage"],
)
def test_a_quota_of_the_cgroup_limits_the_threads(tmp_path: Path, files: dict[str, str]) -> None:
    assert physical_cores(machine(tmp_path, files)) == 1


def test_a_cgroup_without_a_quota_limits_nothing(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:cpu:/\n0::/",
        "sys/fs/cgroup/cpu.max": "max 100000",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    }
    assert physical_cores(machine(tmp_path, files)) == len(ALLOWED)
