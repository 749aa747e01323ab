"""The keeper: ends what nobody else ends, and removes what is over. It runs inside `xnai up`.

Every step is safe to repeat, and several keepers may run: the gate admits one outcome, and only what has its
outcome is removed.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections import defaultdict

import anyio

from xnai.bus.bus import Bus
from xnai.bus.ending import Owner, deadline_exceeded
from xnai.bus.jetstream import NANOSECONDS, Stored
from xnai.bus.sending import LONGEST_TTL
from xnai.bus.streams import KEPT_AFTER_THE_END
from xnai.bus.transport import NoResponders
from xnai.protocol import subjects
from xnai.protocol.a2a import TaskState
from xnai.protocol.envelope import read_envelope
from xnai.protocol.errors import MalformedMessage, Unavailable
from xnai.protocol.names import SYSTEM
from xnai.protocol.timestamps import parse_timestamp

log = logging.getLogger(__name__)
INTERVAL = 5.0
_SETTLED = 5.0  # seconds that a task stays unread: most end sooner, and cost the keeper nothing
_AFTER_THE_OWNER = 2.0  # seconds past the deadline: the worker writes first, then a waiting owner
_CLEANING_INTERVAL = 60.0
_FULL, _ROOMY = 0.8, 0.7
_MOST_REMOVED = 2_000  # tasks at a time: removing one takes about a millisecond of the broker


async def keep(bus: Bus, *, interval: float = INTERVAL, kept: float = KEPT_AFTER_THE_END) -> None:
    """Keep the bus in order until cancelled.

    Args:
        bus: any bus; what is written is written as `system`.
        interval: seconds between two looks at the queues.
        kept: seconds for which the log of an ended task stays.
    """
    keeper = Keeper(bus, kept)
    cleaned = 0.0
    while True:
        try:
            for agent in await bus.finder.agents():
                await keeper.end_overdue(agent)
            if time.monotonic() - cleaned >= _CLEANING_INTERVAL:
                cleaned = time.monotonic()
                for agent in await bus.finder.agents():
                    await keeper.remove_old(agent)
                await keeper.remove_stale_cards()
        except Unavailable as error:  # the next round tries again
            log.warning("the keeper could not do its round: %s", error)
        await anyio.sleep(interval)


class Keeper:
    """What it remembers between two looks: how far it has read each queue, and the deadlines it found."""

    def __init__(self, bus: Bus, kept: float) -> None:
        self._bus, self._kept = bus, kept
        self._owner = Owner(bus.publisher, bus.finder, bus.blobs, SYSTEM)
        self._read: dict[str, int] = defaultdict(int)
        self._deadlines: dict[str, list[tuple[float, int, str]]] = defaultdict(list)

    async def end_overdue(self, agent: str) -> int:
        """End the tasks of an agent whose deadline passed unnoticed, and take them out of its queue.

        Returns how many left the queue.
        """
        try:
            await self._read_deadlines(agent)
        except NoResponders:  # its queue is gone
            return 0
        deadlines = self._deadlines[agent]
        removed = 0
        while deadlines and deadlines[0][0] + _AFTER_THE_OWNER < time.time():
            _, sequence, subject = heapq.heappop(deadlines)
            removed += await self._end(agent, sequence, subject)
        return removed

    async def _read_deadlines(self, agent: str) -> None:
        async for stored in self._bus.api.scan(
            subjects.task_stream(agent), subjects.tasks(agent), after=self._read[agent]
        ):
            if stored.time > time.time() - _SETTLED:
                return
            self._read[agent] = stored.sequence
            try:
                task = read_envelope(stored.data, subjects.read_task(stored.subject))
                deadline = min(parse_timestamp(task.deadline), stored.time + LONGEST_TTL)
            except MalformedMessage:  # the agent's worker keeps it as a dead letter
                continue
            heapq.heappush(self._deadlines[agent], (deadline, stored.sequence, stored.subject))

    async def _end(self, agent: str, sequence: int, subject: str) -> int:
        """End one overdue task if it is still queued."""
        stream = subjects.task_stream(agent)
        stored = await self._bus.api.last(stream, subject)
        if stored is None or stored.sequence != sequence:
            return 0
        task = read_envelope(stored.data, subjects.read_task(subject))
        try:
            outcome = await self._owner.end(task, TaskState.FAILED, deadline_exceeded(task))
            state = outcome.status.state.value
        except MalformedMessage:  # its sender has ended it with something that is no outcome
            state = "unreadable"
        log.info("an overdue task has ended", extra={"task": task.id, "state": state})
        await self._bus.api.delete(stream, sequence)
        return 1

    async def remove_old(self, agent: str) -> int:
        """Remove the logs of tasks that ended long ago; above four fifths of the limit, the oldest first.

        Returns how many.
        """
        stream = subjects.log_stream(agent)
        try:
            info = await self._bus.api.stream_info(stream)
        except Unavailable:
            return 0
        limit = info["config"].get("max_bytes", -1)
        used = info["state"]["bytes"]
        crowded = limit > 0 and used > _FULL * limit
        removed = 0
        async for stored in self._bus.api.scan(stream, subjects.outcomes(agent)):
            if removed >= _MOST_REMOVED or (stored.time > time.time() - self._kept and not crowded):
                break
            await self._remove(stream, stored)
            removed += 1
            if crowded and removed % 100 == 0:
                crowded = await self._is_crowded(stream, limit)
        if removed:
            log.info("logs of ended tasks are removed", extra={"agent": agent, "tasks": removed})
        return removed

    async def remove_stale_cards(self) -> int:
        """Remove cards that were made to stay (`Nats-TTL: never`), beyond the age that is set for all.

        Returns how many.
        """
        try:
            info = await self._bus.api.stream_info(subjects.CARD_STREAM)
        except Unavailable:
            return 0
        age = info["config"].get("max_age", 0) / NANOSECONDS
        oldest = time.time() - age if age else 0.0
        removed = 0
        async for stored in self._bus.api.scan(subjects.CARD_STREAM, subjects.CARD_SUBJECTS):
            if stored.time > oldest or removed >= _MOST_REMOVED:
                break
            await self._bus.api.delete(subjects.CARD_STREAM, stored.sequence)
            removed += 1
        return removed

    async def _is_crowded(self, stream: str, limit: int) -> bool:
        used: int = (await self._bus.api.stream_info(stream))["state"]["bytes"]
        return used > _ROOMY * limit

    async def _remove(self, stream: str, outcome: Stored) -> None:
        try:
            about = subjects.read_event(outcome.subject)
        except MalformedMessage:  # it stands where no honest member writes
            return await self._bus.api.delete(stream, outcome.sequence)
        await self._bus.api.purge(stream, subjects.log(about.agent, about.sender, about.id))
