"""How many threads a computation may use here."""

import os
from pathlib import Path

from xnai.agents.inference.control_groups import quotas


def physical_cores(root: Path = Path("/")) -> int:
    """The physical cores that this process may use, at least 1.

    Counts what its CPU affinity allows, hardware threads of one core once, and no more than whole cores of
    the CPU quota of its cgroup and of those above it (v1 and v2). `root` is where proc and sys are found.
    """
    cores = len({_core(root, cpu) for cpu in cpus()})
    return max(1, min([cores, *map(int, quotas(root))]))


def cpus() -> set[int]:
    """The CPUs that this process may use; hardware threads of one core count each."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _core(root: Path, cpu: int) -> str:
    """A name for the core of this CPU, the same for all its hardware threads."""
    siblings = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
    try:
        return siblings.read_text().strip()
    except OSError:
        return str(cpu)
