"""What the machine is doing beside the engine, as /proc tells it. A system without it is taken for quiet."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import NamedTuple

from xnai.agents.inference.cores import cpus


class Times(NamedTuple):
    """Seconds so far: of our CPUs at work or taken by other machines, of this process, and of the clock."""

    all: float
    own: float
    clock: float


class Neighbours:
    """How many of the cores that this process may use others keep busy. `root` is where proc is found."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._before = self._times()

    def cores(self) -> float:
        """Cores that others kept busy since the last call, or since this was made."""
        before, now = self._before, self._times()
        self._before = now
        return busy_cores(before, now)

    def _times(self) -> Times:
        # The kernel counts in ticks, at another moment than the clock: read close together.
        return Times(_busy(self._root), time.process_time(), time.monotonic())


def busy_cores(before: Times, now: Times) -> float:
    """Cores that others kept busy between the two."""
    if now.clock <= before.clock:
        return 0.0
    return max(0.0, now.all - before.all - (now.own - before.own)) / (now.clock - before.clock)


def _busy(root: Path) -> float:
    """Seconds in which the CPUs that this process may use worked, or were given to another machine."""
    try:
        lines = (root / "proc/stat").read_text().splitlines()
    except OSError:
        return 0.0
    ours = {f"cpu{cpu}" for cpu in cpus()}
    rows = [words for line in lines if (words := line.split()) and words[0] in ours]
    ticks = 0
    for words in rows or [line.split() for line in lines[:1]]:
        user, nice, system, _, _, irq, softirq, steal = (int(word) for word in (*words[1:], *"0" * 8)[:8])
        ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


class Stalls:
    """For how much of the time somebody waited for memory (PSI). `root` is where proc is found."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._path = root / "proc/pressure/memory"
        self._before = self._seconds(), time.monotonic()

    def share(self) -> float:
        """The share of the time since the last call, or since this was made; 0 without PSI."""
        (waited, then), (waits, now) = self._before, (self._seconds(), time.monotonic())
        self._before = waits, now
        return min(1.0, max(0.0, waits - waited) / max(now - then, 1e-6))

    def _seconds(self) -> float:
        try:
            said = re.search(r"^some .*total=(\d+)", self._path.read_text(), re.MULTILINE)
        except OSError:
            return 0.0
        return int(said[1]) / 1e6 if said else 0.0
