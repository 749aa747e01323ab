"""How alive this process is: the one probe that cards, services and supervisors show."""

from __future__ import annotations

import math
import os
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from xnai.agents.run import Run
from xnai.protocol.presence import Level, Presence, SkillFacts
from xnai.protocol.timestamps import format_timestamp

if TYPE_CHECKING:
    from xnai.agents.worker import Worker

_LONGEST_ERROR = 200  # characters of the last error that a card shows
_WEIGHED_FOR = 15.0  # seconds
_OVERDUE = 5.0  # seconds past its end after which a task keeps its process from progressing


class Vitals:
    """What a worker says of itself."""

    def __init__(self, worker: Worker, schemas: dict[str, SkillFacts]) -> None:
        agent = worker.agent
        self._worker, self._schemas = worker, schemas
        self._weighed, self._mb = -math.inf, 0.0
        self._identity = Presence(
            agent=agent.name,
            roles=agent.roles,
            instance=worker.bus.instance,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=agent.version,
            started=format_timestamp(time.time()),
            concurrency=agent.concurrency,
        )

    def presence(self) -> Presence:
        """The instance as it is now."""
        worker = self._worker
        level, why = level_of(worker)
        tally = worker.tally
        return msgspec.structs.replace(
            self._identity,
            running=worker.running,
            done=tally.done,
            failed=tally.failed,
            healed=worker.healed,
            level=level,
            why=why,
            last_error=tally.last_error[:_LONGEST_ERROR] if tally.last_error else None,
            memory_mb=self._memory(),
            skills={name: self._with_counts(name) for name in self._schemas},
        )

    def _memory(self) -> float:
        """Megabytes, a few seconds old: reading them is the dearest part of a card."""
        now = time.monotonic()
        if now - self._weighed > _WEIGHED_FOR:
            self._weighed, self._mb = now, round(resident_mb(), 1)
        return self._mb

    def _with_counts(self, name: str) -> SkillFacts:
        counted = self._worker.tally.skills.get(name)
        if counted is None:
            return self._schemas[name]
        return msgspec.structs.replace(
            self._schemas[name],
            done=counted.done,
            failed=counted.failed,
            seconds=round(counted.seconds, 3),
        )


def level_of(worker: Worker) -> tuple[Level, str | None]:
    """How alive a worker is, and what keeps it from the next level. Its loop turns, or nobody asked this."""
    if not worker.bus.transport.connected:
        return Level.PROCESS, "The link to the broker is lost."
    if worker.leaving:
        return Level.LINK, "It is leaving."
    if silence := worker.silence:
        return Level.LINK, silence
    if stuck := _stuck(worker.runs):
        return Level.CONSUMING, stuck
    return Level.PROGRESSING, None


def _stuck(runs: Iterable[Run]) -> str | None:
    """Which task goes on beyond its limits."""
    now = time.monotonic()
    for run in runs:
        if run.stopped is not None and now - run.stopped_at > _OVERDUE:
            return f"{run} goes on though it was stopped {now - run.stopped_at:.0f} s ago."
    return None


def resident_mb() -> float:
    """Resident memory of this process, in megabytes; its peak where the system tells nothing else."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        import resource  # not where there is /proc

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1e6 if sys.platform == "darwin" else 1e3)
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
