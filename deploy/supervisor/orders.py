"""What a supervisor may be asked for over the bus, and what it says."""

from __future__ import annotations

from typing import Annotated

import msgspec

from xnai.deploy.plan import MOST_REPLICAS
from xnai.protocol.errors import XnaiError

DEAD, WAITING = "dead", "waiting"
"""What `Row.level` says besides the levels of the probe: no process now; or not started yet."""


class NotReady(XnaiError):
    """A new process of an agent does not take tasks; what ran before goes on."""

    code = "not_ready"


class Which(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of the agents in the supervisor's own `xnai.toml`."""

    agent: str


class Scaling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """So many processes of one of the agents."""

    agent: str
    replicas: Annotated[int, msgspec.Meta(ge=0, le=MOST_REPLICAS)]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One process of an agent, or the place of one that is dead.

    Attributes:
        instance: that of its bus; None until it is known.
        level: how alive it is: a level of the probe, DEAD or WAITING.
        uptime: seconds since its start.
        memory_mb: resident, with the processes that it started.
        done, failed: outcomes that it stored, COMPLETED and others; None where it cannot be asked.
        running: tasks at work.
        restarts: how often there was a new process in this place.
        last_error: what the last one that died said, or the last attempt that failed.
    """

    name: str
    instance: str | None = None
    pid: int | None = None
    level: str
    uptime: float = 0.0
    memory_mb: float = 0.0
    done: int | None = None
    failed: int | None = None
    running: int | None = None
    restarts: int = 0
    last_error: str | None = None


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What a supervisor says about one more process of an agent.

    Attributes:
        takes: whether it has such an agent in its settings, and room for it.
        processes: how many it runs, for each processor of its machine.
        load: the load average of the last minute, for each processor.
    """

    takes: bool
    processes: float
    load: float


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """What a new reading of the settings changed, by the names of agents.

    Attributes:
        failed: what did not take tasks, and what it said.
        later: tables whose change takes effect when the stack comes up the next time.
    """

    started: list[str] = []
    stopped: list[str] = []
    restarted: list[str] = []
    scaled: dict[str, int] = {}
    failed: dict[str, str] = {}
    later: list[str] = []

    def lines(self) -> list[str]:
        """What a person is told."""
        told = [
            f"{word} {', '.join(names)}"
            for word, names in (
                ("started", self.started),
                ("stopped", self.stopped),
                ("restarted", [name for name in self.restarted if name not in self.failed]),
            )
            if names
        ]
        told += [f"scaled {name} to {replicas}" for name, replicas in self.scaled.items()]
        told += [f"not changed: {name}: {why}" for name, why in self.failed.items()]
        told += [f"[{table}] is used from the next start: xnai down, then xnai up" for table in self.later]
        return told or ["nothing has changed"]
