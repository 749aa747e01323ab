"""How many threads a computation may use here."""

import os
from collections.abc import Iterator
from pathlib import Path


def physical_cores(root: Path = Path("/")) -> int:
    """The physical cores that this process may use, at least 1.

    Counts what its CPU affinity allows, hardware threads of one core once, and no more than whole cores of
    the CPU quota of its cgroup and of those above it (v1 and v2). `root` is where proc and sys are found.
    """
    cores = len({_core(root, cpu) for cpu in _allowed()})
    return max(1, min([cores, *(int(quota) for quota in _quotas(root))]))


def _allowed() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _core(root: Path, cpu: int) -> str:
    """A name for the core of this CPU, the same for all its hardware threads."""
    siblings = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
    return _text(siblings) or str(cpu)


def _quotas(root: Path) -> Iterator[float]:
    """The CPU quotas in force, in cores."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:
            top, quota = root / "sys/fs/cgroup", _quota_v2
        elif "cpu" in controllers.split(","):
            top, quota = root / "sys/fs/cgroup/cpu", _quota_v1
        else:
            continue
        # In a container the path may be the host's, and is not found below the mount: its parents are.
        path = top / group.lstrip("/")
        for folder in [path, *path.parents]:
            if (cores := quota(folder)) is not None:
                yield cores
            if folder == top:
                break


def _quota_v2(folder: Path) -> float | None:
    words = _text(folder / "cpu.max").split()
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0] != "max" else None


def _quota_v1(folder: Path) -> float | None:
    quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota and period and int(quota) > 0 else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
