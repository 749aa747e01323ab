"""What control groups grant this process: version 2, or version 1 where that is mounted.

Source: https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/cgroups.html beside it. `root` is
where proc and sys are found. A system without control groups limits nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Memory(NamedTuple):
    """Bytes that a group may hold and holds, and those of them that are files nobody has used lately."""

    most: int
    used: int
    files: int


def quotas(root: Path) -> Iterator[float]:
    """How many processors' time each group grants, where that is limited."""
    for version, group in _groups(root, "cpu"):
        if version == 2:
            quota, _, period = _text(group / "cpu.max").partition(" ")
        else:
            quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal():  # "max" and -1 are no limits
            yield int(quota) / int(period)


def memories(root: Path) -> Iterator[Memory]:
    """How much memory each group grants, where that is limited."""
    for version, group in _groups(root, "memory"):
        most, used, files = (
            ("memory.max", "memory.current", "inactive_file")
            if version == 2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        )
        limit, usage = _text(group / most), _text(group / used)
        if limit.isdecimal() and usage.isdecimal():
            said = re.search(rf"^{files} (\d+)$", _text(group / "memory.stat"), re.MULTILINE)
            yield Memory(int(limit), int(usage), int(said[1]) if said else 0)


def _groups(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """The version and folder of our group and of those above it: all of their limits hold."""
    mounted = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            version, top = 2, mounted
        elif controller in controllers.split(","):
            version, top = 1, mounted / controller
        else:
            continue
        # In a container the path may be the host's, and is not found below the mount: its parents are.
        below = Path(path.lstrip("/"))
        for group in dict.fromkeys((below, *below.parents)):
            yield version, top / group


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
