"""How the processes of a stack are: what the system knows of them, and what they say themselves."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence

import anyio
import msgspec

from xnai.bus import Bus
from xnai.bus.transport import NoResponders
from xnai.deploy.supervisor.families import held
from xnai.deploy.supervisor.orders import DEAD, WAITING, Row
from xnai.deploy.supervisor.place import Place
from xnai.protocol.envelope import decode
from xnai.protocol.errors import MalformedMessage, Unavailable
from xnai.protocol.presence import PROBE, Level, Presence
from xnai.protocol.subjects import control
from xnai.registry import read_instances

_PATIENCE = 1.0  # seconds that a process has to answer
_PATIENCE_WITH_BROKER = 2.5
_read_presence = msgspec.json.Decoder(Presence)


class Prober:
    """Asks processes of this machine how they are. Which instance a process is, their cards tell."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._host = socket.gethostname()
        self._instances: dict[int, tuple[str, str]] = {}

    async def ask(self, pids: Sequence[int]) -> dict[int, Presence] | None:
        """What each of these processes says of itself; one that says nothing in time is left out.

        Returns None where the broker does not answer, so that nobody can be asked.
        """
        self._instances = {pid: who for pid, who in self._instances.items() if pid in pids}
        if not await self._finds_broker():
            return None
        if any(pid not in self._instances for pid in pids):
            await self._look_up()
        said: dict[int, Presence] = {}
        async with anyio.create_task_group() as tasks:
            for pid in pids:
                if pid in self._instances:
                    tasks.start_soon(self._ask, pid, said)
        return said

    async def _finds_broker(self) -> bool:
        transport = self._bus.transport
        if transport.connected:
            with anyio.move_on_after(_PATIENCE_WITH_BROKER):
                try:
                    await transport.flush()
                except NoResponders:
                    return True
                except Unavailable:
                    return False
                return True
        return False

    async def _look_up(self) -> None:
        try:
            instances = await read_instances(self._bus)
        except Unavailable:  # the broker is away: what the system knows is left
            return
        for presence in (instance.presence for instance in instances):
            if presence.host == self._host:
                self._instances[presence.pid] = presence.agent, presence.instance

    async def _ask(self, pid: int, said: dict[int, Presence]) -> None:
        subject = control(*self._instances[pid])
        try:
            answer = await self._bus.transport.ask_member(subject, PROBE, timeout=_PATIENCE)
            said[pid] = decode(_read_presence, answer.data)
        except (Unavailable, MalformedMessage):
            self._instances.pop(pid, None)  # it may be another process by now


def waiting_row(name: str) -> Row:
    """An agent that is to start when what it needs is ready."""
    return Row(name=name, level=WAITING)


def row_of(
    name: str, place: Place, presences: Mapping[int, Presence], members: Mapping[int, list[int]]
) -> Row:
    """One place, as it is now. `members` are the processes that belong to each process of ours."""
    pid = place.member.pid
    if pid is None or not place.running:
        return Row(name=name, level=DEAD, restarts=place.restarts, last_error=place.last_error)
    uptime = round(time.monotonic() - place.member.began, 1)
    said = presences.get(pid)
    memory = round(held(members.get(pid, [pid])) / 1e6, 1)
    if said is None:
        return Row(
            name=name,
            pid=pid,
            level=Level.PROCESS,
            uptime=uptime,
            memory_mb=memory,
            restarts=place.restarts,
            last_error=place.last_error,
        )
    return Row(
        name=name,
        instance=said.instance,
        pid=pid,
        level=said.level,
        uptime=uptime,
        memory_mb=memory,
        done=said.done,
        failed=said.failed,
        running=said.running,
        restarts=place.restarts,
        last_error=said.last_error or place.last_error,
    )
