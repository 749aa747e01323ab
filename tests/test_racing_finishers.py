"""Two that finish the same task at the same time: one outcome is stored, and it is heard and returned."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial

import anyio
from recording import recording
from witness import CALLER

from xnai.bus import Bus, Server, open_bus
from xnai.bus.ending import event_about
from xnai.protocol import Artifact, Envelope, GateClosed, Part, TaskState, subjects
from xnai.protocol.envelope import encode, read_envelope
from xnai.protocol.events import OUTCOME, Facts, outcome

AGENT = "contested"
TASKS = 1_000
AT_ONCE = 64
NOW = "2026-01-31T12:00:00.000Z"


class Finisher:
    """Ends tasks with an answer of its own, as a worker of the agent or as the owner does."""

    def __init__(self, name: str, bus: Bus, *, writer: str) -> None:
        self.wins = self.losses = 0
        self.name, self._bus, self._writer = name, bus, writer

    async def finish(self, task: Envelope) -> None:
        answer = Artifact(artifact_id=f"{task.id}-1", parts=(Part(text=self.name),))
        facts = Facts(attempt=1, instance=self._bus.instance)
        end = outcome(task, TaskState.COMPLETED, at=NOW, facts=facts, artifacts=(answer,))
        try:
            await self._bus.publisher.store(
                subjects.event(event_about(task, self._writer, OUTCOME)),
                encode(end),
                unless=subjects.gate(task.agent, task.sender, task.id),
            )
        except GateClosed:
            self.losses += 1
        else:
            self.wins += 1


async def queued(bus: Bus) -> list[Envelope]:
    """The tasks that wait, in their order."""
    stream, pattern = subjects.task_stream(AGENT), subjects.tasks(AGENT)
    return [
        read_envelope(stored.data, subjects.read_task(stored.subject))
        async for stored in bus.api.scan(stream, pattern)
    ]


async def test_of_two_finishers_one_wins_each_race_and_only_its_outcome_is_ever_heard(server: Server) -> None:
    order = random.Random(7)
    async with (
        recording(server, AGENT) as run,
        open_bus(server.url, token=server.token, name=AGENT) as one,
        open_bus(server.url, token=server.token, name=AGENT) as other,
    ):
        async with anyio.create_task_group() as sending:
            for number in range(TASKS):
                to, id = f"{AGENT}.finish", f"task-{number}"
                sending.start_soon(
                    partial(run.send_and_ask, to, number, id=id, streams=False, followed=False)
                )
        worker = Finisher("worker", one, writer=AGENT)
        rivals = [Finisher("another worker", other, writer=AGENT), Finisher("owner", other, writer=CALLER)]
        limiter = anyio.CapacityLimiter(AT_ONCE)

        async def race(task: Envelope, *finishers: Finisher) -> None:
            async with limiter, anyio.create_task_group() as racing:
                for finisher in finishers:
                    racing.start_soon(finisher.finish, task)

        async with anyio.create_task_group() as races:
            for number, task in enumerate(await queued(run.bus)):
                both = [worker, rivals[number % 2]]
                order.shuffle(both)
                races.start_soon(race, task, *both)
        await run.until_returned(CALLER, times=TASKS)
        assert await run.faults() == []
        everybody = [worker, *rivals]
        assert sum(finisher.wins for finisher in everybody) == TASKS
        assert sum(finisher.losses for finisher in everybody) == TASKS
        told = Counter(event.answer for event in await run.stored())
        assert told == {f'"{finisher.name}"': finisher.wins for finisher in everybody}
