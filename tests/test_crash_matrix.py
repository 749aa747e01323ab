"""Killed with SIGKILL at each named point of a task's journey: one outcome, and everybody is told it."""

from __future__ import annotations

import crashing_caller
import pytest
from crashing_caller import BEFORE, CALLING, HEARD, READING, SENT
from crashing_worker import (
    AGENT,
    BEFORE_MIDWAY,
    IN_THE_HANDLER,
    MIDWAY,
    PUBLISHED,
    RECEIVED,
    WORKER,
    WORKING,
    Options,
)
from recording import Program, Recording, recording
from witness import CALLER

from xnai.bus import Server
from xnai.protocol import TaskState
from xnai.protocol.events import ARTIFACT, OUTCOME

TASK = "the-task"
CHUNKS = 8


async def finish(run: Recording, *workers: Program) -> None:
    """What holds behind every crash: the history may have happened, and nothing is left over."""
    for worker in workers:
        await run.end(worker)
    assert await run.faults() == []
    assert (await run.outcome(TASK)).state == TaskState.COMPLETED
    assert await run.queued() == 0


@pytest.mark.parametrize(
    ("skill", "point"),
    [("work", RECEIVED), ("work", IN_THE_HANDLER), ("report", MIDWAY), ("count", RECEIVED)],
)
async def test_a_worker_is_killed_before_the_answer_and_another_gives_it(
    server: Server, skill: str, point: str
) -> None:
    async with recording(server, AGENT) as run:
        first = await run.start(WORKER, "first", Options(point=point))
        (run.read if skill == "count" else run.ask)(f"{AGENT}.{skill}", CHUNKS, id=TASK)
        await run.until_at("first", point)
        run.follow(TASK)
        await run.kill(first)
        second = await run.start(WORKER, "second", Options())
        await run.until_returned(CALLER)
        await run.until_followed()
        await finish(run, second)
        assert run.attempts(TASK)[-1] == 2


@pytest.mark.parametrize("skill", ["work", "count"])
async def test_two_workers_are_killed_the_second_when_it_had_begun_to_work(
    server: Server, skill: str
) -> None:
    async with recording(server, AGENT) as run:
        first = await run.start(WORKER, "first", Options(point=RECEIVED))
        (run.read if skill == "count" else run.ask)(f"{AGENT}.{skill}", CHUNKS, id=TASK)
        await run.until_at("first", RECEIVED)
        run.follow(TASK)
        await run.kill(first)
        second = await run.start(WORKER, "second", Options(point=WORKING))
        await run.until_at("second", WORKING)
        await run.kill(second)
        third = await run.start(WORKER, "third", Options())
        await run.until_returned(CALLER)
        await run.until_followed()
        await finish(run, third)
        assert run.attempts(TASK) == [3]


@pytest.mark.parametrize("skill", ["work", "report", "count"])
async def test_a_worker_is_killed_between_the_outcome_and_the_ack_and_its_work_is_not_repeated(
    server: Server, skill: str
) -> None:
    async with recording(server, AGENT) as run:
        first = await run.start(WORKER, "first", Options(point=PUBLISHED))
        (run.read if skill == "count" else run.ask)(f"{AGENT}.{skill}", CHUNKS, id=TASK)
        await run.until_at("first", PUBLISHED)
        await run.until_returned(CALLER)
        await run.kill(first)
        run.follow(TASK)
        second = await run.start(WORKER, "second", Options())
        await run.until_at("second", RECEIVED)
        await run.until_followed()
        await finish(run, second)
        assert run.attempts(TASK) == [1]


@pytest.mark.parametrize("stored", [False, True])
async def test_a_worker_is_killed_in_the_midst_of_a_stream_which_goes_on_where_it_was(
    server: Server, *, stored: bool
) -> None:
    async with recording(server, AGENT) as run:
        first = await run.start(WORKER, "first", Options(point=MIDWAY))
        run.read(f"{AGENT}.count", CHUNKS, id=TASK)
        await run.until_at("first", MIDWAY)
        await run.until_yielded(CALLER, times=BEFORE_MIDWAY)
        if stored:
            await run.until_heard(ARTIFACT)
        run.follow(TASK)
        await run.kill(first)
        second = await run.start(WORKER, "second", Options())
        await run.until_returned(CALLER)
        await run.until_followed()
        await finish(run, second)
        assert run.attempts(TASK) == [1, 2]


async def test_a_task_that_kills_its_workers_ends_as_exhausted(server: Server) -> None:
    async with recording(server, AGENT) as run:
        run.ask(f"{AGENT}.kill", 7, id=TASK)
        for by in ("first", "second"):
            died = await run.start(WORKER, by, Options(), until=RECEIVED)
            await run.until_died(died)
        run.follow(TASK)
        third = await run.start(WORKER, "third", Options())
        await run.until_returned(CALLER)
        await run.until_followed()
        await run.end(third)
        assert await run.faults(max_attempts=2) == []
        outcome = await run.outcome(TASK)
        assert (outcome.state, outcome.answer) == (TaskState.FAILED, "exhausted")
        assert await run.queued() == 0


@pytest.mark.parametrize("point", [BEFORE, SENT])
async def test_a_caller_is_killed_before_any_worker_runs_and_asks_again(server: Server, point: str) -> None:
    async with recording(server, AGENT) as run:
        asks = crashing_caller.Options(id=TASK, skill="work", payload=7, stepwise=True, point=point)
        first = await run.start(CALLING, "first", asks)
        await run.until_at("first", point)
        await run.kill(first)
        again = crashing_caller.Options(id=TASK, skill="work", payload=7)
        second = await run.start(CALLING, "second", again)
        worker = await run.start(WORKER, "worker", Options())
        await run.until_returned("second")
        await second.ended()
        await finish(run, worker)
        assert len(run.attempts(TASK)) == 1


async def test_a_caller_is_killed_while_it_waits_and_the_task_goes_on_until_it_asks_again(
    server: Server,
) -> None:
    async with recording(server, AGENT) as run:
        worker = await run.start(WORKER, "worker", Options(point=IN_THE_HANDLER, until_told=True))
        asks = crashing_caller.Options(id=TASK, skill="work", payload=7)
        first = await run.start(CALLING, "first", asks)
        await run.until_at("worker", IN_THE_HANDLER)
        await run.kill(first)
        await run.start(CALLING, "second", asks)
        await run.until_asked("second")
        await worker.tell()
        await run.until_returned("second")
        await finish(run, worker)


@pytest.mark.parametrize("worker_left", [False, True])
async def test_a_caller_is_killed_when_it_had_heard_the_outcome_and_is_told_the_same_one(
    server: Server, *, worker_left: bool
) -> None:
    async with recording(server, AGENT) as run:
        worker = await run.start(WORKER, "worker", Options())
        asks = crashing_caller.Options(id=TASK, skill="work", payload=7, stepwise=True, point=HEARD)
        first = await run.start(CALLING, "first", asks)
        await run.until_at("first", HEARD)
        await run.kill(first)
        if worker_left:
            await run.end(worker)
        again = crashing_caller.Options(id=TASK, skill="work", payload=7)
        await run.start(CALLING, "second", again)
        await run.until_returned("second")
        await finish(run, *([] if worker_left else [worker]))
        assert run.attempts(TASK) == [1]


async def test_a_caller_is_killed_in_the_midst_of_a_stream_and_reads_it_again_from_the_beginning(
    server: Server,
) -> None:
    async with recording(server, AGENT) as run:
        worker = await run.start(WORKER, "worker", Options(point=MIDWAY, until_told=True))
        asks = crashing_caller.Options(id=TASK, skill="count", payload=CHUNKS, streams=True, point=READING)
        first = await run.start(CALLING, "first", asks)
        await run.until_at("first", READING)
        await run.kill(first)
        again = crashing_caller.Options(id=TASK, skill="count", payload=CHUNKS, streams=True)
        await run.start(CALLING, "second", again)
        await run.until_yielded("second", times=BEFORE_MIDWAY)
        await worker.tell()
        await run.until_returned("second")
        await finish(run, worker)
        assert run.attempts(TASK) == [1]


async def test_the_same_id_asked_by_two_callers_at_once_is_one_task(server: Server) -> None:
    async with recording(server, AGENT) as run:
        worker = await run.start(WORKER, "worker", Options(point=RECEIVED, until_told=True))
        asks = crashing_caller.Options(id=TASK, skill="work", payload=7)
        for by in ("first", "second"):
            await run.start(CALLING, by, asks)
            await run.until_asked(by)
        await run.until_at("worker", RECEIVED)
        await worker.tell()
        await run.until_heard(OUTCOME)
        for by in ("first", "second"):
            await run.until_returned(by)
        await finish(run, worker)
        assert run.attempts(TASK) == [1]
