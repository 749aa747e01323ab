"""All agents of a stack: each starts when what it needs is ready, and leaves when nothing needs it."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

import anyio
from anyio.abc import TaskGroup

from xnai.bus import Bus
from xnai.bus.background import background_tasks
from xnai.bus.locating import Address
from xnai.deploy.assignment import Assignment
from xnai.deploy.console import Console
from xnai.deploy.identity.door import Door
from xnai.deploy.members import Job
from xnai.deploy.plan import AgentPlan, Plan
from xnai.deploy.starting import Starter
from xnai.deploy.supervisor.families import families
from xnai.deploy.supervisor.group import Group
from xnai.deploy.supervisor.orders import Changes, NotReady, Row
from xnai.deploy.supervisor.probing import Prober, row_of, waiting_row
from xnai.deploy.supervisor.warden import Warden
from xnai.deploy.supervisor.window import View
from xnai.protocol.errors import InvalidArgument, XnaiError

_COUNT_DOWN_EVERY = 1.0
CONTRADICTION = "cannot run beside"
"""Stands in what an agent says whose schemas contradict those of one that runs."""
_AT_THE_NEXT_START = ("server", "limits", "keeper", "supervisor")


class Fleet:
    """The agents of one stack, on one bus.

    Args:
        plan: what the agents are to be at first.
        read: reads it anew, for `reload`.
        folder: the stack's `.xnai`.
        door: lets its agents in; None where the broker lets everybody do everything.
    """

    def __init__(
        self,
        plan: Plan,
        read: Callable[[], Awaitable[Plan]],
        *,
        folder: Path,
        address: Address,
        console: Console,
        starter: Starter,
        door: Door | None = None,
    ) -> None:
        self.settings = plan
        self.groups: dict[str, Group] = {}
        self._read, self._began_with = read, self.settings
        self._folder, self._address, self._console, self._starter = folder, address, console, starter
        self._door, self._word = door, secrets.token_hex(8)
        self._warden = Warden(console)
        self._reloading = anyio.Lock()
        self._leaving = False
        self._bus: Bus
        self._tasks: TaskGroup

    @asynccontextmanager
    async def open(self, bus: Bus) -> AsyncIterator[None]:
        """Start all agents; at the end all have left, however the context ends. `bus` is the supervisor's."""
        self._bus, self._prober = bus, Prober(bus)
        async with background_tasks() as self._tasks:
            try:
                await self._warden.prepare(self.settings.agents)
                await self._dismiss_strangers()
                async with anyio.create_task_group() as declaring:
                    for name in self.settings.agents:
                        declaring.start_soon(self._declare, name)
                self._start(list(self.settings.agents))
                self._tasks.start_soon(self._warden.watch, self.groups)
                yield
            finally:
                with anyio.CancelScope(shield=True):
                    await self._drain()
                    await self._warden.close()

    async def settle(self) -> None:
        """Wait until each agent is ready, or will not be unless somebody does something about it."""
        for group in list(self.groups.values()):
            await group.settled.wait()

    def targets(self) -> list[tuple[str, str, Path]]:
        """For each agent its name, its module, and the folder where that is looked for."""
        tables = self.settings.agents.items()
        return [(name, table.module, self._folder.parent) for name, table in tables]

    @property
    def ready(self) -> list[str]:
        return [name for name, group in self.groups.items() if group.ready.is_set() and not group.given_up]

    @property
    def missing(self) -> list[str]:
        """The agents that are not as their settings want them."""
        return [name for name in self.groups if name not in self.ready]

    def group(self, name: str) -> Group:
        """The agent of this name.

        Raises:
            InvalidArgument: the settings have none.
        """
        return self.groups.get(name) or _unknown(name, self.groups)

    def hurry(self) -> None:
        """End what has not left yet."""
        for group in self.groups.values():
            group.leave(hurry=True)

    async def rows(self, name: str | None = None) -> list[Row]:
        """The processes of all agents, or of one, as they are now."""
        return (await self.view(name)).rows

    async def view(self, name: str | None = None) -> View:
        """The same, and whether there is a broker by way of which they could be asked."""
        groups = [self.group(name)] if name else list(self.groups.values())
        places = [place for group in groups for place in group.places]
        pids = [place.member.pid for place in places if place.running and place.member.pid is not None]
        said = await self._prober.ask(pids)
        members = families(pids)
        rows = [waiting_row(group.name) for group in groups if group.waiting]
        rows += [row_of(group.name, place, said or {}, members) for group in groups for place in group.places]
        return View(rows=rows, linked=said is not None)

    # Changing

    async def scale(self, name: str, replicas: int) -> None:
        """Have so many processes of an agent; raises as `Group.scale` does, and InvalidArgument."""
        await self.group(name).scale(replicas)

    async def restart(self, name: str) -> None:
        """New processes for an agent, as whom the broker knows it now; raises as `group`, and NotReady."""
        group = self.group(name)
        await group.replace(job=self._job(name, group.table))

    async def renew(self, name: str) -> None:
        """New processes for an agent whose source has changed.

        Where the new ones refuse to run beside the old ones, because a schema changed, those leave first.

        Raises:
            NotReady: they do not take tasks.
        """
        group = self.group(name)
        try:
            await group.replace()
        except NotReady as error:
            if CONTRADICTION not in str(error):
                raise
            await group.replace(alone=True)

    async def reload(self) -> Changes:
        """Read the settings again, and do what changed in them; what was given up gets another chance.

        Raises:
            InvalidSettings: they cannot be used; nothing has changed.
        """
        async with self._reloading:
            settings = await self._read()
            before, self.settings = self.settings.agents, settings
            stopped = [name for name in self.groups if name not in settings.agents]
            started = [name for name in settings.agents if name not in self.groups]
            waiting = [name for name, group in self.groups.items() if group.waiting and name not in stopped]
            await self._stop([*stopped, *waiting])  # those that wait may be told to wait for others
            failed = {name: why for name in settings.agents if (why := await self._welcome(name))}
            started = [name for name in started if name not in failed]
            await self._warden.prepare(settings.agents)
            self._start([*started, *waiting])
            changes = Changes(
                started=started, stopped=stopped, restarted=[], scaled={}, failed=failed, later=self._later()
            )
            for name in settings.agents:
                if name in before and name in self.groups and name not in (*started, *waiting, *failed):
                    await self._change(self.groups[name], changes)
            for name in (*started, *waiting):
                await self.groups[name].settled.wait()
                if errors := [place.last_error for place in self.groups[name].places if place.over]:
                    changes.failed[name] = errors[0] or ""
            changes.started.extend(name for name in waiting if self.groups[name].ready.is_set())
            return changes

    def _later(self) -> list[str]:
        began, now = self._began_with, self.settings
        return [table for table in _AT_THE_NEXT_START if getattr(began, table) != getattr(now, table)]

    async def _change(self, group: Group, changes: Changes) -> None:
        """Make an agent that runs what its settings say now."""
        name, old = group.name, group.table
        table = self.settings.agents[name]
        job = self._job(name, table)
        try:
            if job != group.job or group.given_up:
                changes.restarted.append(name)
                await group.replace(table, job)
            group.take(table)
            if old.replicas != table.replicas:
                changes.scaled[name] = table.replicas
                await group.scale(table.replicas)
        except NotReady as error:
            changes.failed[name] = str(error)

    async def _stop(self, names: list[str]) -> None:
        for name in names:
            self.groups[name].leave()
        for name in names:
            await self.groups.pop(name).gone.wait()
            if self._door is not None and name not in self.settings.agents:
                try:
                    await self._door.dismiss(name)
                except XnaiError as error:  # whoever lets in is away; at our next start this is done first
                    self._console.say(f"{name} may still be let in: {error}")

    # Coming and going

    async def _declare(self, name: str) -> None:
        if self._door is not None:
            await self._door.admit_agent(name)
        await self._bus.declare(name, self.settings.limits)

    async def _welcome(self, name: str) -> str | None:
        """The same while others run, for those too whose key was revoked; returns why it cannot be."""
        try:
            await self._declare(name)
        except XnaiError as error:
            return str(error)
        return None

    async def _dismiss_strangers(self) -> None:
        """Those that the settings named once, and named no more when we began."""
        if self._door is not None:
            here = self._door.keyring.machine
            for each in self._door.keyring.members():
                if each.by_settings and each.machine == here and each.name not in self.settings.agents:
                    await self._door.dismiss(each.name)

    def _start(self, names: list[str]) -> None:
        if self._leaving:
            raise NotReady("The stack is going down.")
        for name in names:
            self.groups[name] = self._new_group(name)
        for name in names:
            needs = [self.groups[other] for other in self.settings.agents[name].needs]
            self._tasks.start_soon(self.groups[name].run, needs)

    def _new_group(self, name: str) -> Group:
        table = self.settings.agents[name]

        async def let_serve(roles: tuple[str, ...]) -> Job:
            if self._door is not None:
                await self._door.give_roles(name, roles)
            return self._job(name, self.groups[name].table)

        return Group(
            name,
            table,
            self._job(name, table),
            policy=self.settings.supervisor,
            show=self._console.line,
            let_serve=let_serve,
            confine=self._warden.confine,
            starter=self._starter,
        )

    def _job(self, name: str, table: AgentPlan) -> Job:
        beside = self._folder.parent
        is_file = table.module.partition(":")[0].endswith(".py") or "/" in table.module
        return Job(
            target=str(beside / table.module) if is_file and table.cwd else table.module,
            assignment=Assignment(
                name=name,
                at=self._address,
                roles=None if self._door is None else self._door.keyring.roles_of(name),
                word=self._word,
                folder=str(self._folder),
                concurrency=table.concurrency,
                limits=self._began_with.limits,
                settings=table.settings,
                nice=table.nice,
                oom_score_adj=table.oom_score_adj,
            ),
            cwd=str(beside / (table.cwd or "")),
            env=table.env,
        )

    async def _drain(self) -> None:
        self._leaving = True
        async with anyio.create_task_group() as leaving, background_tasks() as tasks:
            tasks.start_soon(self._count_down)
            for group in list(self.groups.values()):
                leaving.start_soon(self._see_off, group)
            for group in list(self.groups.values()):
                await group.gone.wait()

    async def _see_off(self, group: Group) -> None:
        """Ask an agent to leave when all that need it have left."""
        for other in list(self.groups.values()):
            if group.name in other.table.needs:
                await other.gone.wait()
        group.leave()

    async def _count_down(self) -> None:
        """Say each second who is still there, and how long the first of them may be."""
        while True:
            await anyio.sleep(_COUNT_DOWN_EVERY)
            for name, group in list(self.groups.items()):
                if group.leave_by is not None:
                    left = max(0.0, group.leave_by - time.monotonic())
                    self._console.line(name, "stderr", f"has {left:.0f} s left to leave")


def _unknown(name: str, known: dict[str, Group]) -> NoReturn:
    raise InvalidArgument(f"xnai.toml of this stack has no agent {name}, only: {', '.join(known) or 'none'}.")
