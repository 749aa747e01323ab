"""A worker that is stopped (SIGSTOP) for longer than the ack wait: what it says late is refused."""

from __future__ import annotations

import signal

import anyio
import pytest
from crashing_worker import (
    AGENT,
    IN_THE_HANDLER,
    MIDWAY,
    RECEIVED,
    STOPPED,
    WORKER,
    Options,
)
from history import Started
from recording import Recording, recording
from witness import CALLER

from xnai.bus import Server
from xnai.bus.parser import Frame
from xnai.protocol import subjects
from xnai.protocol.events import ARTIFACT, OUTCOME

TASK = "the-task"
CHUNKS = 8


class Published:
    """Hears what is published for the log, also what the broker then refuses."""

    def __init__(self) -> None:
        self.outcomes: list[bytes] = []
        self.two = anyio.Event()

    def take(self, frame: Frame) -> None:
        if subjects.read_event(frame.subject).kind == OUTCOME:
            self.outcomes.append(frame.data)
        if len(self.outcomes) == 2:
            self.two.set()


def started_by(run: Recording, by: str) -> list[int]:
    return [record.attempt for record in run.records if isinstance(record, Started) and record.by == by]


async def test_the_late_outcome_of_a_stopped_worker_is_refused_and_its_caller_never_sees_it(
    server: Server,
) -> None:
    published = Published()
    async with recording(server, AGENT) as run:
        first = await run.start(
            WORKER, "first", Options(point=IN_THE_HANDLER, until_told=True, blocking=True)
        )
        async with run.bus.transport.listen(subjects.log(AGENT), published.take):
            run.ask(f"{AGENT}.work", 7, id=TASK)
            await run.until_at("first", IN_THE_HANDLER)
            run.follow(TASK)
            first.signal(signal.SIGSTOP)
            second = await run.start(WORKER, "second", Options())
            await run.until_returned(CALLER)
            await run.until_followed()
            first.signal(signal.SIGCONT)
            await first.tell()
            await published.two.wait()
        run.ask(f"{AGENT}.work", 7, id=TASK, by="later caller")
        await run.until_returned("later caller")
        await run.end(first)
        await run.end(second)
        assert published.outcomes[0] != published.outcomes[1]
        assert await run.faults() == []
        assert (await run.outcome(TASK)).answer == '"7 by second in attempt 2"'
        assert await run.queued() == 0


@pytest.mark.parametrize("skill", ["report", "count"])
async def test_the_handler_of_a_stopped_worker_ends_with_its_first_refused_event(
    server: Server, skill: str
) -> None:
    async with recording(server, AGENT) as run:
        first = await run.start(WORKER, "first", Options(point=MIDWAY, until_told=True))
        (run.read if skill == "count" else run.ask)(f"{AGENT}.{skill}", CHUNKS, id=TASK)
        await run.until_at("first", MIDWAY)
        run.follow(TASK)
        first.signal(signal.SIGSTOP)
        second = await run.start(WORKER, "second", Options())
        await run.until_returned(CALLER)
        await run.until_followed()
        first.signal(signal.SIGCONT)
        await first.tell()
        await run.until_at("first", STOPPED)
        await run.end(first)
        await run.end(second)
        assert await run.faults() == []
        assert run.attempts(TASK) == [1, 2]
        assert (await run.outcome(TASK)).attempt == 2
        assert await run.queued() == 0


@pytest.mark.parametrize("skill", ["report", "count"])
async def test_a_stopped_worker_that_goes_on_in_time_may_still_be_the_first_to_finish(
    server: Server, skill: str
) -> None:
    async with recording(server, AGENT) as run:
        first = await run.start(WORKER, "first", Options(point=MIDWAY, until_told=True))
        (run.read if skill == "count" else run.ask)(f"{AGENT}.{skill}", CHUNKS, id=TASK)
        await run.until_at("first", MIDWAY)
        run.follow(TASK)
        first.signal(signal.SIGSTOP)
        second = await run.start(WORKER, "second", Options(point=MIDWAY, until_told=True))
        await run.until_at("second", MIDWAY)
        first.signal(signal.SIGCONT)
        await first.tell()
        await run.until_returned(CALLER)
        await run.until_followed()
        await second.tell()
        await run.until_at("second", STOPPED)
        await run.end(first)
        await run.end(second)
        assert await run.faults() == []
        assert (await run.outcome(TASK)).attempt == 1
        assert await run.queued() == 0


async def test_a_stream_that_two_attempts_have_stored_alternately_is_read_whole(server: Server) -> None:
    async with recording(server, AGENT) as run:
        first = await run.start(WORKER, "first", Options(point=MIDWAY, until_told=True))
        run.read(f"{AGENT}.count", CHUNKS, id=TASK)
        await run.until_at("first", MIDWAY)
        await run.until_heard(ARTIFACT)
        run.follow(TASK)
        first.signal(signal.SIGSTOP)
        second = await run.start(WORKER, "second", Options(point=MIDWAY, until_told=True))
        await run.until_at("second", MIDWAY)
        await run.until_heard(ARTIFACT, times=2)
        first.signal(signal.SIGCONT)
        await first.tell()
        await run.until_returned(CALLER)
        await run.until_followed()
        run.read(f"{AGENT}.count", CHUNKS, id=TASK, by="later caller")
        await run.until_returned("later caller")
        await second.tell()
        await run.end(first)
        await run.end(second)
        assert await run.faults() == []
        assert (await run.outcome(TASK)).attempt == 1
        assert await run.queued() == 0


async def test_tasks_that_were_handed_to_a_stopped_worker_are_done_by_another_and_not_again(
    server: Server,
) -> None:
    ids = [f"task-{number}" for number in range(20)]
    async with recording(server, AGENT) as run:
        first = await run.start(WORKER, "first", Options())
        first.signal(signal.SIGSTOP)
        second = await run.start(WORKER, "second", Options())
        for number, id in enumerate(ids):
            run.ask(f"{AGENT}.work", number, id=id)
        await run.until_returned(CALLER, times=len(ids))
        first.signal(signal.SIGCONT)
        await run.until_at("first", RECEIVED)
        await run.end(first)
        await run.end(second)
        assert await run.faults() == []
        assert started_by(run, "first") == []
        assert await run.queued() == 0
