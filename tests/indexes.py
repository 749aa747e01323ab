"""An index of tasks on a test's broker, and what queues and logs themselves say, to compare it with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from joining import member

from xnai.bus import Bus, Server
from xnai.bus.indexing import answer_tasks
from xnai.protocol import TaskArtifactUpdateEvent, TaskRow, TaskState
from xnai.protocol.events import ErrorInfo, error_in


class Told(msgspec.Struct, frozen=True):
    """What a row and the logs must agree on."""

    agent: str
    skill: str
    context: str | None
    state: TaskState
    updated: str | None
    attempt: int
    error: ErrorInfo | None


@asynccontextmanager
async def index(server: Server, file: Path) -> AsyncIterator[None]:
    """A keeper of an index in `file`, with a connection of its own."""
    async with member(server, "keeper") as bus, answer_tasks(bus, file):
        yield


async def by_index(bus: Bus) -> dict[str, Told]:
    """What the index says of each of our tasks."""
    return {row.id: told(row) async for row in bus.tasks.all()}


def told(row: TaskRow) -> Told:
    return Told(row.agent, row.skill, row.context, row.state, row.updated, row.attempt, row.error)


async def by_logs(bus: Bus, ids: Iterable[str]) -> dict[str, Told]:
    """What queue and log say of each of these tasks, read one by one."""
    return {id: await _by_log(bus, id) for id in ids}


async def _by_log(bus: Bus, id: str) -> Told:
    found, task = await bus.found(id), await bus.task(id)
    events = await bus.finder.story(found)
    attempts = [
        event.facts.attempt for event in events if not isinstance(event.body, TaskArtifactUpdateEvent)
    ]
    return Told(
        agent=found.agent,
        skill=found.skill,
        context=task.context_id,
        state=task.status.state,
        updated=task.status.timestamp,
        attempt=max(attempts, default=0),
        error=error_in(task.status),
    )
