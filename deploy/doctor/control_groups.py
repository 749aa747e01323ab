"""What a control group grants this process: its files of version 2, or of version 1 where that is mounted.

Source: https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/cgroups.html beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from xnai.deploy.doctor.finding import Case


def texts(case: Case, controller: str, name: str, *, version: int) -> Iterator[str]:
    """The contents of a file of our group and of those above it: all of their limits hold."""
    mounted = case.root / "sys" / "fs" / "cgroup"
    for line in _lines(case.root / "proc" / "self" / "cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if version == 2 and number == "0" and not controllers:
            place = mounted
        elif version == 1 and controller in controllers.split(","):
            place = mounted / controller
        else:
            continue
        below = Path(path.lstrip("/"))
        for group in dict.fromkeys((below, *below.parents, Path())):
            if said := "\n".join(_lines(place / group / name)):
                yield said


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
