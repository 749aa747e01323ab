"""Keeps each process to what its agent may take: by control groups where they can be had, and by looking."""

from __future__ import annotations

from collections.abc import Mapping

import anyio

from xnai.deploy.console import Console
from xnai.deploy.plan import AgentPlan
from xnai.deploy.supervisor.confining import DRAINED_AT, Confined, ControlGroups, Quota
from xnai.deploy.supervisor.families import families, held
from xnai.deploy.supervisor.group import Group
from xnai.deploy.supervisor.place import Place

_LOOK_EVERY = 0.5
_LOOKS_AT_A_FAMILY = 4  # all processes of the machine are read to find one


class Warden:
    """That of one supervisor, for all of its agents."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._groups = ControlGroups()
        self._told = set[str]()

    async def prepare(self, tables: Mapping[str, AgentPlan]) -> None:
        """Get ready for what these settings limit; what cannot be kept here is said once for each agent."""
        if all(quota_of(table) == Quota() for table in tables.values()):
            return
        why = await self._groups.prepare() or "our control group has no processors to divide"
        names = [name for name, table in tables.items() if table.cpu is not None and name not in self._told]
        if names and "cpu" not in self._groups.controllers:
            self._told.update(names)
            self._console.say(f"cpu of {', '.join(names)} cannot be kept here: {why}")

    def confine(self, label: str, pid: int, table: AgentPlan) -> Confined | None:
        """Keep a process to its settings; None where only looking helps, which `watch` does."""
        try:
            return self._groups.confine(label, pid, quota_of(table))
        except OSError as error:  # the system allows no more groups, for example
            self._console.line(label, "stderr", f"has no control group: {error.strerror}")
            return None

    async def watch(self, groups: Mapping[str, Group]) -> None:
        """Let a process leave that holds nearly as much as it may, before the kernel ends it."""
        looks, members = 0, dict[int, list[int]]()
        while True:
            await anyio.sleep(_LOOK_EVERY)
            watched = {
                pid: (place, most)
                for group in groups.values()
                if (most := group.table.memory) is not None
                for place in group.places
                if place.running and (pid := place.member.pid) is not None
            }
            if watched and (looks % _LOOKS_AT_A_FAMILY == 0 or watched.keys() - members):
                members = families(watched)
            looks += 1
            for pid, (place, most) in watched.items():
                _look_at(place, members[pid], most)

    async def close(self) -> None:
        """Undo what was made, when all agents have left."""
        await self._groups.close()


def _look_at(place: Place, members: list[int], most: int) -> None:
    place.notice_kills()
    if (holds := held(members)) > most * DRAINED_AT:
        place.outgrow(holds, most)


def quota_of(table: AgentPlan) -> Quota:
    """What the settings of an agent let each of its processes take."""
    return Quota(memory=table.memory, cpu=table.cpu)
